package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/pgbaton/pgbaton/internal/console"
)

type checkCmd struct {
	JSON bool `name:"json" help:"As one JSON object; docs/command.md describes it."`
}

// Help is shown by --help.
func (checkCmd) Help() string {
	return `Looks for misconfigurations: of the cluster, and of PostgreSQL and the system on this
node. Each finding comes with its reason and the command that mends it, for pcs or
crmsh, whichever is installed. Run it on every node.

Exit codes are those of monitoring plug-ins: 0 nothing found, 1 warnings, 2 something
critical, 3 the cluster, or PostgreSQL on this node, could not be looked at, and nothing
critical was found in the rest.`
}

// The exit codes of monitoring plug-ins.
const (
	monitorWarning  = 1
	monitorCritical = 2
	monitorUnknown  = 3
)

func (k checkCmd) Run(c *common) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	review, err := console.ThisNode().Check(ctx, c.Resource)
	if err != nil {
		return &console.Error{Code: monitorUnknown, Text: err.Error(), Err: err}
	}
	if k.JSON {
		if err := writeJSON(os.Stdout, review); err != nil {
			return err
		}
	} else {
		review.Text(os.Stdout, styleOf(os.Stdout))
	}
	if code := monitorCode(review); code != console.Done {
		return quietly(code)
	}
	return nil
}

// monitorCode is the exit code for what was found. What could not be looked at may hide worse than a warning.
func monitorCode(r console.Review) console.ExitCode {
	critical, warnings := r.Count()
	switch {
	case critical > 0:
		return monitorCritical
	case r.Incomplete:
		return monitorUnknown
	case warnings > 0:
		return monitorWarning
	}
	return console.Done
}
