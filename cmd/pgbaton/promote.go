package main

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"time"

	"github.com/pgbaton/pgbaton/internal/console"
)

type promoteCmd struct {
	Node string `arg:"" help:"The node to promote."`
	Loss bool   `name:"accept-data-loss" required:"" help:"Say that you accept that what the node lacks is lost."`
	Yes  bool   `short:"y" help:"Do not ask."`
}

// Help is shown by --help.
func (promoteCmd) Help() string {
	return `For the one case in which the agents promote nobody: the last primary ended, no node that
may be promoted has everything that it wrote, and the primary itself cannot come back.
Shows what is known to be missing, asks, and leaves the order on NODE. Its agent follows
it with its next monitor, and only as long as what is at stake has not changed.

The better ways come first: lift the ban or the standby of the old primary's node
(pcs resource clear, pcs node unstandby, crm resource clear, crm node online), or start
the node. Nothing is lost then.`
}

func (p promoteCmd) Run(c *common) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	order, err := console.ThisNode().PrepareOrder(ctx, c.Resource, p.Node)
	if err != nil {
		return err
	}
	order.Describe(os.Stdout)
	if !p.Yes {
		if ask(fmt.Sprintf("Promote %s all the same? Type its name: ", p.Node)) != p.Node {
			return &console.Error{Code: console.Refused, Text: "not confirmed, nothing was changed"}
		}
	}
	ctx, cancel = context.WithTimeout(context.Background(), 20*time.Second) // a person may have taken a while
	defer cancel()
	if err := order.Give(ctx, who()); err != nil {
		return err
	}
	fmt.Printf("Ordered. %s follows it with its next monitor; watch crm_mon -A and\n/var/log/pgbaton/%s.log there.\n", p.Node, order.Resource())
	return nil
}

// who gives the order: the person behind sudo, if there is one.
func who() string {
	name := os.Getenv("SUDO_USER")
	if name == "" {
		name = "uid 0"
		if u, err := user.Current(); err == nil {
			name = u.Username
		}
	}
	host, _ := os.Hostname()
	return name + "@" + host
}
