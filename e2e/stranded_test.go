package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// Ensure nobody stays connected to an old primary by the virtual IP when that has left it. Clients and the other standbys
// connect to it in the moment in which it is a standby and has the address still. What is left of that, on both sides in good
// faith, holds connections for hours, and WAL senders spin, a processor each, for a minute.
func TestStranded(t *testing.T) {
	c := consoleCluster(t)
	c.useFaults(t, false)
	s := c.begin(t, 3*time.Minute, true)
	cutOff := 0
	for n := 0; n < 6 && cutOff == 0; n++ {
		from, began := s.promoted(""), s.logs.Count()
		to := c.lab.Names[(slices.Index(c.lab.Names, from)+1)%len(c.lab.Names)]
		s.handoverTo(to)
		s.await(6*time.Second, func() error {
			procs, err := c.lab.Processes(from)
			s.must(err)
			for _, p := range procs {
				if (strings.Contains(p.Args, "walsender") || strings.Contains(p.Args, "load 10.77.")) && p.State != "Z" {
					return lab.NotYet("%s has lost the role and the address, and pid %d still runs: %s", from, p.PID, p.Args)
				}
			}
			return nil
		})
		for _, l := range s.logs.From(began) {
			if l.Node == from && strings.HasPrefix(l.Msg, "this node has lost an address") {
				cutOff++
			}
		}
	}
	if cutOff == 0 {
		t.Error("in six handovers nobody came back to the old primary before the address left it: nothing was shown")
	}
	s.stage("what was cut off was ended %d times", cutOff)
	s.finish()
}
