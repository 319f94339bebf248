package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// The programs of this tree as the tests use them, static like those that are installed.
var (
	buildAgent       = builds("pgbaton-agent", "pgbaton-agent")
	buildFaultyAgent = builds("pgbaton-agent-faults", "pgbaton-agent", "-tags", "faults") // can be paused and killed
	buildCommand     = builds("pgbaton", "pgbaton", "-ldflags", "-s -w")
)

// builds returns what builds a program once, and says where it is.
func builds(name, program string, flags ...string) func() (string, error) {
	return sync.OnceValues(func() (string, error) {
		path, err := filepath.Abs(filepath.Join("../bin/e2e", name))
		if err != nil {
			return "", err
		}
		// Another run of these tests at the same time may be copying it.
		fresh := fmt.Sprintf("%s.%d", path, os.Getpid())
		cmd := exec.Command("go", append(append([]string{"build", "-trimpath"}, flags...), "-o", fresh, "../cmd/"+program)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("building %s: %w: %s", name, err, out)
		}
		return path, os.Rename(fresh, path)
	})
}

// built is the path of such a program.
func built(t testing.TB, build func() (string, error)) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}
