package e2e

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// Ensure a reloadable parameter that is changed under a running cluster is in force with the next action, and that no
// server is restarted for it; and that any other parameter does restart it, and is in force when the server crashes then.
func TestReloadAgent(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	l := ownLab(t, "reload", lab.Options{
		Nodes: 2, AgentBinary: built(t, buildAgent), Wrap: true,
		Ops: map[string]lab.Op{"monitor-promoted": {Interval: "2s"}, "monitor-unpromoted": {Interval: "3s"}},
	})
	primary, err := l.WaitPromoted(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.WaitAllStreaming(ctx); err != nil {
		t.Fatal(err)
	}
	nodes := []string{"n1", "n2"}
	servers := func() map[string]int {
		t.Helper()
		pids := map[string]int{}
		for _, n := range nodes {
			if pids[n], err = l.Postmaster(n); err != nil {
				t.Fatal(err)
			}
		}
		return pids
	}
	set := func(name, value string) {
		t.Helper()
		if _, err := l.Run(ctx, primary, "crm_resource", "--resource", lab.Resource, "--set-parameter", name, "--parameter-value="+value); err != nil {
			t.Fatal(err)
		}
	}
	// seen waits for an action of that name with the parameter in its environment.
	seen := func(node, action, variable string) {
		t.Helper()
		eventually(t, action+" on "+node+" with "+variable, func() bool {
			out, err := l.Run(ctx, node, "sh", "-c", `grep -lx "$2" /var/log/pgbaton-lab/actions/*-"$1"-* || true`, "sh", action, variable)
			return err == nil && strings.TrimSpace(out) != ""
		})
	}
	before := servers()
	set("maxlag", "1048576")
	for _, n := range nodes {
		seen(n, "reload-agent", "OCF_RESKEY_maxlag=1048576")
		seen(n, "monitor", "OCF_RESKEY_maxlag=1048576")
	}
	after := servers()
	for _, n := range nodes {
		if before[n] != after[n] {
			t.Errorf("the server of %s was restarted: pid %d, then %d", n, before[n], after[n])
		}
	}
	if now, err := l.WaitPromoted(ctx, primary); err != nil || now != primary {
		t.Errorf("the primary is %s, it was %s: %v", now, primary, err)
	}

	set("start_opts", "-c work_mem=5MB")
	eventually(t, "both servers to run with the new start_opts", func() bool {
		for _, n := range nodes {
			if out, err := l.SQL(ctx, n, "show work_mem"); err != nil || strings.TrimSpace(out) != "5MB" {
				return false
			}
		}
		return true
	})

	// The sentinel, which has watched the server since before, starts it with what is in force now.
	if primary, err = l.WaitPromoted(ctx, ""); err != nil {
		t.Fatal(err)
	}
	seen(primary, "monitor", "OCF_RESKEY_start_opts=-c work_mem=5MB")
	time.Sleep(3 * time.Second) // one sentinel ends, another one begins
	killed := servers()[primary]
	if err := l.SignalPostgres(primary, syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the crashed primary to serve again", func() bool {
		pid, err := l.Postmaster(primary)
		if err != nil || pid == killed {
			return false
		}
		out, err := l.SQL(ctx, primary, "show work_mem")
		if err == nil && strings.TrimSpace(out) != "5MB" {
			t.Fatalf("it was started with work_mem=%s", out)
		}
		return err == nil
	})
	if now, err := l.WaitPromoted(ctx, primary); err != nil || now != primary {
		t.Errorf("the primary is %s, it was %s: %v", now, primary, err)
	}
	s, err := l.View(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Failed) > 0 || len(s.Fenced) > 0 {
		t.Errorf("failed actions %v, fenced %v", s.Failed, s.Fenced)
	}
}
