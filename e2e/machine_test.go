package e2e

import (
	"fmt"
	"os"
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
