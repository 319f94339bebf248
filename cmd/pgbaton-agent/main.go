// Command pgbaton-agent is the OCF resource agent ocf:pgbaton:postgresql.
package main

import (
	"os"

	"github.com/pgbaton/pgbaton/internal/agent"
)

// version is set by the build.
var version = "0.1.0"

func main() {
	os.Exit(agent.Main(version, os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}
