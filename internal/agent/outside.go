package agent

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
	"github.com/pgbaton/pgbaton/internal/view"
)

// pgbaton rejoin runs the agent with the same hidden action that a monitor runs where rewind_conninfo is set, and with
// that parameter in its environment; or with this variable, for the connection of the standby itself.
const asStandby = "PGBATON_REWIND_AS_STANDBY"

// RejoinCommand is the action of the agent that rewinds the instance of this node, with what is to be added to the
// environment of a monitor. conninfo is empty where the primary is to be reached as the standby does, or as rewind_conninfo
// says.
func RejoinCommand(conninfo string) (action string, env []string) {
	if conninfo == "" {
		return rejoinAction, []string{asStandby + "=1"}
	}
	return rejoinAction, []string{"OCF_RESKEY_rewind_conninfo=" + conninfo}
}

// Rejoining tells what a rewind on this node is doing, or why it stopped, "" if there is nothing to tell; and whether it is
// at work.
func Rejoining(resource string) (text string, stopped, busy bool) {
	a := &Agent{inv: ocf.Invocation{Resource: resource}}
	busy = a.rejoining()
	text, _ = a.doing()
	text, stopped = strings.CutPrefix(text, rewindStopped)
	return text, stopped, busy
}

// Outside tells why the instance of this node is kept out, nil if it is not. It changes nothing.
func Outside(ctx context.Context, env ocf.Env) (*view.Outside, error) {
	inv, err := ocf.ParseInvocation([]string{ocf.ActionMonitor}, env)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		inv: inv, env: env, clock: realClock{}, log: &Log{Logger: slog.New(fanout(nil))},
		store: journal.Open(inv.Resource), vol: journal.LoadVolatile(inv.Resource), cluster: newLiveCluster(inv.Resource),
	}
	a.params, a.invalid = ocf.ParseParams(env)
	if err := a.loadState(); err != nil {
		return nil, err
	}
	a.pg = a.instance()
	if a.vol.Out == nil {
		return nil, nil
	}
	o := &view.Outside{
		Verdict: a.vol.Out.Rejoin, Reason: a.vol.Out.Reason, Busy: a.rejoining(), Begun: a.rewinding(),
		Transactions: -1, Keeps: a.params.RewindKeep, StateDir: a.store.Dir, Clone: separate(a.cloneCommands()),
	}
	o.Doing, _ = a.doing()
	if o.Conninfo, _ = postgres.SplitPassword(a.params.RewindConninfo); o.Conninfo == "" {
		var shown bool
		if o.Conninfo, shown = a.conninfoForRewind(); !shown {
			o.Conninfo = "(not shown: primary_conninfo holds a secret, or is not understood; say it with --conninfo)"
		}
	}
	if !o.Begun && !a.vol.Out.Running {
		a.measureLost(ctx, o)
	}
	return o, nil
}

// separate are the single commands of what [commands] has joined.
func separate(text string) []string { return strings.Split(" "+text, " $ ")[1:] }

// measureLost says what this instance has that the cluster has not, as far as that can be told without the primary.
func (a *Agent) measureLost(ctx context.Context, o *view.Outside) {
	ctl, err := pgdisk.ReadControl(a.pg.DataDir)
	if err != nil {
		return
	}
	self, err := a.atRest(ctx, ctl)
	if err != nil {
		return
	}
	o.Ends = self.Position
	line, ok := baton.LineOf(a.state.Claims)
	if !ok {
		return
	}
	if o.Timeline, o.Fork, ok = line.Parts(self); !ok || o.Fork > o.Ends.LSN {
		o.Timeline, o.Fork = 0, 0
		return
	}
	o.Bytes = uint64(o.Ends.LSN - o.Fork)
	from := o.Fork
	if h := self.History; len(h) > 0 {
		from = max(from, h[len(h)-1].Switch)
	}
	args := []string{"-p", a.walDir(), "-t", fmt.Sprint(o.Ends.Timeline), "-s", from.String(), "--rmgr=Transaction"}
	o.Waldump = ocf.JoinArgs(append([]string{filepath.Join(a.pg.BinDir, "pg_waldump")}, args...)...)
	limited, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, _ := postgres.Tool{}.Run(limited, a.pg, "pg_waldump", args...) // it ends with an error where the WAL ends
	if limited.Err() == nil && out != "" {
		o.Transactions = strings.Count(out, " COMMIT ")
	}
}
