package agent

import (
	"context"
	"time"

	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// heldFor is how long replay must stand still before a promotion that waits for it ends the sessions that may hold it up.
const heldFor = time.Second

// hold watches for sessions that hold up the replay of a server that is to be promoted. A query that needs rows which replay is
// about to remove keeps it waiting for max_standby_streaming_delay, for ever where that is -1, and in that wait a server does not
// even notice that it was told to promote (ResolveRecoveryConflictWithVirtualXIDs in src/backend/storage/ipc/standby.c).
type hold struct {
	agent *Agent
	sess  *postgres.Session
	at    pgdisk.LSN
	since time.Time
}

// noDelay takes recovery_min_apply_delay out of force, as a promotion does: what it would have replayed at once must not be waited
// for.
func (a *Agent) noDelay() error {
	if delay := a.pg.Settings()["recovery_min_apply_delay"]; a.undelayed || delay == "" || delay == "0" {
		return nil
	}
	f, err := a.look()
	if err != nil {
		return err
	}
	a.undelayed = true
	return a.do("override", func() error {
		if _, err := a.override(standbySetting, [2]string{"recovery_min_apply_delay", "0"}); err != nil {
			return err
		}
		return f.postmaster.Signal(postgres.Reload)
	})
}

// end lets replay go on that has stood still for a while: that is paused, as a promotion does, and else by the end of all sessions
// in a transaction.
func (h *hold) end(ctx context.Context, replayed pgdisk.LSN) error {
	now := h.agent.clock.Now()
	if replayed != h.at || h.since.IsZero() {
		h.at, h.since = replayed, now
		return nil
	}
	if now.Sub(h.since) < heldFor {
		return nil
	}
	h.since = now
	if was, err := h.sess.ResumeReplay(ctx); err != nil || was {
		h.agent.log.Warn("replay was paused, and goes on for the promotion", "replayed", replayed, "error", err)
		return err
	}
	return h.agent.do("end-queries", func() error {
		n, err := h.sess.EndTransactions(ctx)
		if n > 0 {
			h.agent.log.Warn("ended sessions in a transaction: they may hold up the replay of a server that is to be primary", "sessions", n, "replayed", replayed)
		}
		return err
	})
}
