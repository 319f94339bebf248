package e2e

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// machineSlowness is lab.Slowness of this machine; 1 on a common one. It is measured before anything runs.
var machineSlowness = 1.0

func measureMachine() error {
	f, err := lab.Slowness()
	if err != nil {
		return err
	}
	if machineSlowness = f; f > 1 {
		fmt.Fprintf(os.Stderr, "this machine starts programs %.1f times slower than a common one: limits of time are longer by as much\n", f)
	}
	return nil
}

// here is what a limit of time for a common machine is on this one. For what the cluster's timers take (Corosync's token, an
// interval) nothing is added: they are the same everywhere.
func here(limit time.Duration) time.Duration {
	return time.Duration(float64(limit) * machineSlowness)
}

// share counts the stories of a test and runs one of PGBATON_SHARE, others each day: make test sets it on a slow machine, where
// all of them would take too long. It says which it leaves to make soak.
type share struct{ n int }

func (s *share) run(t *testing.T, name string, f func(*testing.T)) {
	t.Helper()
	s.n++
	if v := os.Getenv("PGBATON_SHARE"); v != "" {
		of, err := strconv.Atoi(v)
		if err != nil || of < 1 {
			t.Fatalf("PGBATON_SHARE=%s: expected a number of at least 1", v)
		}
		if day := int(time.Now().Unix() / 86400); s.n%of != day%of {
			t.Logf("left to make soak today: %s", name)
			return
		}
	}
	t.Run(name, f)
}
