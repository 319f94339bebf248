package pacemaker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// Ensure a move is in force until it ends, there can be only one, and only its owner removes it: with the installed
// cibadmin, on a file.
func TestPrefer(t *testing.T) {
	run := offline(t, cibWith(t, ""))
	read := func() pacemaker.Configuration {
		t.Helper()
		c, err := pacemaker.ReadConfiguration(t.Context(), run)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if moves := read().Moves("pgsqld"); len(moves) != 0 {
		t.Fatalf("before: got %v", moves)
	}
	end := time.Now().Add(50 * time.Second).Truncate(time.Second)
	prefer := func(node, rule string) error {
		return pacemaker.Prefer(t.Context(), run, "pgsql-ha", node, rule, "Promoted", end)
	}
	if err := prefer("n2", "pgbaton-move-n1-aa"); err != nil {
		t.Fatal(err)
	}
	if err := prefer("n3", "pgbaton-move-n3-bb"); !errors.Is(err, pacemaker.ErrMoveExists) {
		t.Errorf("a second one: got %v, want ErrMoveExists", err)
	}
	c := read()
	moves := c.Moves("pgsqld")
	if len(moves) != 1 || moves[0].ID != "cli-prefer-pgsql-ha" || moves[0].Rule != "pgbaton-move-n1-aa" || moves[0].Nodes[0] != "n2" ||
		moves[0].Score != pacemaker.Infinity || !moves[0].Ends.Equal(end) {
		t.Errorf("got %+v, want one to n2 until %s", moves, end)
	}
	for at, want := range map[time.Time]bool{end.Add(-time.Second): true, end.Add(time.Second): false} {
		rc := c.RoleConstraints("pgsqld", at)
		if got := len(rc) == 1 && rc[0].Favours("n2"); got != want || moves[0].InForce(at) != want {
			t.Errorf("in force at %s: got %v and %v, want %v", at, rc, moves[0].InForce(at), want)
		}
	}
	later := end.Add(time.Minute)
	if err := pacemaker.Prolong(t.Context(), run, "pgbaton-move-n1-aa", later); err != nil {
		t.Fatal(err)
	}
	if moves := read().Moves("pgsqld"); !moves[0].Ends.Equal(later) {
		t.Errorf("prolonged: got %+v, want the end at %s", moves[0], later)
	}
	for _, tc := range []struct {
		rule string
		left int
	}{{"pgbaton-move-n3-bb", 1}, {"pgbaton-move-n1-aa", 0}, {"pgbaton-move-n1-aa", 0}} {
		if err := pacemaker.Unprefer(t.Context(), run, "cli-prefer-pgsql-ha", tc.rule); err != nil {
			t.Errorf("remove %s: %v", tc.rule, err)
		}
		if moves := read().Moves("pgsqld"); len(moves) != tc.left {
			t.Errorf("after the removal of %s: got %v, want %d", tc.rule, moves, tc.left)
		}
	}
	// What a person has to get rid of it, if the command was killed.
	if err := prefer("n2", "pgbaton-move-n1-cc"); err != nil {
		t.Fatal(err)
	}
	if out, err := run.Run(t.Context(), "crm_resource", "--clear", "-r", "pgsql-ha"); err != nil || len(read().Moves("pgsqld")) > 0 {
		t.Errorf("crm_resource --clear: %s (%v); left: %+v", out, err, read().Moves("pgsqld"))
	}
	if err := prefer("n2'", "x"); err == nil {
		t.Error("a quote in a name: no error")
	}
}

// Ensure the parameters of the resource are found, and those of nothing else.
func TestParameters(t *testing.T) {
	b, err := os.ReadFile("../console/testdata/cluster/healthy/cibadmin.xml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := pacemaker.ReadConfiguration(t.Context(), always(b))
	if err != nil {
		t.Fatal(err)
	}
	if p := c.Parameters("pgsqld"); p["pgdata"] != "/var/lib/pgha/data" || p["ip"] != "" {
		t.Errorf("got %v, want pgdata and no ip", p)
	}
	if p := c.Parameters("nobody"); len(p) != 0 {
		t.Errorf("got %v for a resource that is not there", p)
	}
}

// always is a Runner that always answers the same.
type always []byte

func (a always) Run(context.Context, ...string) ([]byte, error) { return a, nil }

// Ensure the role can be moved in a cluster that was upgraded from 2.0: its schema stays what it was, and knows the role's old name
// alone.
func TestPrefer_OldSchema(t *testing.T) {
	path := cibWith(t, "")
	cib, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old := regexp.MustCompile(`validate-with="[^"]*"`).ReplaceAll(cib, []byte(`validate-with="pacemaker-3.5"`))
	for now, was := range map[string]string{`role="Promoted"`: `role="Master"`, `role="Unpromoted"`: `role="Slave"`} {
		old = bytes.ReplaceAll(old, []byte(now), []byte(was))
	}
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	run := offline(t, path)
	if err := pacemaker.Prefer(t.Context(), run, "pgsql-ha", "n2", "pgbaton-move-n1-aa", "Promoted", time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	c, err := pacemaker.ReadConfiguration(t.Context(), run)
	if err != nil {
		t.Fatal(err)
	}
	rc := c.RoleConstraints("pgsqld", time.Now())
	if len(rc) != 1 || !rc[0].Favours("n2") || rc[0].Role != pacemaker.RolePromoted {
		t.Errorf("got %+v, want one that favours n2", rc)
	}
}

// Ensure only what a tool itself has said for certain, or what was never run, counts as a constraint that was not made.
func TestRejected(t *testing.T) {
	for status, want := range map[int]bool{78: true, 4: true, 124: false, -1: false} {
		if got := pacemaker.Rejected(fmt.Errorf("move: %w", &pacemaker.RunError{Status: status, Err: errors.New("failed")})); got != want {
			t.Errorf("exit status %d: %t, want %t", status, got, want)
		}
	}
	if err := pacemaker.Prefer(t.Context(), nil, "pgsql-ha", "no such name", "rule", "Promoted", time.Now()); err == nil || !pacemaker.Rejected(err) {
		t.Errorf("a name that cannot be: %v", err)
	}
}
