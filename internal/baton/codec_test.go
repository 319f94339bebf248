package baton_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"pgregory.net/rapid"
)

var (
	anyText  = rapid.String()
	anyName  = rapid.StringN(1, 20, -1)
	anyNonce = rapid.StringMatching(`[0-9a-f]{16}`)
	anyLSN   = rapid.Custom(func(t *rapid.T) pgdisk.LSN { return pgdisk.LSN(rapid.Uint64().Draw(t, "lsn")) })
	anyTL    = rapid.Custom(func(t *rapid.T) pgdisk.TimelineID { return pgdisk.TimelineID(rapid.Uint32().Draw(t, "timeline")) })
	anyState = rapid.SampledFrom([]baton.ClaimState{baton.Intended, baton.Claimed, baton.Effective, baton.Withdrawn})
)

var anyClaim = rapid.Custom(func(t *rapid.T) baton.Claim {
	tl := rapid.Uint32Min(1).Draw(t, "timeline")
	return baton.Claim{
		Seq: rapid.Uint64().Draw(t, "seq"), Timeline: pgdisk.TimelineID(tl),
		Parent: pgdisk.TimelineID(rapid.Uint32Range(0, tl-1).Draw(t, "parent")), Switch: anyLSN.Draw(t, "switch"),
		Node: anyName.Draw(t, "node"), Nonce: anyNonce.Draw(t, "nonce"),
		Note: rapid.OneOf(rapid.Just(""), anyNonce).Draw(t, "note"), State: anyState.Draw(t, "state"), CRC: rapid.Uint32().Draw(t, "crc"),
	}
})

var anyBulletin = rapid.Custom(func(t *rapid.T) baton.Bulletin {
	b := baton.Bulletin{Node: anyName.Draw(t, "node")}
	if rapid.Bool().Draw(t, "has note") {
		b.Note = &baton.Note{
			Kind: rapid.SampledFrom([]baton.NoteKind{baton.Clean, baton.Crash}).Draw(t, "kind"), SystemID: rapid.Uint64().Draw(t, "system"),
			Timeline: anyTL.Draw(t, "timeline"), Start: anyLSN.Draw(t, "start"), End: anyLSN.Draw(t, "end"),
			CRC: rapid.Uint32().Draw(t, "crc"), Node: anyName.Draw(t, "by"), Nonce: anyNonce.Draw(t, "nonce"),
		}
	}
	if n := rapid.IntRange(0, 4).Draw(t, "claims"); n > 0 {
		for range n {
			b.Claims = append(b.Claims, anyClaim.Draw(t, "claim"))
		}
	}
	if rapid.Bool().Draw(t, "asks") {
		b.Challenge = &baton.Challenge{Nonce: anyNonce.Draw(t, "nonce"), Claim: anyClaim.Draw(t, "claim")}
	}
	if rapid.Bool().Draw(t, "says how far it is") {
		b.Primary = &pgdisk.Position{Timeline: anyTL.Draw(t, "timeline"), LSN: anyLSN.Draw(t, "lsn")}
	}
	if rapid.Bool().Draw(t, "answers") {
		b.Answer = &baton.Answer{
			Challenge: anyNonce.Draw(t, "challenge"), SystemID: rapid.Uint64().Draw(t, "system"),
			Position: pgdisk.Position{Timeline: anyTL.Draw(t, "timeline"), LSN: anyLSN.Draw(t, "lsn")},
			Identity: rapid.Uint32().Draw(t, "identity"), Writable: rapid.Bool().Draw(t, "writable"), Live: rapid.Bool().Draw(t, "live"),
			Unsure: rapid.Bool().Draw(t, "unsure"), Saw: rapid.Uint64().Draw(t, "saw"), Left: rapid.Bool().Draw(t, "left"), Away: rapid.Bool().Draw(t, "away"), Unfit: anyText.Draw(t, "unfit"),
		}
	}
	return b
})

// Ensure that what is encoded is read back as it was, and is text that attrd and a terminal can carry.
func TestBulletin_RoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := anyBulletin.Draw(t, "bulletin")
		s := b.Encode()
		if i := strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`"'\<>&`, r) }); i >= 0 {
			t.Fatalf("byte %d of %q is not plain ASCII", i, s)
		}
		got, err := baton.Decode(s)
		if err != nil {
			t.Fatalf("Decode(%q): %v", s, err)
		}
		if !reflect.DeepEqual(got, b) {
			t.Fatalf("got  %+v\nwant %+v\nfrom %q", got, b, s)
		}
	})
}

// Ensure that a bulletin of this release is read by later ones, and that what cannot be understood is an error and not a
// guess: to the rules its node is silent then.
func TestDecode(t *testing.T) {
	note := "note=clean,7563,3,0/3000028,0/30000A0,9ab01234,n1,3f2a"
	claim := "claim=7,4,3,0/30000A0,n2,5e,3f2a,intended,00000000"
	for _, c := range []struct {
		in, wrong string
	}{
		{"1;node=n1;" + note + ";" + claim, ""},
		{"1;node=n1;answer=5e,7563,3,0/30000A0,00000000,wl,", ""}, // without the last field, as the first release wrote it
		{"1;node=n1;something=new,1,2", ""},
		{"1;node=n1;" + note + ",more;" + claim + ",more", ""},
		{"", "version"},
		{"2;node=n1", "upgrade pgbaton"},
		{"1", "names no node"},
		{"1;node=", "names no node"},
		{"1;node", "no value"},
		{"1;node=%zz", "invalid URL escape"},
		{"1;node=n1;note=clean,7563,3,0/3000028", "too few parts"},
		{"1;node=n1;" + strings.Replace(note, "clean", "torn", 1), "kind"},
		{"1;node=n1;" + strings.Replace(note, ",3f2a", ",", 1), "nonce missing"},
		{"1;node=n1;" + strings.Replace(note, "0/30000A0", "30000A0", 1), "not an LSN"},
		{"1;node=n1;" + strings.Replace(claim, "intended", "tried", 1), "state"},
		{"1;node=n1;" + strings.Replace(claim, "7,4,3", "7,3,3", 1), "expected a higher one"},
		{"1;node=n1;" + strings.Replace(claim, "7,4,3", "7,4294967296,3", 1), "out of range"},
		{"1;node=n1;" + strings.Replace(claim, "5e", "", 1), "nonce missing"},
	} {
		_, err := baton.Decode(c.in)
		switch {
		case c.wrong == "" && err != nil:
			t.Errorf("Decode(%q): %v", c.in, err)
		case c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)):
			t.Errorf("Decode(%q): got error %v, want one with %q", c.in, err, c.wrong)
		}
	}
}

// What Decode accepts, Encode must write so that it means the same.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		"1;node=n1;note=clean,7563,3,0/3000028,0/30000A0,9ab01234,n1,3f2a;claim=7,4,3,0/30000A0,n2,5e,3f2a,intended,00000000",
		"1;node=n2;primary=3,0/1;challenge=5e,7,4,3,0/30000A0,n2,5e,,claimed,00000001;answer=5e,1,3,0/0,0,wl,not+streaming,7",
		"1;node=n%C3%BC;answer=,0,0,0/0,0,,", "2", "1;=;;,",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := baton.Decode(s)
		if err != nil {
			return
		}
		again, err := baton.Decode(b.Encode())
		if err != nil {
			t.Fatalf("%q is read, but not what it is written as, %q: %v", s, b.Encode(), err)
		}
		if !reflect.DeepEqual(again, b) {
			t.Fatalf("%q: %+v, written and read again %+v", s, b, again)
		}
	})
}

// Ensure that it does not matter who told what first, and that telling it twice adds nothing.
func TestMergeClaims_Order(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var lists [3][]baton.Claim
		for i := range rapid.IntRange(1, 6).Draw(t, "claims") {
			c := baton.Claim{
				Seq: rapid.Uint64Range(1, 4).Draw(t, "seq"), Timeline: pgdisk.TimelineID(i + 2), Parent: pgdisk.TimelineID(i + 1),
				Node: rapid.SampledFrom([]string{"n1", "n2", "n3"}).Draw(t, "node"), Nonce: anyNonce.Draw(t, "nonce"),
			}
			for l := range lists {
				if rapid.Bool().Draw(t, "known") {
					c.State, c.CRC = anyState.Draw(t, "state"), 0
					if c.State == baton.Effective {
						c.CRC = rapid.Uint32Range(0, 1).Draw(t, "crc")
					}
					lists[l] = append(lists[l], c)
				}
			}
		}
		want := baton.MergeClaims(lists[0], lists[1], lists[2])
		for _, got := range [][]baton.Claim{
			baton.MergeClaims(lists[2], lists[1], lists[0]),
			baton.MergeClaims(lists[1], lists[0], lists[2], lists[1]),
			baton.MergeClaims(want, want),
		} {
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("got  %v\nwant %v", got, want)
			}
		}
	})
}

// Ensure an order does not wait for the failure after the next one, nor get lost to clocks that differ a little.
func TestOrder_Holds(t *testing.T) {
	now := time.Now()
	for ago, want := range map[time.Duration]bool{0: true, 23 * time.Hour: true, 25 * time.Hour: false, -time.Minute: true, -25 * time.Hour: false} {
		if got := (baton.Order{At: now.Add(-ago)}).Holds(now); got != want {
			t.Errorf("given %s ago: %t, want %t", ago, got, want)
		}
	}
}
