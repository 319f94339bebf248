package agent

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestMain does not run the tests for who takes this program for the agent: a sentinel, or another detached process, that a test
// starts by mistake would run all of them once more, that one's too, and so on.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		fmt.Fprintf(os.Stderr, "%q: these are tests, and no agent\n", os.Args)
		os.Exit(2)
	}
	os.Exit(m.Run())
}
