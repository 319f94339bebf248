package main

import (
	"context"
	"os"
	"time"

	"github.com/pgbaton/pgbaton/internal/console"
)

type historyCmd struct {
	N    int  `arg:"" optional:"" default:"10" help:"How many changes, the last ones; 0: all that is kept."`
	JSON bool `name:"json" help:"One JSON object; docs/command.md describes it."`
}

// Help is shown by --help.
func (historyCmd) Help() string {
	return `What happened to the role: when, what, from whom to whom, why, the note of the old
primary, the proof of the new one, the switch point, what is known to be lost, and what
each node did for how long. From this node's journal, which survives a loss of power,
and from what the other nodes published of their last few changes. What is to be had
elsewhere only is marked: more on n3.

Where the cluster does not run, it shows this node's journal.`
}

func (h historyCmd) Run(c *common) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	history, err := console.ThisNode().ReadHistory(ctx, c.Resource, h.N)
	if err != nil {
		return err
	}
	if h.JSON {
		return writeJSON(os.Stdout, history)
	}
	history.Text(os.Stdout, styleOf(os.Stdout))
	return nil
}
