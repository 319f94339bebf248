package agent

import (
	"context"
	"time"

	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/view"
)

// settled is how long nothing must have been written to the journal before the other nodes are told of it: a change of roles
// is over then, and clients do not wait for anything.
const settled = 5 * time.Second

// tell publishes what this node had to do with the last changes of roles, for pgbaton history on other nodes. Its journal
// is flushed first: what others were told of must not be lost with the power here. Nothing depends on it, and where there
// is no news it costs a look at the size of a file.
func (a *Agent) tell(ctx context.Context) {
	if a.unlocked || a.inv.Probe {
		return
	}
	size, at := a.store.JournalEnd()
	told := journal.Told{Size: size, Attrd: a.vol.Attrd}
	if size == 0 || a.vol.Told != nil && *a.vol.Told == told || a.clock.Now().Sub(at) < settled {
		return
	}
	events, err := a.store.LastEvents()
	if err == nil {
		err = a.do("flush-journal", a.store.Flush)
	}
	if err == nil {
		value := view.EncodeHistory(a.inv.Node, a.clock.Now(), journal.Parts(events))
		err = a.do("publish-history", func() error { return a.cluster.Tell(ctx, value) })
	}
	if err != nil {
		a.log.Warn("history not published", "error", err)
		return
	}
	a.vol.Told = &told
	a.saveVolatile()
}
