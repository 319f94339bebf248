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

type switchoverCmd struct {
	To      string        `placeholder:"NODE" help:"The new primary (default: the best standby)."`
	DryRun  bool          `short:"n" help:"Show the pre-flight and the plan, change nothing."`
	Yes     bool          `short:"y" help:"Do not ask."`
	Timeout time.Duration `default:"5m" help:"How long to watch; the handover goes on without the command."`
}

// Help is shown by --help.
func (switchoverCmd) Help() string {
	return `Looks whether the role can be handed over, shows the plan, asks, orders the handover,
shows what happens, waits for the real end and removes the constraint that it made.
Clients lose the connection and are back after about a second; nothing is lost: without
the proof that the new primary has everything the old one is primary again.

  pgbaton switchover                 to the best standby
  pgbaton switchover --to n2 --yes   for scripts
  pgbaton switchover --dry-run       only look

It may be ended at any time. Before anything was stopped, Ctrl-C, SIGTERM and --timeout
take the order back (exit code 4). After that, and if it is killed or its node dies, the
handover goes on to its end, and the constraint ends by itself within a minute. Of two
that are started at once one is refused.

Exit codes: 0 done; 3 refused, nothing was changed; 4 rolled back or called off, the role
is where it was, or with a third node; 5 how it ended is not known; 2 wrong usage; 6
Pacemaker does not answer.`
}

func (s switchoverCmd) Run(c *common) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	world := console.ThisNode()
	plan, err := world.PrepareFresh(ctx, c.Resource, s.To, func(what string) {
		fmt.Printf("%s: waiting for the next monitor, up to 20 s\n", what)
	})
	if err != nil {
		return nothingToDo(err)
	}
	y := styleOf(os.Stdout)
	plan.Preflight(os.Stdout, y)
	if err := plan.Ready(); err != nil {
		return err
	}
	fmt.Println()
	plan.Plan(os.Stdout, y)
	if s.DryRun {
		fmt.Println("\nNothing was changed (--dry-run).")
		return nil
	}
	fmt.Println()
	if !s.Yes {
		if plan, err = s.confirm(ctx, world, plan, c); err != nil {
			return err
		}
	}
	watch, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	go func() {
		<-watch.Done()
		stop() // a second Ctrl-C ends the command at once
	}()
	began := time.Now()
	outcome, err := plan.Run(watch, func(e console.Event) { e.Line(os.Stdout, began) })
	if err != nil {
		return err
	}
	outcome.Text(os.Stdout, y)
	if outcome.Code != console.Done {
		return quietly(outcome.Code)
	}
	return nil
}

// confirm asks, and looks once more: a person may take a while.
func (s switchoverCmd) confirm(ctx context.Context, world console.World, plan *console.Switchover, c *common) (*console.Switchover, error) {
	if !isTerminal(os.Stdin) {
		return nil, &console.Error{Code: console.Refused, Text: "nobody can be asked, standard input is no terminal: nothing was changed; use --yes"}
	}
	typed := make(chan string, 1)
	go func() { typed <- ask(fmt.Sprintf("Hand the role over from %s to %s? [y/N] ", plan.From, plan.To)) }()
	select {
	case a := <-typed:
		if !isYes(a) {
			return nil, &console.Error{Code: console.Refused, Text: "not confirmed, nothing was changed"}
		}
	case <-ctx.Done():
		fmt.Println()
		return nil, &console.Error{Code: console.Refused, Text: "interrupted, nothing was changed"}
	}
	again, err := world.Prepare(ctx, c.Resource, plan.To)
	if err != nil {
		return nil, err
	}
	if again.From != plan.From {
		return nil, &console.Error{Code: console.Refused, Text: fmt.Sprintf("the primary has changed meanwhile, from %s to %s: nothing was changed", plan.From, again.From)}
	}
	return again, again.Ready()
}
