package agent

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/postgres"
)

// silentClientLimit is how long an old postmaster may wait with neither archiver nor walsender. A client that connected
// during the shutdown and sends nothing (its packets are lost, perhaps) holds it up for authentication_timeout, 60 s by
// default (PM_WAIT_DEAD_END in src/backend/postmaster/postmaster.c).
const silentClientLimit = 500 * time.Millisecond

// quitLimit is how long SIGQUIT may take. A postmaster does not pass it on to such a client's process
// (SignalSomeChildren leaves out dead_end children), so it is no use there.
const quitLimit = time.Second

// awaitLingering waits for an ended primary's postmaster as long as it archives or feeds a standby. The error says why
// it is not worth waiting for any longer.
func (a *Agent) awaitLingering(ctx context.Context, pm postgres.Process) error {
	busy := a.clock.Now()
	return a.poll(ctx, "the archiver and the walsenders to finish", 10*time.Millisecond, func() (bool, error) {
		if lingers(pm) {
			busy = a.clock.Now()
		} else if a.clock.Now().Sub(busy) > silentClientLimit && pm.Alive() {
			return false, errors.New("the old postmaster only waits for clients that connected and say nothing")
		}
		return !pm.Alive(), nil
	})
}

// seeOff lets a postmaster whose data is safe archive and feed its standbys for half of the time that is left. Then it
// must go.
func (a *Agent) seeOff(ctx context.Context, pm postgres.Process) error {
	some, cancel := a.share(ctx, 0.5)
	err := a.awaitLingering(some, pm)
	cancel()
	if err == nil {
		return nil
	}
	a.log.Warn("ending the old postmaster", "reason", err)
	return a.endLingering(ctx, pm)
}

// lingers reports whether an ended primary still archives or feeds a standby.
func lingers(pm postgres.Process) bool {
	for _, title := range pm.Children() {
		if strings.HasPrefix(title, "archiver") || strings.HasPrefix(title, "walsender") {
			return true
		}
	}
	return false
}

// endLingering ends a postmaster that lingers although its data is safe: SIGQUIT, then SIGKILL for it and its children.
func (a *Agent) endLingering(ctx context.Context, pm postgres.Process) error {
	if err := a.do("immediate-stop", func() error { return pm.Signal(postgres.ImmediateStop) }); err != nil && pm.Alive() {
		a.log.Warn("immediate shutdown", "error", err)
	}
	brief, cancel := context.WithTimeout(ctx, quitLimit)
	defer cancel()
	if a.poll(brief, "the immediate shutdown", 2*time.Millisecond, func() (bool, error) { return !pm.Alive(), nil }) == nil {
		return nil
	}
	_, err := a.killLeftovers(ctx)
	return err
}
