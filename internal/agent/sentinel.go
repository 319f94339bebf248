package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// sentinelAction is a hidden action: it watches the postmaster and notices its death within milliseconds, where a
// monitor would within its interval. It decides nothing that the monitor would not have led to; the monitor is the safety
// net, and starts it again when it is gone.
const sentinelAction = "sentinel"

const (
	// sentinelIdle is how long a sentinel stays without a server to watch.
	sentinelIdle = 10 * time.Second
	// crashPatience is how long a crashed primary leaves the role to others before it takes it back.
	crashPatience = 15 * time.Second
	// maxRevivals bounds how often a sentinel starts a standby again in revivalWindow; beyond it a monitor reports the
	// failure and Pacemaker counts it.
	maxRevivals   = 3
	revivalWindow = 10 * time.Minute
	// lockedFor bounds what is done under the lock of actions.
	lockedFor = 20 * time.Second
)

// ensureSentinel starts the sentinel if none runs.
func (a *Agent) ensureSentinel() {
	path := filepath.Join(journal.RunDir(a.inv.Resource), "sentinel.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return // it holds the lock as long as it lives
	}
	a.spawnDetached(sentinelAction)
}

// sentinel watches one incarnation of the server after the other.
func (a *Agent) sentinel(ctx context.Context) error {
	brief, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	release, err := a.flock(brief, "sentinel.lock")
	cancel()
	if err != nil {
		return nil
	}
	defer release()
	self := executable()
	idle := a.clock.Now()
	var revivals []time.Time
	for ctx.Err() == nil {
		pm, err := a.pg.Postmaster()
		if err != nil {
			if a.clock.Now().Sub(idle) > sentinelIdle {
				return nil
			}
			a.clock.Sleep(ctx, 50*time.Millisecond)
			continue
		}
		var receiver connecting
		for !watch(pm.Process, time.Second) {
			a.unstick(ctx, pm, &receiver)
			if executable() != self {
				return nil // the agent was replaced: the next monitor starts the new one's sentinel
			}
		}
		idle = a.clock.Now()
		if err := a.mourn(ctx, pm, &revivals); err != nil {
			a.log.Error("sentinel", "error", err)
		}
	}
	return nil
}

// mourn acts on a death that no action of ours brought about.
func (a *Agent) mourn(ctx context.Context, pm postgres.Postmaster, revivals *[]time.Time) error {
	noticed := a.clock.Now()
	release, err := a.flock(ctx, "action.lock")
	if err != nil {
		return err
	}
	defer func() { release() }()
	// Actions wait for the lock: a command of Pacemaker that hangs must not hold them up for ever.
	locked, cancel := context.WithTimeout(ctx, lockedFor)
	defer cancel()
	if err := a.reload(); err != nil {
		return err
	}
	if _, err := a.pg.Postmaster(); !errors.Is(err, postgres.ErrNotRunning) {
		return nil // somebody has started it again
	}
	ctl, err := pgdisk.ReadControl(a.pg.DataDir)
	if err != nil {
		return err
	}
	crashedPrimary := ctl.State == pgdisk.InProduction && !a.pg.HasStandbySignal()
	crashedStandby := ctl.State == pgdisk.InArchiveRecovery
	if a.vol.Parked || a.vol.Stopped || (!crashedPrimary && !crashedStandby) {
		return nil // a shutdown, by us or by a person
	}
	if managed, err := a.cluster.Managed(locked); err != nil || !managed {
		return err
	}
	a.log.Warn("the postmaster died", "pid", pm.PID, "pg_control", ctl.State)
	if crashedStandby {
		return a.revive(locked, revivals)
	}
	// Everybody else may have everything: a mere score moves the role, without a failed action. demote leaves the crash
	// note; a standby without proof against it refuses, and the role comes back here.
	a.state.Refusal = &baton.Refusal{Reason: "its postmaster died", Crashed: true}
	if err := a.save("save-refusal"); err != nil {
		return err
	}
	a.vol.Score, a.vol.Refused = "", noticed
	if err := a.assertScore(locked, 0, true); err != nil {
		return err
	}
	release()
	release = func() {}
	return a.takeBack(ctx)
}

// revive starts a crashed standby again. Nobody else is concerned.
func (a *Agent) revive(ctx context.Context, revivals *[]time.Time) error {
	now := a.clock.Now()
	recent := (*revivals)[:0]
	for _, t := range *revivals {
		if now.Sub(t) < revivalWindow {
			recent = append(recent, t)
		}
	}
	*revivals = append(recent, now)
	if len(*revivals) > maxRevivals {
		return errors.New("the standby keeps dying: leaving it to the monitor")
	}
	return a.startAsStandby(ctx)
}

// takeBack waits until the role has found a new owner, and claims it back if everybody else refused.
func (a *Agent) takeBack(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, crashPatience)
	defer cancel()
	lift := false
	err := a.poll(limited, "another node to take over", 100*time.Millisecond, func() (bool, error) {
		st, err := a.store.Load()
		if err != nil || st.Refusal == nil || !st.Refusal.Crashed {
			return true, err // somebody has settled it
		}
		scores, err := a.cluster.Scores(limited)
		if err != nil {
			return false, err
		}
		others := false
		for node, s := range scores {
			others = others || (node != a.inv.Node && s != pacemaker.NegInfinity)
		}
		lift = !others
		return lift, nil
	})
	if err == nil && !lift {
		return nil
	}
	if taken, err := a.roleTaken(ctx); err != nil || taken {
		return err
	}
	a.log.Warn("nobody else can take over: taking the role back", "waited_for", err)
	release, err := a.flock(ctx, "action.lock")
	if err != nil {
		return err
	}
	defer release()
	if err := a.reload(); err != nil {
		return err
	}
	a.state.Refusal = nil
	if err := a.save("lift-refusal"); err != nil {
		return err
	}
	locked, cancel := context.WithTimeout(ctx, lockedFor)
	defer cancel()
	return a.assertScore(locked, baton.ScorePrimary, false)
}

// roleTaken reports whether somebody else has begun a newer timeline than this node last did, or is about to: an attempt
// under way may take longer than this node's patience, and is settled by its outcome.
func (a *Agent) roleTaken(ctx context.Context) (bool, error) {
	list, err := a.others(ctx)
	if err != nil {
		return false, err
	}
	own := uint64(0)
	taken := false
	for _, c := range baton.Gather(list, "").Claims { // oldest first
		switch {
		case c.Node == a.inv.Node && c.State == baton.Effective:
			own, taken = c.Seq, false
		case c.Node != a.inv.Node && c.Open() && c.Seq > own:
			taken = true
		}
	}
	return taken, nil
}

// watch returns true when the process has died, false after the limit. It waits on a pidfd; a kernel without them is
// asked again and again.
func watch(p postgres.Process, limit time.Duration) bool {
	const sysPidfdOpen = 434
	fd, _, errno := syscall.Syscall(sysPidfdOpen, uintptr(p.PID), 0, 0)
	if errno != 0 {
		for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if !p.Alive() {
				return true
			}
		}
		return !p.Alive()
	}
	defer syscall.Close(int(fd))
	if !p.Alive() {
		return true // the pid was taken over before the pidfd was opened
	}
	pollfd := struct {
		fd      int32
		events  int16
		revents int16
	}{fd: int32(fd), events: 1}
	ts := syscall.NsecToTimespec(int64(limit))
	syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&pollfd)), 1, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	runtime.KeepAlive(&pollfd)
	return !p.Alive()
}

// executable identifies the agent's binary on disk: another inode is another agent.
func executable() uint64 {
	path, err := os.Executable()
	if err != nil {
		return 0
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Sys().(*syscall.Stat_t).Ino
}
