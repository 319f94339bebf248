package agent

import (
	"reflect"

	"github.com/pgbaton/pgbaton/internal/journal"
)

// takeOn makes an instance this node's own that ran before this agent was asked for it: the cluster was set up around it,
// or another agent ran it. What start would have written down of it is written down now, and nothing of the server is
// touched.
func (a *Agent) takeOn(f facts) error {
	if a.unlocked {
		return nil
	}
	if a.vol.Parked || a.vol.Stopped {
		// This agent stopped it, and another one, or a person, has started it since: its next end would be taken for ours.
		a.vol.Parked, a.vol.Stopped = false, false
		a.saveVolatile()
	}
	if a.state.Instance != nil && a.state.SystemID == f.control.SystemIdentifier {
		return nil
	}
	a.identify(f.control)
	a.recordInstance()
	if err := a.save("take-on"); err != nil {
		return err
	}
	a.vol.Asserted = 0
	a.saveVolatile()
	a.log.Info("took on a server that runs already", "pid", f.postmaster.PID, "pg_control", f.control.State)
	return nil
}

// recordInstance notes where the instance is, and reports whether that is new.
func (a *Agent) recordInstance() bool {
	o := a.pg.Owner
	rec := &journal.InstanceRecord{DataDir: a.pg.RealDataDir(), Owner: o.Name, UID: o.UID, GID: o.GID, Groups: o.Groups, Home: o.Home}
	if a.state.Instance != nil && reflect.DeepEqual(a.state.Instance, rec) {
		return false
	}
	a.state.Instance = rec
	return true
}
