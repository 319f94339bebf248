package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/pgbaton/pgbaton/internal/console"
)

type setupCmd struct {
	Apply   bool   `help:"Do it. Without this the plan is shown, and nothing is changed."`
	FromPAF bool   `name:"from-paf" xor:"way" help:"Take a running cluster over from the Perl agent, ocf:heartbeat:pgsqlms."`
	Back    bool   `xor:"way" help:"Give it back to the Perl agent."`
	VIP     string `name:"vip" placeholder:"ADDRESS/PREFIX" help:"Of a new cluster: the address that is to follow the primary."`
	PGData  string `name:"pgdata" placeholder:"DIR" help:"Of a new cluster: which server, if several run here."`
	Name    string `default:"pgsqld" help:"Of a new cluster: the primitive."`
	Clone   string `default:"pgsql-ha" help:"Of a new cluster: the clone."`
	Tool    string `enum:"pcs,crm," default:"" placeholder:"pcs|crm" help:"Whose commands (default: the one that is installed)."`
}

// Help is shown by --help.
func (setupCmd) Help() string {
	return `Puts a PostgreSQL that runs with streaming replication under the care of Pacemaker and
pgbaton. It shows the steps with their reasons and commands; with --apply it does them,
one by one, and looks after each whether all is as expected. PostgreSQL is neither
stopped nor started, and clients write on.

  pgbaton setup --vip 10.77.0.10/24  on the primary's node: Pacemaker runs, and knows
                                     nothing of PostgreSQL yet
  pgbaton setup --from-paf           a cluster that ocf:heartbeat:pgsqlms runs
  pgbaton setup --from-paf --apply   do it
  pgbaton setup --back --apply       back to ocf:heartbeat:pgsqlms

pgbaton must be installed on every node. If the agents do not find what they should,
everything is taken back. If it is cut short, the same command goes on; a run that still
lives then stops, and takes nothing back.

Exit codes: 0 done, or shown; 3 refused, nothing was changed; 4 taken back; 1 it stopped
half-way and needs a person; 2 wrong usage; 6 Pacemaker does not answer.`
}

func (k setupCmd) Run(c *common) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	plan, err := k.prepare(ctx, c)
	if err != nil {
		return nothingToDo(err)
	}
	plan.Text(os.Stdout, styleOf(os.Stdout))
	fmt.Println()
	if !k.Apply {
		fmt.Println("Nothing was changed. With --apply it is done.")
		return nil
	}
	began := time.Now()
	say := func(line string) { fmt.Printf("%8.3f  %s\n", time.Since(began).Seconds(), line) }
	if err := plan.Apply(ctx, say); err != nil {
		return err
	}
	say("Done")
	return nil
}

func (k setupCmd) prepare(ctx context.Context, c *common) (*console.Setup, error) {
	world := console.ThisNode()
	if !k.FromPAF && !k.Back {
		return world.New(ctx, console.Wanted{PGData: k.PGData, Name: k.Name, Clone: k.Clone, VIP: k.VIP, Tool: k.Tool})
	}
	if k.VIP != "" || k.PGData != "" {
		return nil, &console.Error{Code: console.Usage, Text: "--vip and --pgdata are for a new cluster, not for --from-paf and --back"}
	}
	return world.Takeover(ctx, c.Resource, k.Back, k.Tool)
}
