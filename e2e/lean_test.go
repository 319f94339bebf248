package e2e

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The agent is started every few seconds on every node, and again for each notification of a change of roles: what it
// carries is paid for in outage.
const (
	agentSize    = 14 << 20              // bytes of the binary as the tests build it, with its symbols
	agentStartUp = 15 * time.Millisecond // of processor time for meta-data, which touches nothing: the least of some runs
)

// agentPackages are the packages beyond the standard library that the agent may consist of. It names no tool for
// YAML, colours, metrics or flags: what comes in here comes in by a decision.
var agentPackages = []string{
	"github.com/jackc/pgpassfile",
	"github.com/jackc/pgservicefile",
	"github.com/jackc/pgx/v5/internal/iobufpool",
	"github.com/jackc/pgx/v5/internal/pgdatetime",
	"github.com/jackc/pgx/v5/internal/pgio",
	"github.com/jackc/pgx/v5/pgconn",
	"github.com/jackc/pgx/v5/pgconn/ctxwatch",
	"github.com/jackc/pgx/v5/pgconn/internal/bgreader",
	"github.com/jackc/pgx/v5/pgproto3",
	"github.com/jackc/pgx/v5/pgtype",
	"github.com/pgbaton/pgbaton/cmd/pgbaton-agent",
	"github.com/pgbaton/pgbaton/internal/agent",
	"github.com/pgbaton/pgbaton/internal/baton",
	"github.com/pgbaton/pgbaton/internal/durable",
	"github.com/pgbaton/pgbaton/internal/journal",
	"github.com/pgbaton/pgbaton/internal/ocf",
	"github.com/pgbaton/pgbaton/internal/pacemaker",
	"github.com/pgbaton/pgbaton/internal/pgdisk",
	"github.com/pgbaton/pgbaton/internal/postgres",
	"github.com/pgbaton/pgbaton/internal/view",
}

// textPackages come with pgconn, which prepares passwords with them (SASLprep).
const textPackages = "golang.org/x/text/"

// agentAvoids are packages of the standard library that are large or slow to start.
var agentAvoids = []string{"net/http", "html/template", "text/template", "testing", "flag", "go/ast", "plugin"}

func TestLeanAgent_Packages(t *testing.T) {
	list := func(format string) []string {
		t.Helper()
		cmd := exec.Command("go", "list", "-deps", "-f", format, "../cmd/pgbaton-agent")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("go list: %v: %s", err, out)
		}
		return strings.Fields(string(out))
	}
	deps := list("{{if not .Standard}}{{.ImportPath}}{{end}}")
	for _, p := range deps {
		if !slices.Contains(agentPackages, p) && !strings.HasPrefix(p, textPackages) {
			t.Errorf("the agent has come to depend on %s: leave it out, or decide for it in agentPackages", p)
		}
	}
	for _, p := range agentPackages {
		if !slices.Contains(deps, p) {
			t.Errorf("the agent does not depend on %s any more: take it out of agentPackages", p)
		}
	}
	for _, p := range list("{{if .Standard}}{{.ImportPath}}{{end}}") {
		if slices.Contains(agentAvoids, p) {
			t.Errorf("the agent has come to depend on %s: leave it out", p)
		}
	}
}

func TestLeanAgent_Budget(t *testing.T) {
	agent := built(t, buildAgent)
	info, err := os.Stat(agent)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f MB", float64(info.Size())/(1<<20))
	if info.Size() > agentSize {
		t.Errorf("the agent has %d bytes, its budget is %d", info.Size(), agentSize)
	}
	least := time.Hour
	for range 10 {
		cmd := exec.Command(agent, "meta-data")
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		use := cmd.ProcessState.SysUsage().(*syscall.Rusage)
		least = min(least, time.Duration(use.Utime.Nano()+use.Stime.Nano()))
	}
	t.Logf("%s of processor time for meta-data", least)
	if budget := here(agentStartUp); least > budget {
		t.Errorf("meta-data takes %s of processor time, the budget is %s", least, budget)
	}
}
