// Command pgbaton is for the people who run the cluster.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/pgbaton/pgbaton/internal/console"
)

// version is set by the build.
var version = "0.1.0"

const description = `Looks at, and hands over, a PostgreSQL cluster that the resource agent
ocf:pgbaton:postgresql runs under Pacemaker. Run it on any node of the cluster, as
root.

  pgbaton status                   who is what, what is wrong, who could take over
  pgbaton switchover --dry-run     could the role be handed over now, and to whom?
  pgbaton switchover --to n2       hand it to n2
  pgbaton history                  what happened to the role, and why

Exit codes: 0 done or healthy, 1 something needs a person, 2 wrong usage, 3 refused,
4 rolled back, 5 the end is not known, 6 Pacemaker does not answer. With 2, 3 and 6
nothing was changed.`

// common are the flags of every command.
type common struct {
	Resource string `short:"r" env:"PGBATON_RESOURCE" help:"The resource, if there are several: the name of the primitive or of its clone."`
}

type cli struct {
	common
	Check      checkCmd      `cmd:"" help:"Look for misconfigurations, and say how to mend them."`
	Completion completionCmd `cmd:"" help:"Write the completion script for a shell."`
	History    historyCmd    `cmd:"" help:"Show the last changes of roles: what, why, how long, what was lost."`
	Pause      pauseCmd      `cmd:"" help:"Let Pacemaker leave PostgreSQL alone, for maintenance."`
	Promote    promoteCmd    `cmd:"" help:"Promote a node although something is lost, when the agents promote nobody."`
	Rejoin     rejoinCmd     `cmd:"" help:"Let this node back in, whose history is not the cluster's."`
	Resume     resumeCmd     `cmd:"" help:"End a pause."`
	Setup      setupCmd      `cmd:"" help:"Put a running PostgreSQL under pgbaton's care, or give it back."`
	Status     statusCmd     `cmd:"" help:"Show who is what, what is wrong, and whether a handover is possible."`
	Switchover switchoverCmd `cmd:"" help:"Hand the primary role to another node."`
	Version    versionCmd    `cmd:"" help:"Show the version."`
}

type versionCmd struct{}

func (versionCmd) Run() error {
	fmt.Println("pgbaton", version)
	return nil
}

func main() {
	// A lost terminal ends nobody's handover in the middle: the command goes on without one.
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	os.Exit(int(run(os.Args[1:])))
}

func run(args []string) console.ExitCode {
	var c cli
	k, err := kong.New(
		&c, kong.Name("pgbaton"), kong.Description(description),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 80}), kong.Bind(&c.common),
	)
	if err != nil {
		panic(err)
	}
	ctx, err := k.Parse(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "pgbaton:", err)
		fmt.Fprintln(os.Stderr, "pgbaton --help shows what there is")
		return console.Usage
	}
	err = ctx.Run()
	var quiet quietly
	if errors.As(err, &quiet) {
		return console.ExitCode(quiet) // all has been said
	}
	if err != nil {
		console.Complain(os.Stderr, err, isTerminal(os.Stderr))
	}
	return console.CodeOf(err)
}

// quietly is an exit code for which nothing more is to be said.
type quietly console.ExitCode

func (quietly) Error() string { return "" }
