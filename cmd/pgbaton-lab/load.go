package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/pgbaton/pgbaton/internal/load"
)

type loadCmd struct {
	Duration   time.Duration `short:"d" default:"30s" help:"How long; Ctrl-C ends it earlier."`
	Clients    int           `short:"c" default:"4" help:"Writing clients."`
	Every      time.Duration `default:"5ms" help:"Pause between two rows of a client."`
	Padding    int           `help:"Bytes added to each row."`
	SyncCommit string        `help:"synchronous_commit of the clients (default: the server's)."`
	GapOver    time.Duration `default:"200ms" help:"List gaps longer than this."`
	JSON       bool          `name:"json" help:"Report as JSON."`
}

// Help is shown by --help.
func (loadCmd) Help() string {
	return `Clients outside the cluster insert numbered rows through the virtual IP, reconnect by
themselves, and record every acknowledgement; a prober tries to write on every node
every 50 ms. Afterwards: rows lost, gaps, errors by kind, two nodes writable at once.
Exit code 1 if a row is lost, two nodes were writable, or the rows could not be counted.`
}

func (d loadCmd) Run(ctx context.Context, c *common) error {
	l, err := c.open()
	if err != nil {
		return err
	}
	begin, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	run, err := load.Start(begin, l, load.Options{
		Clients: d.Clients, Every: d.Every, Padding: d.Padding, SyncCommit: d.SyncCommit, GapOver: d.GapOver,
	})
	if err != nil {
		return err
	}
	if !d.JSON {
		fmt.Printf("%d clients write for %v; Ctrl-C ends it\n", d.Clients, d.Duration)
	}
	select {
	case <-ctx.Done():
	case <-time.After(d.Duration):
	}
	report := run.Stop()
	if d.JSON {
		if err := report.JSON(os.Stdout); err != nil {
			return err
		}
	} else {
		report.Text(os.Stdout)
	}
	return report.Err()
}
