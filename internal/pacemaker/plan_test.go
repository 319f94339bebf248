package pacemaker_test

import (
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pgbaton/pgbaton/internal/golden"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/pacemaker/envtest"
)

func recorded(t *testing.T) []envtest.Action {
	t.Helper()
	all, err := envtest.All()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Ensure no recorded file is left unread.
func TestParsePlan_EveryRecordedFile(t *testing.T) {
	dir, err := envtest.Dir()
	if err != nil {
		t.Fatal(err)
	}
	unread := map[string]bool{}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != "README.md" {
			rel, _ := filepath.Rel(dir, path)
			unread[rel] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(unread) != 353 {
		t.Errorf("%d recorded files, want 353", len(unread))
	}
	for _, a := range recorded(t) {
		delete(unread, a.File)
	}
	for _, f := range slices.Sorted(maps.Keys(unread)) {
		t.Errorf("%s: not read", f)
	}
}

// Ensure what is parsed agrees with what the file's name says, and with the
// variables, read once more in another way.
func TestParsePlan_Recorded(t *testing.T) {
	for _, a := range recorded(t) {
		p := pacemaker.ParsePlan(a.Env)
		if p.Phase != a.Phase || p.Operation != a.Operation {
			t.Errorf("%s: phase %q operation %q", a.File, p.Phase, p.Operation)
		}
		if want := a.Action != "monitor"; p.Known() != want {
			t.Errorf("%s: Known() = %v", a.File, p.Known())
		}
		if !p.Known() {
			continue
		}
		for name, got := range map[string][]string{
			"active": p.Active, "promoted": p.Promoted, "unpromoted": p.Unpromoted,
			"master": p.Promoted, "slave": p.Unpromoted,
			"start": p.Start, "stop": p.Stop, "promote": p.Promote, "demote": p.Demote,
			"all": p.All, "available": p.Available,
		} {
			raw := a.Env["OCF_RESKEY_CRM_meta_notify_"+name+"_uname"]
			joined := strings.Join(got, " ")
			if joined == "" {
				joined = " " // Pacemaker's empty list
			}
			if joined != raw {
				t.Errorf("%s: %s: %q, want %q", a.File, name, joined, raw)
			}
		}
	}
}

// Ensure the plans of the recorded scenarios are read as they were made: one line
// for each distinct plan, in order.
func TestParsePlan_Golden(t *testing.T) {
	var b strings.Builder
	list := func(l []string) string {
		if len(l) == 0 {
			return "-"
		}
		return strings.Join(slices.Sorted(slices.Values(l)), ",")
	}
	scenario, last := "", ""
	for _, a := range recorded(t) {
		if a.Scenario != scenario {
			scenario, last = a.Scenario, ""
			fmt.Fprintf(&b, "%s\n", scenario)
		}
		p := pacemaker.ParsePlan(a.Env)
		if !p.Known() {
			continue
		}
		line := fmt.Sprintf("promoted=%s demote=%s stop=%s start=%s promote=%s", list(p.Promoted), list(p.Demote), list(p.Stop), list(p.Start), list(p.Promote))
		if from, to, ok := p.Moves(); ok {
			line += fmt.Sprintf(" (moves %s to %s)", from, to)
		}
		for _, n := range p.All {
			switch {
			case p.Leaves(n):
				line += " (" + n + " leaves)"
			case p.Restarts(n):
				line += " (" + n + " restarts)"
			}
		}
		if line != last {
			fmt.Fprintf(&b, "  %3d %s\n", a.Seq, line)
			last = line
		}
	}
	golden.Compare(t, "testdata/plans.golden", b.String())
}

// Ensure names are compared as a whole.
//
// Trap 25: names are compared exactly.
func TestPlan_ExactNames(t *testing.T) {
	p := pacemaker.ParsePlan(map[string]string{
		"OCF_RESKEY_CRM_meta_notify_active_uname": "n10 n1.example N2",
		"OCF_RESKEY_CRM_meta_notify_stop_uname":   "n10",
	})
	for _, n := range []string{"n1", "n", "n1xexample", "n2", ""} {
		if pacemaker.Contains(p.Active, n) || p.Keeps(n) || p.Leaves(n) {
			t.Errorf("%q is found in %q", n, p.Active)
		}
	}
	if !p.Leaves("n10") || !p.Keeps("N2") {
		t.Errorf("n10 or N2 not found in %q", p.Active)
	}
}

// Ensure the names of Pacemaker 2.0 do where the newer ones are absent, and only
// there.
func TestParsePlan_OldNames(t *testing.T) {
	env := map[string]string{
		"OCF_RESKEY_CRM_meta_notify_master_uname": "n1",
		"OCF_RESKEY_CRM_meta_notify_slave_uname":  "n2 n3",
	}
	p := pacemaker.ParsePlan(env)
	if !slices.Equal(p.Promoted, []string{"n1"}) || !slices.Equal(p.Unpromoted, []string{"n2", "n3"}) {
		t.Errorf("from the old names: %+v", p)
	}
	env["OCF_RESKEY_CRM_meta_notify_promoted_uname"] = " "
	if p := pacemaker.ParsePlan(env); p.Promoted != nil {
		t.Errorf("promoted is empty, master is not: got %q", p.Promoted)
	}
	if pacemaker.ParsePlan(map[string]string{}).Known() {
		t.Error("an empty environment has a plan")
	}
}
