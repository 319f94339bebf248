package lab

import (
	"fmt"
	"os"
	"path/filepath"
)

const (
	modeVar   = "PGBATON_LAB_MODE"
	fenceName = "fence_pgbaton_lab"
	// helperPath is this program as the nodes see it.
	helperPath = "/usr/lib/pgbaton-lab/lab"
)

var helperReady bool

// RunHelper must be called first thing in main, or in TestMain, of a program that
// uses this package. If the program was executed as one of the lab's own processes
// it runs that and does not return.
func RunHelper() {
	mode := os.Getenv(modeVar)
	if filepath.Base(os.Args[0]) == fenceName {
		mode = "fence"
	}
	var err error
	switch mode {
	case "":
		helperReady = true
		return
	case "supervisor":
		err = runSupervisor(os.Args[1])
	case "init":
		err = runInit(os.Args[1], os.Args[2])
	case "node":
		err = runNode()
	case "fence":
		err = runFence(os.Stdin, os.Stdout)
	default:
		err = fmt.Errorf("unknown %s=%q", modeVar, mode)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "pgbaton-lab %s: %v\n", mode, err)
		os.Exit(1)
	}
	os.Exit(0)
}
