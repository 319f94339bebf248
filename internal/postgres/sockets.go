package postgres

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Stranded tells of a server process whether its TCP connection has been cut off by the loss of an address: it is connected
// by one that this node does not have any more (a virtual IP that moved away), and what it has sent since is sent again and
// again without an answer. The first alone does not say it: a kernel can be told to serve addresses that no interface has.
func (p Process) Stranded() (local netip.AddrPort, stranded bool) {
	inodes := map[string]bool{}
	files, _ := filepath.Glob(procPath(p.PID, "fd/*"))
	for _, f := range files {
		if to, err := os.Readlink(f); err == nil && strings.HasPrefix(to, "socket:[") {
			inodes[strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]")] = true
		}
	}
	if len(inodes) == 0 {
		return netip.AddrPort{}, false
	}
	own, err := ownAddresses()
	if err != nil {
		return netip.AddrPort{}, false
	}
	for _, name := range []string{"net/tcp", "net/tcp6"} {
		f, err := os.Open(procPath(p.PID, name))
		if err != nil {
			continue
		}
		c, found := unanswered(f, inodes)
		f.Close()
		if found && !own[c.Addr()] && !c.Addr().IsLoopback() {
			return c, p.Alive()
		}
	}
	return netip.AddrPort{}, false
}

// ownAddresses are those of this node's interfaces.
func ownAddresses() (map[netip.Addr]bool, error) {
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

// unanswered finds in a table of TCP connections, which Linux shows as /proc/net/tcp (proc_net_tcp.rst in its
// documentation), an established one of these sockets with something in its send queue that has been sent more than once, or
// asked for room more than once.
func unanswered(table io.Reader, inodes map[string]bool) (local netip.AddrPort, found bool) {
	const established = "01"
	for sc := bufio.NewScanner(table); sc.Scan(); {
		// sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
		f := strings.Fields(sc.Text())
		if len(f) < 10 || f[3] != established || !inodes[f[9]] {
			continue
		}
		queue, _, _ := strings.Cut(f[4], ":")
		sent, err1 := strconv.ParseUint(queue, 16, 64)
		again, err2 := strconv.ParseUint(f[6], 16, 64)
		probes, err3 := strconv.ParseUint(f[8], 10, 64)
		if errors.Join(err1, err2, err3) != nil || sent == 0 || again+probes < 2 {
			continue
		}
		if local, err := tableAddress(f[1]); err == nil {
			return local, true
		}
	}
	return netip.AddrPort{}, false
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
