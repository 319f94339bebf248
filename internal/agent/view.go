package agent

import (
	"context"

	"github.com/pgbaton/pgbaton/internal/postgres"
	"github.com/pgbaton/pgbaton/internal/view"
)

// show publishes how this instance stands, for the operator's command on other nodes. It is the last that a monitor does
// and nothing depends on it.
func (a *Agent) show(ctx context.Context, sess *postgres.Session) {
	if a.unlocked || a.inv.Probe {
		return
	}
	o, err := sess.Overview(ctx)
	if err != nil {
		return // the monitor itself has said what is wrong
	}
	value, err := view.Encode(a.inv.Node, a.clock.Now(), o)
	if err == nil {
		err = a.do("publish-view", func() error { return a.cluster.Show(ctx, value) })
	}
	if err != nil {
		a.log.Warn("view", "error", err)
	}
}
