package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/pgbaton/pgbaton/internal/agent"
	"github.com/pgbaton/pgbaton/internal/console"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/postgres"
	"github.com/pgbaton/pgbaton/internal/view"
)

type rejoinCmd struct {
	Conninfo string `placeholder:"STRING" help:"Connection string for the primary. Default: rewind_conninfo, or as the standby connects."`
	DryRun   bool   `short:"n" help:"Show, and change nothing."`
	Yes      bool   `short:"y" help:"Do not ask."`
}

// Help is shown by --help.
func (rejoinCmd) Help() string {
	return `For a node that is kept out because its history is not the cluster's: shows why, what it
has that the cluster has not, and what will be done; asks; has its agent rewind it now,
although rewind_conninfo may not be set; and waits until it streams. What is thrown away
is kept first, within rewind_keep. Where pg_rewind is no help it shows the commands that
make the instance anew.

The user of the connection string needs what README.md lists under Coming back; its
password belongs into the .pgpass of the server's user.

  pgbaton rejoin
  pgbaton rejoin --yes --conninfo 'host=10.77.0.10 user=rewind dbname=postgres'

Exit codes: 0 it streams, or needs nothing; 1 the rewind stopped, and why; 3 refused: it
must be made anew, there is no primary, not confirmed; 5 how it ended is not known.`
}

func (r rejoinCmd) Run(c *common) error {
	if os.Geteuid() != 0 {
		return &console.Error{Code: console.Refused, Text: "nothing was changed: run this as root, it works on the server's files"}
	}
	if r.Conninfo != "" {
		if err := ocf.CheckConninfo(r.Conninfo); err != nil {
			return &console.Error{Code: console.Usage, Text: "nothing was changed: --conninfo " + err.Error(), Err: err}
		}
	}
	w := console.ThisNode()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	re, err := w.PrepareRejoin(ctx, c.Resource, func(re *console.Rejoin) (*view.Outside, error) {
		return agent.Outside(ctx, ocf.EnvFromOS(agentEnv(re)))
	})
	if err != nil {
		return err
	}
	if re.Needs == nil {
		fmt.Printf("%s needs nothing: %s. Nothing was changed.\n", re.Node, re.Why)
		return nil
	}
	conninfo := re.Needs.Conninfo
	if r.Conninfo != "" {
		conninfo, _ = postgres.SplitPassword(r.Conninfo)
	}
	re.Text(os.Stdout, conninfo)
	if err := re.Possible(); err != nil || r.DryRun {
		return err
	}
	if !re.Needs.Busy && !r.Yes {
		if !isYes(ask(fmt.Sprintf("\nRewind %s? [y/N] ", re.Node))) {
			return &console.Error{Code: console.Refused, Text: "not confirmed, nothing was changed"}
		}
	}
	fmt.Println()
	return r.run(w, re)
}

var notFollowed = &console.Error{Code: console.Unknown, Text: "not followed any more; the rewind goes on: pgbaton status"}

// run has the agent do it, and shows what it does. The agent is in a session of its own: neither Ctrl-C nor a lost terminal
// ends a rewind in the middle, and a stop of the resource does.
func (r rejoinCmd) run(w console.World, re *console.Rejoin) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	action, env := agent.RejoinCommand(r.Conninfo)
	root := os.Getenv("OCF_ROOT")
	if root == "" {
		root = "/usr/lib/ocf"
	}
	cmd := exec.Command(filepath.Join(root, "resource.d/pgbaton/postgresql"), action)
	cmd.Env, cmd.Dir = append(agentEnv(re), env...), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return &console.Error{Code: console.Refused, Text: fmt.Sprintf("nothing was changed: the agent cannot be run: %v", err), Err: err}
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // what it says stands where a monitor finds it, too
	}()
	began, said := time.Now(), ""
	text, stopped, busy := "", false, true
	for running := true; running || busy; { // busy without it: another rewind was under way
		select {
		case <-ended:
			running = false
			time.Sleep(50 * time.Millisecond)
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return notFollowed
		}
		if text, stopped, busy = agent.Rejoining(re.Resource); text != said && text != "" && !stopped {
			said = text
			fmt.Printf("%7.1f  %s\n", time.Since(began).Seconds(), text)
		}
	}
	out := journal.LoadVolatile(re.Resource).Out
	switch {
	case out == nil:
	case stopped:
		return &console.Error{Code: console.Attention, Text: "the rewind stopped: " + text}
	default:
		return &console.Error{Code: console.Unknown, Text: fmt.Sprintf("the agent has ended, and %s is still kept out: %s; see /var/log/pgbaton/%s.log", re.Node, out.Reason, re.Resource)}
	}
	if err := w.Joined(ctx, re.Params, time.Minute); ctx.Err() != nil {
		return notFollowed
	} else if err != nil {
		return err
	}
	fmt.Printf("%7.1f  %s streams; its next monitor lets it be promoted\n", time.Since(began).Seconds(), re.Node)
	fmt.Printf("\nPacemaker goes on listing its monitor as failed, without counting it, until:\n  crm_resource --cleanup -r %s -N %s\n", re.Resource, re.Node)
	if command := w.ShowLost(re.Resource); command != "" {
		fmt.Printf("\nWhat was taken away is kept. To see its transactions:\n  %s\n", command)
	}
	return nil
}

// agentEnv is the environment in which Pacemaker would run a monitor of this node, as far as the agent needs it.
func agentEnv(re *console.Rejoin) []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "OCF_RESOURCE_INSTANCE=" + re.Resource, "OCF_RESKEY_CRM_meta_on_node=" + re.Node}
	for k, v := range re.Params {
		env = append(env, "OCF_RESKEY_"+k+"="+v)
	}
	return env
}
