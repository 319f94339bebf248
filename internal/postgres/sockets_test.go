package postgres

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Ensure a connection counts as unanswered only with something in its queue that has been sent again. The tables are a
// standby's, a moment after the virtual IP 10.77.0.10 had left it, as Linux 6.18 showed them.
func TestConnections(t *testing.T) {
	const head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	row := func(state, queue, again, probes string) string {
		return head + "   3: 0A004D0A:1538 0B004D0A:89D0 " + state + " " + queue + ":00000000 04:00000152 " + again + "   105        " + probes + " 4711 1 00000000ecf689b5 20 4 0 10 -1\n"
	}
	is := func(unanswered bool) []Connection {
		return []Connection{{Local: netip.MustParseAddrPort("10.77.0.10:5432"), Unanswered: unanswered, inode: "4711"}}
	}
	for _, tt := range []struct {
		name, table string
		want        []Connection
	}{
		{"probed five times", row("01", "00000005", "00000000", "5"), is(true)},
		{"sent again three times", row("01", "00000005", "00000003", "0"), is(true)},
		{"sent just now", row("01", "00000005", "00000000", "0"), is(false)},
		{"nothing to send", row("01", "00000000", "00000003", "0"), is(false)},
		{"closing", row("04", "00000005", "00000003", "0"), nil},
		{"nonsense", head + "1: x y 01 z\n" + "1: x:1 y 01 1:0 1:1 9 0 9 4711\n", nil},
	} {
		if got := slices.Collect(connections(strings.NewReader(tt.table))); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// Ensure both kinds of addresses are read as the kernel writes them.
func TestTableAddress(t *testing.T) {
	for text, want := range map[string]string{
		"0A004D0A:1538":                         "10.77.0.10:5432",
		"00000000000000000000000001000000:0016": "[::1]:22",
		"0000000000000000FFFF00000A004D0A:1538": "10.77.0.10:5432",
	} {
		if got, err := tableAddress(text); err != nil || got != netip.MustParseAddrPort(want) {
			t.Errorf("%s: %s %v, want %s", text, got, err, want)
		}
	}
}

// Ensure a child that has a connection is found by it, and no other one.
func TestConnected(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dial := func() *os.File {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		f, err := c.(*net.TCPConn).File() // a second one of it, for the child
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	var children []*exec.Cmd
	var ports []uint16
	for range 2 {
		f := dial()
		cmd := exec.Command("sleep", "60")
		cmd.ExtraFiles = []*os.File{f}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer cmd.Process.Kill()
		sa, err := syscall.Getsockname(int(f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, uint16(sa.(*syscall.SockaddrInet4).Port))
		f.Close()
		children = append(children, cmd)
	}
	self := Process{PID: os.Getpid()}
	got := self.Connected(func(c Connection) bool { return c.Local.Port() == ports[1] })
	if len(got) != 1 {
		t.Fatalf("found %+v, want pid %d", got, children[1].Process.Pid)
	}
	for p, c := range got {
		if p.PID != children[1].Process.Pid || c.Local.Port() != ports[1] || c.Unanswered {
			t.Errorf("found %+v with %+v, want pid %d", p, c, children[1].Process.Pid)
		}
	}
	own, err := OwnAddresses()
	if err != nil || !own[netip.MustParseAddr("127.0.0.1")] {
		t.Errorf("own addresses: %v (%v), 127.0.0.1 is missing", own, err)
	}
}
