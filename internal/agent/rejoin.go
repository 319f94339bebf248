package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// rejoinAction is a hidden action: it stops a server that was found to have diverged while it ran, and rewinds it where
// rewind_conninfo allows it. It runs detached, one a resource.
const rejoinAction = "rejoin"

// retryRejoin is how long a rewind that did not come about waits for somebody to mend what was missing.
const retryRejoin = 20 * time.Second

// rewindStopped is how what is shown begins when a rewind did not come about.
const rewindStopped = "the rewind stopped: "

// rejoin is the detached part.
func (a *Agent) rejoin(ctx context.Context) error {
	lock, err := a.rejoinLock()
	if err != nil || lock == nil {
		return err // another one is at it
	}
	defer lock.Close()
	if err := a.stopDiverged(ctx); err != nil || a.vol.Out == nil {
		return err
	}
	if a.params.RewindConninfo == "" && a.env[asStandby] != "" {
		conninfo, shown := a.conninfoForRewind()
		if !shown {
			a.say(rewindStopped + "primary_conninfo holds a secret other than a password, or is not understood: pgbaton rejoin --conninfo, or rewind_conninfo, say how to reach the primary")
			return nil
		}
		a.params.RewindConninfo = conninfo
	}
	if a.vol.Out.Rejoin != baton.Rewind || a.params.RewindConninfo == "" {
		return nil
	}
	if err := a.rewind(ctx, lock); err != nil {
		a.say(rewindStopped + err.Error())
		a.log.Error("rewind", "error", err)
		return nil
	}
	a.say("")
	return nil
}

// stopDiverged stops a server that was found to have diverged while it ran. Afterwards vol says whether the instance is
// still to be kept out.
func (a *Agent) stopDiverged(ctx context.Context) error {
	release, err := a.hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	if a.vol.Out == nil || !a.vol.Out.Running {
		return nil
	}
	f, err := a.look()
	if err != nil {
		return err
	}
	if f.role == primary {
		return errors.New("the server runs as a primary: Pacemaker demotes it")
	}
	if f.postmaster.PID != 0 {
		limited, cancel := context.WithTimeout(ctx, 5*time.Minute)
		defer cancel()
		if f, err = a.endPrimary(limited, f); err != nil {
			return err
		}
		if err := a.awaitLingering(limited, f.postmaster.Process); err != nil {
			if err := a.endLingering(limited, f.postmaster.Process); err != nil {
				return err
			}
		}
	}
	ctl, err := pgdisk.ReadControl(a.pg.DataDir)
	if err != nil {
		return err
	}
	a.vol.Out.Running, a.vol.Out.Basis = false, a.basis(ctl)
	a.saveVolatile()
	return nil
}

// mayRewind reports whether a rewind is wanted and was not tried just now.
func (a *Agent) mayRewind() bool {
	if a.vol.Out.Rejoin != baton.Rewind || a.params.RewindConninfo == "" {
		return false
	}
	text, at := a.doing()
	return !strings.HasPrefix(text, rewindStopped) || a.age(at) > retryRejoin
}

// rewinding reports whether a rewind is under way or was cut short: the data directory must not be started.
func (a *Agent) rewinding() bool {
	r, err := a.store.LoadRewind()
	return r != nil || err != nil
}

// The lock of the detached part is also held by the programs that it runs, so that it tells whether any of them is still
// at work if the agent itself was killed. It holds the number of their process group.
func (a *Agent) rejoinLockPath() string {
	return filepath.Join(journal.RunDir(a.inv.Resource), "rejoin.lock")
}

func (a *Agent) rejoinLock() (*os.File, error) {
	f, err := os.OpenFile(a.rejoinLockPath(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if err == syscall.EWOULDBLOCK {
			return nil, nil
		}
		return nil, err
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(syscall.Getpgrp())), 0)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// rejoining reports whether the detached part, or a program of it, is at work. What a restore_command has left behind in a group of
// its own may hold the lock, too, and has nothing to do with the data directory.
func (a *Agent) rejoining() bool {
	f, err := os.OpenFile(a.rejoinLockPath(), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != syscall.EWOULDBLOCK {
		return false
	}
	group := a.rejoinGroup()
	return group == 0 || syscall.Kill(-group, 0) != syscall.ESRCH
}

// rejoinGroup is the process group of the detached part, 0 if it has not said so yet.
func (a *Agent) rejoinGroup() int {
	data, _ := os.ReadFile(a.rejoinLockPath())
	group, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || group <= 1 {
		return 0
	}
	return group
}

// endRejoin ends the detached part and its programs: after a stop nothing may touch the data directory. A rewind goes on
// from its marker later.
func (a *Agent) endRejoin(ctx context.Context) error {
	if !a.rejoining() {
		return nil
	}
	return a.poll(ctx, "the rewind to end", 10*time.Millisecond, func() (bool, error) {
		// As long as somebody of the group holds the lock, its number is not given to another.
		if group := a.rejoinGroup(); group != 0 && group != syscall.Getpgrp() && a.rejoining() {
			a.do("end-rejoin", func() error { return syscall.Kill(-group, syscall.SIGKILL) })
		}
		return !a.rejoining(), nil
	})
}

// What the detached part is doing, or why it stopped, for the monitor to show.
func (a *Agent) doingPath() string {
	return filepath.Join(journal.RunDir(a.inv.Resource), "rejoin.txt")
}

func (a *Agent) say(text string) {
	if text == "" {
		os.Remove(a.doingPath())
		return
	}
	a.log.Info("rejoin", "doing", text)
	if err := os.WriteFile(a.doingPath(), []byte(text), 0o600); err != nil {
		a.log.Warn("rejoin", "error", err)
	}
}

func (a *Agent) doing() (string, time.Time) {
	data, err := os.ReadFile(a.doingPath())
	if err != nil {
		return "", time.Time{}
	}
	info, err := os.Stat(a.doingPath())
	if err != nil {
		return "", time.Time{}
	}
	return string(data), info.ModTime()
}
