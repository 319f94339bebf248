// Command pgbaton is for the people who run the cluster.
package main

import (
	"fmt"
	"os"

	"github.com/alecthomas/kong"
)

// version is set by the build.
var version = "0.1.0"

const description = `Looks at a PostgreSQL cluster that the resource agent ocf:pgbaton:postgresql runs under
Pacemaker. Run it on a node of the cluster, as root.`

// common are the flags of every command.
type common struct {
	Resource string `short:"r" env:"PGBATON_RESOURCE" help:"The primitive's name (default: the one that has state on this node)."`
}

type cli struct {
	common
	History historyCmd `cmd:"" help:"Show what this node had to do with changes of roles."`
	Promote promoteCmd `cmd:"" help:"Promote a node although something is lost, when the agents promote nobody."`
	Status  statusCmd  `cmd:"" help:"Show who is what, and what stands in the way."`
	Version versionCmd `cmd:"" help:"Show the version."`
}

type versionCmd struct{}

func (versionCmd) Run() error {
	fmt.Println("pgbaton", version)
	return nil
}

func main() {
	var c cli
	k := kong.Parse(
		&c, kong.Name("pgbaton"), kong.Description(description), kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 80}), kong.Bind(&c.common),
	)
	if err := k.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "pgbaton:", err)
		os.Exit(1)
	}
}
