package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/pgbaton/pgbaton/internal/console"
)

type pauseCmd struct{}

// Help is shown by --help.
func (pauseCmd) Help() string {
	return `For maintenance: Pacemaker then neither monitors nor touches PostgreSQL, on any node,
until pgbaton resume. Everything else of the cluster, the virtual IP too, goes on. A
failure of PostgreSQL is not noticed meanwhile, and nobody takes over.

Sets the meta attribute maintenance=true of the clone.`
}

func (pauseCmd) Run(c *common) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return nothingToDo(console.ThisNode().Pause(ctx, c.Resource, os.Stdout))
}

type resumeCmd struct {
	Force bool `help:"Also if the server of this node is not what Pacemaker takes it for."`
}

// Help is shown by --help.
func (resumeCmd) Help() string {
	return `Ends pgbaton pause: Pacemaker looks at every instance again, and recovers what it finds
stopped. Start by hand what you stopped by hand before.`
}

func (r resumeCmd) Run(c *common) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return nothingToDo(console.ThisNode().Resume(ctx, c.Resource, r.Force, os.Stdout))
}

// nothingToDo writes what is no error: things are already as they should be.
func nothingToDo(err error) error {
	if err != nil && console.CodeOf(err) == console.Done {
		fmt.Println(err)
		return nil
	}
	return err
}
