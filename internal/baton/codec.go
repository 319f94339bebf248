package baton

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// codecVersion stands first in an encoded bulletin. A reader that meets another version says so and does not guess.
const codecVersion = "1"

// Encode packs a bulletin into printable ASCII without spaces or quotes, so that it survives attrd, its tools and a
// person's terminal: fields are separated by ';', their parts by ','.
//
//	1;node=n1;note=clean,7563…,3,0/3000028,0/30000A0,9ab01234,n1,3f2a…;claim=7,4,3,0/30000A0,n2,…
func (b Bulletin) Encode() string {
	out := []string{codecVersion, "node=" + url.QueryEscape(b.Node)}
	if b.SystemID != 0 {
		out = append(out, "system="+u(b.SystemID))
	}
	if n := b.Note; n != nil {
		out = append(out, "note="+strings.Join([]string{
			string(n.Kind), u(n.SystemID), u(uint64(n.Timeline)), n.Start.String(), n.End.String(), crc(n.CRC), url.QueryEscape(n.Node), n.Nonce,
		}, ","))
	}
	for _, c := range b.Claims {
		out = append(out, "claim="+encodeClaim(c))
	}
	if p := b.Primary; p != nil {
		out = append(out, "primary="+u(uint64(p.Timeline))+","+p.LSN.String())
	}
	if c := b.Challenge; c != nil {
		out = append(out, "challenge="+c.Nonce+","+encodeClaim(c.Claim))
	}
	if a := b.Answer; a != nil {
		out = append(out, "answer="+strings.Join([]string{
			a.Challenge, u(a.SystemID), u(uint64(a.Position.Timeline)), a.Position.LSN.String(), crc(a.Identity), flags(*a), url.QueryEscape(a.Unfit), u(a.Saw),
		}, ","))
	}
	return strings.Join(out, ";")
}

// EncodeClaim packs a claim alone, as [Bulletin.Encode] does, with the system identifier of its database cluster.
func EncodeClaim(systemID uint64, c Claim) string {
	return strings.Join([]string{codecVersion, "system=" + u(systemID), "claim=" + encodeClaim(c)}, ";")
}

// DecodeClaim reads what [EncodeClaim] wrote.
func DecodeClaim(s string) (systemID uint64, c Claim, err error) {
	b, err := Decode(s + ";node=-")
	if err == nil && len(b.Claims) != 1 {
		err = fmt.Errorf("claim %q: expected one claim", s)
	}
	if err != nil {
		return 0, Claim{}, err
	}
	return b.SystemID, b.Claims[0], nil
}

func encodeClaim(c Claim) string {
	return strings.Join([]string{
		u(c.Seq), u(uint64(c.Timeline)), u(uint64(c.Parent)), c.Switch.String(), url.QueryEscape(c.Node), c.Nonce, c.Note, string(c.State), crc(c.CRC),
	}, ",")
}

// Decode reads what [Bulletin.Encode] wrote. Unknown fields of a newer release are passed over, a missing or malformed
// part is an error: a bulletin that cannot be read is a node that cannot be asked.
func Decode(s string) (Bulletin, error) {
	var b Bulletin
	fields := strings.Split(s, ";")
	if fields[0] != codecVersion {
		return b, fmt.Errorf("bulletin of version %q, this release reads version %s: upgrade pgbaton on this node", fields[0], codecVersion)
	}
	for _, f := range fields[1:] {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return b, fmt.Errorf("bulletin field %q has no value", f)
		}
		p := &parts{list: strings.Split(value, ",")}
		switch key {
		case "node":
			b.Node = p.text()
		case "system":
			b.SystemID = p.num(64)
		case "note":
			b.Note = &Note{
				Kind: NoteKind(p.raw()), SystemID: p.num(64), Timeline: pgdisk.TimelineID(p.num(32)),
				Start: p.lsn(), End: p.lsn(), CRC: p.hex(), Node: p.text(), Nonce: p.raw(),
			}
			if k := b.Note.Kind; k != Clean && k != Crash && k != Abandoned {
				p.keep(fmt.Errorf("note of kind %q: upgrade pgbaton on this node", k))
			}
			p.must(b.Note.Nonce, "nonce")
			p.must(b.Note.Node, "node")
		case "primary":
			b.Primary = &pgdisk.Position{Timeline: pgdisk.TimelineID(p.num(32)), LSN: p.lsn()}
		case "claim":
			b.Claims = append(b.Claims, p.claim())
		case "challenge":
			b.Challenge = &Challenge{Nonce: p.raw(), Claim: p.claim()}
		case "answer":
			b.Answer = &Answer{
				Challenge: p.raw(), SystemID: p.num(64),
				Position: pgdisk.Position{Timeline: pgdisk.TimelineID(p.num(32)), LSN: p.lsn()}, Identity: p.hex(),
			}
			f := p.raw()
			b.Answer.Writable, b.Answer.Live = strings.Contains(f, "w"), strings.Contains(f, "l")
			b.Answer.Left, b.Answer.Away = strings.Contains(f, "b"), strings.Contains(f, "a")
			b.Answer.Unsure = strings.Contains(f, "u")
			b.Answer.Unfit = p.text()
			if len(p.list) > 0 {
				b.Answer.Saw = p.num(64)
			}
		}
		if p.err != nil {
			return b, fmt.Errorf("bulletin field %q: %w", f, p.err)
		}
	}
	if b.Node == "" {
		return b, fmt.Errorf("bulletin %q names no node", s)
	}
	return b, nil
}

// parts hands out the comma-separated parts of a field one by one and remembers the first error.
type parts struct {
	list []string
	err  error
}

func (p *parts) raw() string {
	if len(p.list) == 0 {
		if p.err == nil {
			p.err = fmt.Errorf("too few parts")
		}
		return ""
	}
	s := p.list[0]
	p.list = p.list[1:]
	return s
}

func (p *parts) text() string {
	s, err := url.QueryUnescape(p.raw())
	p.keep(err)
	return s
}

func (p *parts) num(bits int) uint64 {
	v, err := strconv.ParseUint(p.raw(), 10, bits)
	p.keep(err)
	return v
}

func (p *parts) hex() uint32 {
	v, err := strconv.ParseUint(p.raw(), 16, 32)
	p.keep(err)
	return uint32(v)
}

func (p *parts) lsn() pgdisk.LSN {
	v, err := pgdisk.ParseLSN(p.raw())
	p.keep(err)
	return v
}

func (p *parts) claim() Claim {
	c := Claim{
		Seq: p.num(64), Timeline: pgdisk.TimelineID(p.num(32)), Parent: pgdisk.TimelineID(p.num(32)), Switch: p.lsn(),
		Node: p.text(), Nonce: p.raw(), Note: p.raw(), State: ClaimState(p.raw()), CRC: p.hex(),
	}
	if c.State.rank() == 0 {
		p.keep(fmt.Errorf("claim state %q is unknown", c.State))
	}
	p.must(c.Nonce, "nonce")
	p.must(c.Node, "node")
	if c.Timeline <= c.Parent {
		p.keep(fmt.Errorf("a claim on timeline %d from %d: expected a higher one", c.Timeline, c.Parent))
	}
	return c
}

// must keeps an error for a part that says nothing: two claims without a nonce would be taken for one.
func (p *parts) must(value, what string) {
	if value == "" {
		p.keep(fmt.Errorf("%s missing", what))
	}
}

func (p *parts) keep(err error) {
	if err != nil && p.err == nil {
		p.err = err
	}
}

func u(v uint64) string   { return strconv.FormatUint(v, 10) }
func crc(v uint32) string { return fmt.Sprintf("%08x", v) }

func flags(a Answer) string {
	s := ""
	if a.Writable {
		s += "w"
	}
	if a.Live {
		s += "l"
	}
	if a.Left {
		s += "b" // it is behind
	}
	if a.Away {
		s += "a"
	}
	if a.Unsure {
		s += "u"
	}
	return s
}
