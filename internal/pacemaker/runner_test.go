package pacemaker_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// Ensure a command that hangs is killed when the context ends, and the error says so.
func TestExecRunner_Deadline(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := pacemaker.ExecRunner{}.Run(ctx, "sleep", "3600")
	if !errors.Is(err, context.DeadlineExceeded) || pacemaker.ExitStatus(err) != -1 {
		t.Errorf("got %v (exit status %d)", err, pacemaker.ExitStatus(err))
	}
}

// Ensure exit status, what was written, and the command can be told from the error.
func TestExecRunner_Failure(t *testing.T) {
	out, err := pacemaker.ExecRunner{}.Run(t.Context(), "sh", "-c", "echo out; echo no such thing >&2; exit 105")
	if string(out) != "out\n" {
		t.Errorf("stdout %q", out)
	}
	if pacemaker.ExitStatus(err) != 105 || !strings.Contains(err.Error(), "sh -c") || !strings.HasSuffix(err.Error(), "exit status 105: no such thing") {
		t.Errorf("error %v", err)
	}
	if _, err := (pacemaker.ExecRunner{}).Run(t.Context(), "no-such-command-of-pacemaker"); err == nil || !strings.Contains(err.Error(), "is Pacemaker installed") {
		t.Errorf("error %v", err)
	}
}

// Ensure the command does not see in which action it runs, speaks English, and is
// found although PATH is poor or holds a relative directory.
func TestExecRunner_Environment(t *testing.T) {
	t.Setenv("OCF_RESKEY_CRM_meta_on_node", "n1")
	t.Setenv("LANG", "de_DE.UTF-8")
	t.Setenv("LC_MESSAGES", "de_DE.UTF-8")
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.WriteFile(filepath.Join(dir, "env"), []byte("#!/bin/sh\necho trap\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", ".")
	out, err := pacemaker.ExecRunner{Env: []string{"CIB_file=x"}}.Run(t.Context(), "env")
	if err != nil {
		t.Fatal(err)
	}
	got := string(out)
	for _, bad := range []string{"OCF_", "de_DE", "trap"} {
		if strings.Contains(got, bad) {
			t.Errorf("%q in the environment:\n%s", bad, got)
		}
	}
	for _, want := range []string{"LC_ALL=C\n", "CIB_file=x\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in the environment:\n%s", want, got)
		}
	}
}
