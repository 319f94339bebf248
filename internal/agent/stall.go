package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

const (
	// commitLimit is how long a commit of our own may take before it is asked what it waits for.
	commitLimit = 2 * time.Second
	// idleProbe is how often a commit is tried where nobody writes. Not with every monitor: a server to which nothing is
	// written need not checkpoint, nor fill a segment for its archive every archive_timeout.
	idleProbe = 5 * time.Minute
	// survivorsLimit is how long what was killed may take to go where the disk was seen not to answer.
	survivorsLimit = 5 * time.Second
	// stallFresh is how old the last look may be where a server is ended over it.
	stallFresh = 8 * time.Second
)

// commits finds out whether a commit ends on this primary, and says what is wrong if it does not; connErr is why the
// server could not be asked. Only the server's own processes touch the disk for this: what hangs is theirs, and is left behind.
func (a *Agent) commits(ctx context.Context, sess *postgres.Session, connErr error) string {
	if a.unlocked {
		return ""
	}
	var found *baton.Evidence
	slow, asked := "", true
	switch {
	case errors.Is(connErr, postgres.ErrStarting): // it recovers from a crash
	case connErr != nil:
		found, asked = a.inKernel(), false
	default:
		found, slow, asked = a.tryCommit(ctx, sess)
	}
	if found == nil && (a.vol.Stall == nil || !asked) {
		// Who could not be asked has not shown that it goes on: clients that get no answer come back until all connections
		// are taken, by those whose commits hang. What was seen before stays, for as long as [baton.Stall.Add] bridges.
		return slow
	}
	if found == nil && a.vol.Stall.Last.After(a.vol.Stall.Since) {
		a.log.Info("commits end again", "were", a.vol.Stall)
	}
	a.vol.Stall = a.vol.Stall.Add(found)
	a.saveVolatile()
	if a.vol.Stall == nil || !a.vol.Stall.Last.After(a.vol.Stall.Since) {
		return slow // a process was seen to wait for its disk, as processes do
	}
	return a.vol.Stall.String()
}

// tryCommit commits, if anybody waits for a commit or nobody has shown for a while that it can be done. As long as a commit
// that it tried before hangs, it looks at that one. It reports whether the server could be asked.
func (a *Agent) tryCommit(ctx context.Context, sess *postgres.Session) (found *baton.Evidence, slow string, asked bool) {
	before := 0
	if a.vol.Stall != nil {
		before = a.vol.Stall.PID
	}
	c, err := sess.Commits(ctx, before)
	if err != nil {
		return a.inKernel(), "", false
	}
	if before != 0 {
		if e := a.evidence(c, before); e != nil {
			return e, "", true
		}
		if e := a.inKernel(); e != nil {
			return e, "", true
		}
	}
	now := a.clock.Now()
	idle := c.Waiting == 0
	if idle && a.age(a.vol.Probed) < idleProbe {
		return nil, "", true
	}
	limited, cancel := context.WithTimeout(ctx, commitLimit)
	defer cancel()
	pid := sess.PID()
	err = a.do("probe-write", func() error { return sess.Commit(limited) })
	if err == nil {
		if idle {
			a.vol.Probed = now
			a.saveVolatile()
		}
		return nil, "", true
	}
	if limited.Err() == nil {
		return nil, "a commit fails: " + err.Error(), true
	}
	// The session is of no use any more; another one says what it waits for.
	brief, cancel2 := context.WithTimeout(ctx, commitLimit)
	defer cancel2()
	other, err := a.pg.Connect(brief)
	if err != nil {
		return a.inKernel(), "a commit takes longer than " + commitLimit.String(), false
	}
	defer other.Close()
	if c, err = other.Commits(brief, pid); err != nil {
		return a.inKernel(), "a commit takes longer than " + commitLimit.String(), false
	}
	if e := a.evidence(c, pid); e != nil {
		e.For = commitLimit
		return e, "", true
	}
	return nil, fmt.Sprintf("a commit takes longer than %s, and waits for %s", commitLimit, orNothing(c.Wait)), true
}

func orNothing(wait string) string {
	if wait == "" {
		return "nothing in particular (is the machine overloaded?)"
	}
	return wait
}

// evidence is that a backend waits for WAL to be written, nil if it does not.
func (a *Agent) evidence(c postgres.Commits, pid int) *baton.Evidence {
	if !c.ForWAL {
		return nil
	}
	return &baton.Evidence{At: a.clock.Now(), PID: pid, Flushed: c.Flushed, What: fmt.Sprintf("pid %d waits for %s, WAL is on disk up to %s", pid, c.Wait, c.Flushed)}
}

// inKernel finds a process of the server that waits in the kernel for a WAL file, uninterruptibly: for a server that
// cannot be asked. Such a wait is short on a disk that answers.
func (a *Agent) inKernel() *baton.Evidence {
	list, err := a.pg.Leftovers()
	if err != nil {
		return nil
	}
	wal, err := filepath.EvalSymlinks(a.walDir())
	if err != nil {
		wal = filepath.Join(a.pg.RealDataDir(), "pg_wal")
	}
	if a.vol.Stall != nil { // the one from before first: it has waited longest
		slices.SortStableFunc(list, func(p, q postgres.Process) int {
			return boolInt(q.PID == a.vol.Stall.PID) - boolInt(p.PID == a.vol.Stall.PID)
		})
	}
	for _, p := range list {
		path, switches, ok := p.WaitsFor()
		if ok && strings.HasPrefix(path, wal+"/") {
			return &baton.Evidence{At: a.clock.Now(), PID: p.PID, Switches: switches, What: fmt.Sprintf("pid %d waits in the kernel for %s", p.PID, path)}
		}
	}
	return nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// endStalled gives the role of a primary away on which no commit ends; its demote kills the server. What cannot be killed
// fails the demote and then the stop, and Pacemaker has the node fenced before it promotes anybody.
//
// What such a server had written and not flushed, no standby has: the role comes back for it, but not a second time in a
// row. Nobody was told that any of it was committed, but for who uses synchronous_commit=off.
func (a *Agent) endStalled(ctx context.Context, last *time.Time) error {
	stalled := func() bool { return a.vol.Stall.Hung() && a.age(a.vol.Stall.Last) < stallFresh }
	if a.vol = journal.LoadVolatile(a.inv.Resource); !stalled() {
		return nil
	}
	if err := a.loadState(); err != nil || a.leaving() {
		return err
	}
	noticed := a.clock.Now()
	release, err := a.hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	if !stalled() || a.leaving() {
		return nil
	}
	locked, cancel := context.WithTimeout(ctx, lockedFor)
	defer cancel()
	held, err := a.cluster.Held(locked)
	if err != nil || held != pacemaker.RolePromoted {
		return err
	}
	again := noticed.Sub(*last) < revivalWindow
	*last = noticed
	return a.leaveRole(ctx, noticed, a.vol.Stall.String(), again, release)
}

// leaving reports whether this node has given the role of its primary away already.
func (a *Agent) leaving() bool { return a.state.Refusal != nil && a.state.Refusal.Crashed }

// hung reports whether the server was given up because no commit ends: it need not be asked to stop.
func (a *Agent) hung() bool { return a.vol.Stall.Hung() }
