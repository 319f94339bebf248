// Command pgbaton-lab runs a real PostgreSQL cluster under Pacemaker in namespaces on
// this machine, to try, test and measure.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/pgbaton/pgbaton/internal/lab"
)

const description = `A real PostgreSQL cluster on this machine: Corosync, Pacemaker, fencing, streaming
replication and a virtual IP, every node in namespaces of its own. Nothing of the
host is changed. Needs root.

  pgbaton-lab up                      three nodes with Debian's agent pgsqlms
  pgbaton-lab up --agent pgbaton      the same with pgbaton's
  pgbaton-lab status                  who is primary, who streams
  pgbaton-lab exec n2 -- crm_mon -1   any command inside a node
  pgbaton-lab load -d 30s             write through the virtual IP, then count
  pgbaton-lab power off n1            pull the plug
  pgbaton-lab down                    remove it all`

// common are the flags of every command.
type common struct {
	Name string `default:"lab" short:"n" env:"PGBATON_LAB_NAME" help:"Name of the lab: several run side by side."`
	Dir  string `env:"PGBATON_LAB_DIR" help:"Where its state is (default /var/lib/pgbaton-lab/NAME). On a real disk: fsync is real."`
}

func (c common) open() (*lab.Lab, error) { return lab.Open(c.Name, c.Dir) }

type cli struct {
	common
	Up      upCmd      `cmd:"" help:"Start a lab and wait for its primary."`
	Down    downCmd    `cmd:"" help:"End a lab and remove it."`
	Status  statusCmd  `cmd:"" help:"Show roles, scores, failed actions, cut links."`
	Exec    execCmd    `cmd:"" help:"Run a command inside a node."`
	Load    loadCmd    `cmd:"" help:"Write, then report rows lost and outages."`
	Power   powerCmd   `cmd:"" help:"Power nodes on and off."`
	Cut     cutCmd     `cmd:"" help:"Cut the link between nodes, or make it lossy."`
	Heal    healCmd    `cmd:"" help:"Heal links."`
	Reset   resetCmd   `cmd:"" help:"Bring the lab back to health."`
	Logs    logsCmd    `cmd:"" help:"Show all that explains a failure."`
	Results resultsCmd `cmd:"" help:"Print the table of a soak."`
	Demo    demoCmd    `cmd:"" help:"Show handovers and a roll-back, with proof."`
	Bench   benchCmd   `cmd:"" help:"Measure handovers, beside the agent pgsqlms."`

	Slowness slownessCmd `cmd:"" hidden:"" help:"Print how many times slower than a common machine this one starts programs."`
}

// slownessCmd is for scripts: see lab.Slowness.
type slownessCmd struct{}

func (slownessCmd) Run() error {
	f, err := lab.Slowness()
	if err == nil {
		fmt.Printf("%.1f\n", f)
	}
	return err
}

func main() {
	lab.RunHelper()
	os.Exit(run())
}

func run() int {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	var c cli
	k := kong.Parse(
		&c, kong.Name("pgbaton-lab"), kong.Description(description), kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 80}),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.Bind(&c.common),
	)
	err := k.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "pgbaton-lab:", err)
		return 1
	}
	return 0
}
