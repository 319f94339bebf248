package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

type logsCmd struct {
	Node string `arg:"" optional:"" help:"List only the paths of this node's logs."`
}

// Help is shown by --help.
func (logsCmd) Help() string {
	return `Without NODE: all that explains a failure, to standard output: status, scores, what
pgbaton stored, and the end of every log. Works on a lab that is dead too.`
}

func (g logsCmd) Run(ctx context.Context, c *common) error {
	l, err := lab.OpenDead(c.Name, c.Dir)
	if err != nil {
		return err
	}
	if g.Node == "" {
		l.Dump(ctx, os.Stdout)
		return nil
	}
	for _, p := range l.Logs(g.Node) {
		fmt.Println(p)
	}
	return nil
}

type resetCmd struct {
	Timeout time.Duration `default:"2m" help:"How long to wait for health."`
}

// Help is shown by --help.
func (resetCmd) Help() string {
	return `Heals links, powers nodes on, continues stopped processes, clears constraints, standby,
maintenance mode and failures, makes anew what cannot follow, and checks the result.`
}

func (r resetCmd) Run(ctx context.Context, c *common) error {
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	return with(c, func(l *lab.Lab) error {
		l.Options.Log = os.Stdout
		return l.Reset(ctx)
	})
}
