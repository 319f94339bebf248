package main

import (
	"context"
	"os"
)

type execCmd struct {
	Node string   `arg:"" help:"Node, or client."`
	User string   `short:"u" help:"Run as this user instead of root."`
	Argv []string `arg:"" passthrough:"" help:"Command and its arguments, after --."`
}

func (e execCmd) Run(ctx context.Context, c *common) error {
	l, err := c.open()
	if err != nil {
		return err
	}
	argv := e.Argv
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	if len(argv) == 0 {
		argv = []string{"bash"}
	}
	cmd, err := l.Command(ctx, e.Node, argv...)
	if e.User != "" {
		cmd, err = l.CommandAs(ctx, e.Node, e.User, argv...)
	}
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}
