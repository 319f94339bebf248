package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// Ensure no WAL sender goes on on an old primary when the virtual IP has left it. The other standbys connect to it in the
// moment in which it is a standby and has the address still; what is left of that spins, a processor each, for a minute.
func TestStrandedSender(t *testing.T) {
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
				if strings.Contains(p.Args, "walsender") && p.State != "Z" {
					return lab.NotYet("a WAL sender still runs on %s, which has lost the role and the address: pid %d, %s", from, p.PID, p.Args)
				}
			}
			return nil
		})
		for _, l := range s.logs.From(began) {
			if l.Node == from && strings.HasPrefix(l.Msg, "a WAL sender is cut off") {
				cutOff++
			}
		}
	}
	s.stage("%d WAL senders were cut off, and ended", cutOff)
	s.finish()
}
