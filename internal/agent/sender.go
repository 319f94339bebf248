package agent

import (
	"context"
	"strings"
	"syscall"

	"github.com/pgbaton/pgbaton/internal/postgres"
)

// endStranded ends the WAL senders of a standby whose receivers were cut off when the virtual IP left this node.
//
// An old primary starts as a standby while the address is still there, and the other standbys, which connect through it, are
// its own for a moment. Then the address goes. At the end of the old timeline such a WAL sender has sent all that it has and
// waits for the receiver's goodbye in a loop without a pause (WalSndLoop in src/backend/replication/walsender.c): a processor
// each, until wal_sender_timeout, a minute by default.
func (a *Agent) endStranded(ctx context.Context, pm postgres.Postmaster) {
	if !a.pg.HasStandbySignal() {
		return // a primary loses the address only together with its role
	}
	for p, title := range pm.Children() {
		if ctx.Err() != nil || !strings.Contains(title, "walsender") {
			continue
		}
		local, stranded := p.Stranded()
		if !stranded {
			continue
		}
		a.log.Info("a WAL sender is cut off from its receiver: ending it", "pid", p.PID, "connected_by", local, "reason", "this node has lost that address")
		if err := a.do("end-sender", func() error { return p.Signal(syscall.SIGTERM) }); err != nil {
			a.log.Warn("WAL sender", "error", err)
		}
	}
}
