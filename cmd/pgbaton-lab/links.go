package main

import (
	"context"
	"errors"

	"github.com/pgbaton/pgbaton/internal/lab"
)

type powerCmd struct {
	On   powerOn   `cmd:"" help:"Power a node on; it joins the cluster by itself."`
	Off  powerOff  `cmd:"" help:"Pull the plug: SIGKILL to all, the network falls silent."`
	Stop powerStop `cmd:"" help:"Shut the node down in good order, then it is off."`
}

type nodeArg struct {
	Node string `arg:"" help:"Node."`
}

type (
	powerOn   struct{ nodeArg }
	powerOff  struct{ nodeArg }
	powerStop struct{ nodeArg }
)

func (p powerOn) Run(ctx context.Context, c *common) error {
	return with(c, func(l *lab.Lab) error { return l.Power(ctx, p.Node, true) })
}

func (p powerOff) Run(ctx context.Context, c *common) error {
	return with(c, func(l *lab.Lab) error { return l.Power(ctx, p.Node, false) })
}

func (p powerStop) Run(ctx context.Context, c *common) error {
	return with(c, func(l *lab.Lab) error { return l.Shutdown(ctx, p.Node) })
}

func with(c *common, f func(*lab.Lab) error) error {
	l, err := c.open()
	if err != nil {
		return err
	}
	return f(l)
}

// linkFlags name a link, for cut and heal.
type linkFlags struct {
	From   string  `arg:"" optional:"" help:"Node, client, or * for all other nodes."`
	To     string  `arg:"" optional:"" default:"*" help:"Node, client, or * (default)."`
	OneWay bool    `help:"Only what FROM sends to TO."`
	Port   int     `help:"Only TCP connections to or from this port."`
	Loss   float64 `help:"Lose this per cent of the frames instead of all."`
}

func (f linkFlags) link() lab.Link {
	return lab.Link{From: f.From, To: f.To, OneWay: f.OneWay, Port: f.Port, Loss: f.Loss}
}

type cutCmd struct{ linkFlags }

func (u cutCmd) Run(ctx context.Context, c *common) error {
	if u.From == "" {
		return errors.New("cut which link? For example: pgbaton-lab cut n1 n2 --port 5432")
	}
	return with(c, func(l *lab.Lab) error { return l.Cut(ctx, u.link()) })
}

// Help is shown by --help.
func (cutCmd) Help() string {
	return `The nodes' interfaces stay up; frames vanish on the bridge between them. The rules
match the nodes, not their addresses, so the virtual IP is cut with its node.

  cut n1                   n1 from all other nodes, not the client
  cut n1 client            n1 from the writing clients
  cut n1 n2                these two from each other
  cut n1 n2 --port 5432    only replication between them
  cut n1 n2 --one-way      only what n1 sends
  cut n1 '*' --loss 5      every twentieth frame of n1`
}

type healCmd struct{ linkFlags }

func (h healCmd) Run(ctx context.Context, c *common) error {
	return with(c, func(l *lab.Lab) error {
		if h.From == "" {
			return l.HealAll(ctx)
		}
		return l.Heal(ctx, h.link())
	})
}

// Help is shown by --help.
func (healCmd) Help() string {
	return "Without arguments all links are healed; else one, given exactly as it was cut (see status)."
}
