package agent

import (
	"context"
	"encoding/json"
	"math/bits"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/postgres"
	"github.com/pgbaton/pgbaton/internal/view"
)

// viewFor is how long a view stands that only differs in positions: to publish costs more than all the rest of a monitor.
const viewFor = 25 * time.Second

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
	now, outline := a.clock.Now(), outlineOf(o)
	if s := a.vol.Shown; s != nil && s.Outline == outline && s.Attrd == a.vol.Attrd && now.Sub(s.At) < viewFor {
		return
	}
	value, err := view.Encode(a.inv.Node, now, o)
	if err == nil {
		err = a.do("publish-view", func() error { return a.cluster.Show(ctx, value) })
	}
	if err != nil {
		a.log.Warn("view", "error", err)
		return
	}
	a.vol.Shown = &journal.Shown{At: now, Outline: outline, Attrd: a.vol.Attrd}
	a.saveVolatile()
}

// outlineOf is a view without what changes all the time: positions, and numbers but for their magnitude.
func outlineOf(o postgres.Overview) string {
	o.LSN, o.Received = "", ""
	o.Behind, o.OldestX = float64(magnitude(int64(o.Behind/10))), float64(magnitude(int64(o.OldestX/60)))
	o.Unarch, o.Logical = int(magnitude(int64(o.Unarch))), magnitude(o.Logical>>20)
	o.Standbys = slices.Clone(o.Standbys)
	for i := range o.Standbys {
		s := &o.Standbys[i]
		s.Unsent, s.Unflush, s.Unreplay = magnitude(s.Unsent>>20), magnitude(s.Unflush>>20), magnitude(s.Unreplay>>20)
		s.Behind = float64(magnitude(int64(s.Behind / 10)))
	}
	b, _ := json.Marshal(o) // of numbers and strings: it cannot fail
	return string(b)
}

// magnitude is the number of binary digits, -1 for what is not known.
func magnitude(n int64) int64 {
	if n < 0 {
		return -1
	}
	return int64(bits.Len64(uint64(n)))
}
