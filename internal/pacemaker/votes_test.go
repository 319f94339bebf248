package pacemaker

import (
	"strings"
	"testing"
)

// Ensure the votes are read from what corosync-quorumtool says (Corosync 3.1.7, of a cluster in the lab), and nothing is made
// of numbers that change by themselves.
func TestParseVotes(t *testing.T) {
	const text = `Quorum information
------------------
Date:             Fri Nov 27 15:06:46 2026
Quorum provider:  corosync_votequorum
Nodes:            3
Node ID:          1
Ring ID:          1.9
Quorate:          Yes

Votequorum information
----------------------
Expected votes:   3
Highest expected: 3
Total votes:      3
Quorum:           2  
Flags:            Quorate 

Membership information
----------------------
    Nodeid      Votes Name
         1          1 n1 (local)
         2          1 n2
         3          1 n3
`
	for _, tt := range []struct {
		name, old, new   string
		expected, quorum int
		bad              string
	}{
		{"three nodes", "", "", 3, 2, ""},
		{"two nodes", "Expected votes:   3", "Expected votes:   2", 2, 2, ""},
		{"two_node", "Quorum:           2  \nFlags:            Quorate", "Quorum:           1  \nFlags:            2Node Quorate WaitForAll", 3, 1, ""},
		{"without a quorum", "Quorum:           2  ", "Quorum:           2 Activity blocked", 3, 2, ""},
		{"quorum device", "Flags:            Quorate ", "Flags:            Quorate Qdevice ", 3, 2, ""},
		{"last man standing", "Flags:            Quorate ", "Flags:            Quorate WaitForAll LastManStanding ", 0, 0, "LastManStanding"},
		{"half may do", "Flags:            Quorate ", "Flags:            Quorate AutoTieBreaker ", 0, 0, "AutoTieBreaker"},
		{"another provider", "Expected votes:   3", "", 0, 0, `"Expected votes"`},
		{"no number", "Quorum:           2  ", "Quorum:           many", 0, 0, `"many"`},
	} {
		expected, quorum, err := parseVotes([]byte(strings.Replace(text, tt.old, tt.new, 1)))
		if (err != nil) != (tt.bad != "") || err != nil && !strings.Contains(err.Error(), tt.bad) || expected != tt.expected || quorum != tt.quorum {
			t.Errorf("%s: %d votes, %d a quorum, %v; want %d, %d, %q", tt.name, expected, quorum, err, tt.expected, tt.quorum, tt.bad)
		}
	}
	if _, _, err := parseVotes(nil); err == nil {
		t.Error("nothing at all is no error")
	}
}
