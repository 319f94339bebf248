package postgres

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"iter"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Connection is an established TCP connection as this node's kernel has it.
type Connection struct {
	Local netip.AddrPort
	// Unanswered: what it has in its queue was sent again, or room for it was asked for again, without an answer.
	Unanswered bool

	inode string
}

// Connected lists the children of a postmaster with the TCP connection that each has, if it is one that the caller wants:
// nothing else of them is looked at.
func (p Process) Connected(want func(Connection) bool) map[Process]Connection {
	wanted := map[string]Connection{}
	for _, name := range []string{"net/tcp", "net/tcp6"} {
		f, err := os.Open(procPath(p.PID, name))
		if err != nil {
			continue
		}
		for c := range connections(f) {
			if want(c) {
				wanted["socket:["+c.inode+"]"] = c
			}
		}
		f.Close()
	}
	if len(wanted) == 0 {
		return nil
	}
	found := map[Process]Connection{}
	for child := range p.Children() {
		files, _ := filepath.Glob(procPath(child.PID, "fd/*"))
		for _, f := range files {
			to, err := os.Readlink(f)
			if c, ok := wanted[to]; ok && err == nil {
				found[child] = c
			}
		}
	}
	return found
}

// OwnAddresses are those of this node's interfaces.
func OwnAddresses() (map[netip.Addr]bool, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	own := map[netip.Addr]bool{}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own[p.Addr().WithZone("").Unmap()] = true
		}
	}
	return own, nil
}

// connections reads the established ones of a table that Linux shows as /proc/net/tcp (networking/proc_net_tcp.rst in its
// documentation).
func connections(table io.Reader) iter.Seq[Connection] {
	return func(yield func(Connection) bool) {
		const established = "01"
		for sc := bufio.NewScanner(table); sc.Scan(); {
			// sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
			f := strings.Fields(sc.Text())
			if len(f) < 10 || f[3] != established {
				continue
			}
			queue, _, _ := strings.Cut(f[4], ":")
			sent, err1 := strconv.ParseUint(queue, 16, 64)
			again, err2 := strconv.ParseUint(f[6], 16, 64)
			probes, err3 := strconv.ParseUint(f[8], 10, 64)
			local, err4 := tableAddress(f[1])
			if errors.Join(err1, err2, err3, err4) != nil {
				continue
			}
			if !yield(Connection{Local: local, Unanswered: sent > 0 && again+probes > 1, inode: f[9]}) {
				return
			}
		}
	}
}

// tableAddress reads an address of that table: each 32 bits of it in this machine's order of bytes.
func tableAddress(s string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for i := 0; i+4 <= len(b); i += 4 {
		binary.BigEndian.PutUint32(b[i:], binary.NativeEndian.Uint32(b[i:]))
	}
	n, err := strconv.ParseUint(port, 16, 16)
	addr, ok := netip.AddrFromSlice(b)
	if err != nil || !ok {
		return netip.AddrPort{}, errors.New("no address: " + s)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}
