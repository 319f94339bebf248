package e2e

import (
	"fmt"
	"os"
	"testing"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// TestMain lets the lab execute this program again as one of its own processes, and takes the shared lab down at the end.
func TestMain(m *testing.M) {
	lab.RunHelper()
	if err := measureMachine(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := endCluster(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}
