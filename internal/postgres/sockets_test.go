package postgres

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
)

// Ensure a connection counts as cut off only with something in its queue that has been sent again, and is that of the
// process. The tables are a standby's, a moment after the virtual IP 10.77.0.10 had left it, as Linux 6.18 showed them.
func TestUnanswered(t *testing.T) {
	const head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	row := func(state, queue, again, probes string) string {
		return head + "   3: 0A004D0A:1538 0B004D0A:89D0 " + state + " " + queue + ":00000000 04:00000152 " + again + "   105        " + probes + " 4711 1 00000000ecf689b5 20 4 0 10 -1\n"
	}
	want := netip.MustParseAddrPort("10.77.0.10:5432")
	for _, tt := range []struct {
		name, table string
		inode       string
		want        bool
	}{
		{"probed five times", row("01", "00000005", "00000000", "5"), "4711", true},
		{"sent again three times", row("01", "00000005", "00000003", "0"), "4711", true},
		{"sent just now", row("01", "00000005", "00000000", "0"), "4711", false},
		{"nothing to send", row("01", "00000000", "00000003", "0"), "4711", false},
		{"closing", row("04", "00000005", "00000003", "0"), "4711", false},
		{"another process's", row("01", "00000005", "00000003", "0"), "4712", false},
		{"nonsense", head + "1: x y 01 z\n" + "1: x:1 y 01 1:0 1:1 9 0 9 4711\n", "4711", false},
	} {
		got, found := unanswered(strings.NewReader(tt.table), map[string]bool{tt.inode: true})
		if found != tt.want || found && got != want {
			t.Errorf("%s: %v %v, want %v", tt.name, got, found, tt.want)
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

// Ensure a connection by an address that this machine has is never cut off.
func TestStranded_Own(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if by, stranded := (Process{PID: os.Getpid()}).Stranded(); stranded {
		t.Errorf("connected by %s, and counts as cut off", by)
	}
	own, err := ownAddresses()
	if err != nil || !own[netip.MustParseAddr("127.0.0.1")] {
		t.Errorf("own addresses: %v (%v), 127.0.0.1 is missing", own, err)
	}
}
