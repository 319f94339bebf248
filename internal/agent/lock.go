package agent

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/ocf"
)

// lock keeps actions and the aftercare of one resource on this node from starting or stopping the instance at the same
// time. Pacemaker runs one action at a time; an aftercare is no action.
func (a *Agent) lock(ctx context.Context) error {
	switch a.inv.Action {
	case "validate-all", "reload-agent", "reload":
		return nil
	}
	if slices.Contains(detachedActions, a.inv.Action) {
		return nil
	}
	release, err := a.flock(ctx, "action.lock")
	if err != nil {
		return ocf.Errorf(ocf.ErrGeneric, "%w", err)
	}
	a.release = release
	a.reload() // Run has said what is wrong with it
	return nil
}

// hold takes that lock for what runs beside the actions, and reads again what they may have changed meanwhile. To release
// it more than once does no harm.
func (a *Agent) hold(ctx context.Context) (release func(), err error) {
	if release, err = a.flock(ctx, "action.lock"); err != nil {
		return nil, err
	}
	if err := a.reload(); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

func (a *Agent) flock(ctx context.Context, name string) (func(), error) {
	dir := journal.RunDir(a.inv.Resource)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	wait, cancel := a.share(ctx, 0.3)
	defer cancel()
	err = a.poll(wait, "the lock "+f.Name(), 10*time.Millisecond, func() (bool, error) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == syscall.EWOULDBLOCK {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
