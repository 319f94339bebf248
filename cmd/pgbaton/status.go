package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/pgbaton/pgbaton/internal/console"
)

type statusCmd struct {
	JSON   bool          `name:"json" help:"As one JSON object; docs/command.md describes it."`
	Output string        `short:"o" default:"table" enum:"table,wide,json" help:"table, wide or json."`
	Watch  bool          `short:"w" help:"Show it again and again, until Ctrl-C."`
	Every  time.Duration `default:"1s" help:"How often, with --watch."`
}

// Help is shown by --help.
func (statusCmd) Help() string {
	return `Every node with its role, how its server stands, timeline, position, what it lacks in
bytes and seconds, sync state and promotion score; what is wrong and what to do; and
whether the role could be handed over now, to whom.

Only the server of this node is asked. What is said of the others is what their agents
published last, with its age, and what the primary knows of its standbys.

  pgbaton status -w             live
  pgbaton status -o wide        with constraints, the last note, timelines
  pgbaton status --json | jq -r '.primary[]'

Exit code 0 if there is one primary and nothing to do, else 1.`
}

func (s statusCmd) Run(c *common) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if s.Watch && s.Output != "json" && !s.JSON {
		return s.watch(ctx, c)
	}
	status, err := console.ThisNode().ReadStatus(ctx, c.Resource)
	if err != nil {
		return err
	}
	if err := s.write(os.Stdout, status, styleOf(os.Stdout)); err != nil {
		return err
	}
	if !status.Healthy() {
		return quietly(console.Attention)
	}
	return nil
}

func (s statusCmd) write(w io.Writer, status console.Status, y console.Style) error {
	if s.JSON || s.Output == "json" {
		return writeJSON(w, status)
	}
	y.Wide = s.Output == "wide"
	status.Text(w, y)
	return nil
}

// watch writes each picture over the last one, line by line, so that nothing flickers.
func (s statusCmd) watch(ctx context.Context, c *common) error {
	y := styleOf(os.Stdout)
	for first := true; ctx.Err() == nil; first = false {
		var b bytes.Buffer
		status, err := console.ThisNode().ReadStatus(ctx, c.Resource)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && first:
			return err
		case err != nil:
			fmt.Fprintf(&b, "%s  %v\n", time.Now().Format("15:04:05"), err)
		default:
			if err := s.write(&b, status, y); err != nil {
				return err
			}
		}
		picture := b.Bytes()
		if isTerminal(os.Stdout) {
			picture = bytes.ReplaceAll(picture, []byte("\n"), []byte("\x1b[K\n"))
			picture = append([]byte("\x1b[H"), append(picture, "\x1b[J"...)...)
			if first {
				picture = append([]byte("\x1b[2J"), picture...)
			}
		}
		if _, err := os.Stdout.Write(picture); err != nil {
			return nil // nobody watches any more
		}
		select {
		case <-ctx.Done():
		case <-time.After(max(s.Every, 100*time.Millisecond)):
		}
	}
	return nil
}
