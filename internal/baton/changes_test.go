package baton_test

import (
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/golden"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/pacemaker/envtest"
)

// evidence is what the old primary left, by the scenario's description in internal/pacemaker/testdata/env/README.md,
// from the transition with this number on: whose note, and of which kind. An empty node means that there is none.
type evidence struct {
	from int
	node string
	kind baton.NoteKind
}

var recordedEvidence = map[string][]evidence{
	"clean-shutdown-of-primary-node":    {{0, "n1", baton.Clean}},
	"demote-fails-once":                 {{0, "n2", baton.Clean}},
	"handover-by-move":                  {{0, "n2", baton.Clean}},
	"node-standby-of-primary":           {{0, "n1", baton.Clean}},
	"primary-killed-recovered-in-place": {{0, "n1", baton.Crash}},
	// demote and stop failed, so that the node was fenced: nobody could leave a note.
	"primary-killed-then-fenced": {{0, "", ""}},
	"primary-node-power-off":     {{0, "", ""}},
	// n1's note holds until somebody was promoted. That was n3 (91), and n3 left one of its own (101).
	"promote-fails-once":         {{0, "n1", baton.Clean}, {98, "n3", baton.Clean}},
	"resource-restart":           {{0, "n1", baton.Clean}},
	"standby-killed-recovered":   {{0, "", ""}},
	"standby-killed-then-fenced": {{0, "", ""}},
}

// Ensure that the kind of every recorded change stays what it was found to be: one line a transition, with the plan,
// what it says by itself, and what it says with the evidence.
func TestClassify_EveryRecordedTransition(t *testing.T) {
	all, err := envtest.All()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	scenario, last := "", ""
	read := map[string]bool{}
	for _, a := range all {
		read[a.File] = true
		if a.Scenario != scenario {
			scenario, last = a.Scenario, ""
			fmt.Fprintf(&out, "%s\n", scenario)
			if recordedEvidence[scenario] == nil {
				t.Errorf("%s: no evidence is written down for this scenario in recordedEvidence", scenario)
			}
		}
		env := pacemaker.ParsePlan(a.Env)
		if !env.Known() {
			if c := baton.Classify(baton.Plan{}); c.Kind != baton.NoChange {
				t.Errorf("%s: no plan is %q, want %q", a.File, c, baton.NoChange)
			}
			continue
		}
		plan := baton.Plan{
			Promoted: env.Promoted, Unpromoted: env.Unpromoted,
			Demote: env.Demote, Stop: env.Stop, Start: env.Start, Promote: env.Promote,
		}
		change := baton.Classify(plan)
		note := noteFor(scenario, a.Seq)
		says := "no note"
		if note != nil {
			says = fmt.Sprintf("%s note of %s", note.Kind, note.Node)
		}
		line := fmt.Sprintf("promoted=%s demote=%s stop=%s start=%s promote=%s: %s; with %s: %s",
			list(plan.Promoted), list(plan.Demote), list(plan.Stop), list(plan.Start), list(plan.Promote),
			change, says, change.Resolve(baton.Ended{Note: note, Live: true}))
		for _, n := range env.All {
			if baton.CanCallOff(plan, n) {
				line += fmt.Sprintf("; %s can call it off", n)
			}
			if baton.MustLeave(plan, n) {
				line += fmt.Sprintf("; %s must leave", n)
			}
		}
		if line != last {
			fmt.Fprintf(&out, "  %3d %s\n", a.Seq, line)
			last = line
		}
	}
	everyFileRead(t, read)
	golden.Compare(t, "testdata/changes.golden", out.String())
}

// Ensure that the kind of a change is told by what is known of the end of the last primary, and left open where that is not
// known.
func TestResolve(t *testing.T) {
	clean, crash := &baton.Note{Kind: baton.Clean, Node: "n1"}, &baton.Note{Kind: baton.Crash, Node: "n1"}
	move := baton.Classify(baton.Plan{Promoted: []string{"n1"}, Demote: []string{"n1"}, Promote: []string{"n2"}})
	fenced := baton.Classify(baton.Plan{Promote: []string{"n2"}})
	for _, tt := range []struct {
		plan  baton.Change
		ended baton.Ended
		want  string
	}{
		{move, baton.Ended{Note: clean}, "handover from n1 to n2"},
		{move, baton.Ended{Note: crash}, "takeover from n1 to n2"},
		{move, baton.Ended{}, "takeover from n1 to n2"},
		{fenced, baton.Ended{Last: "n1", Live: true}, "takeover from n1 to n2"},
		{fenced, baton.Ended{Live: true}, "takeover of n2"},
		{fenced, baton.Ended{Last: "n2", Live: true}, "restart in place of n2"},
		{fenced, baton.Ended{Note: clean, Live: true}, "handover from n1 to n2"},
		{fenced, baton.Ended{Note: crash, Last: "n3", Live: true}, "takeover from n1 to n2"},
		{fenced, baton.Ended{Note: clean}, "change of roles to n2"}, // it has only booted, and others may have seen a primary
		{fenced, baton.Ended{Last: "n1"}, "change of roles to n2"},
		{fenced, baton.Ended{Last: "n1", Cold: true}, "cold start of n2"},
		{baton.Classify(baton.Plan{Promoted: []string{"n1"}, Demote: []string{"n1"}}), baton.Ended{Note: clean, Live: true}, "shutdown of n1"},
		{baton.Classify(baton.Plan{}), baton.Ended{Note: clean, Live: true}, "no change"},
	} {
		if got := tt.plan.Resolve(tt.ended).String(); got != tt.want {
			t.Errorf("%s, %+v: %q, want %q", tt.plan, tt.ended, got, tt.want)
		}
	}
}

func noteFor(scenario string, seq int) *baton.Note {
	var note *baton.Note
	for _, e := range recordedEvidence[scenario] {
		if seq >= e.from {
			note = nil
			if e.node != "" {
				note = &baton.Note{Kind: e.kind, Node: e.node}
			}
		}
	}
	return note
}

// everyFileRead fails the test for a recorded file that was not looked at.
func everyFileRead(t *testing.T, read map[string]bool) {
	t.Helper()
	dir, err := envtest.Dir()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "README.md" {
			return err
		}
		seen++
		if rel, _ := filepath.Rel(dir, path); !read[rel] {
			t.Errorf("%s: recorded, but no test reads it", rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen == 0 || seen != len(read) {
		t.Errorf("%d recorded files, %d read", seen, len(read))
	}
	scenarios := map[string]bool{}
	for f := range read {
		scenarios[filepath.Dir(f)] = true
	}
	for _, s := range slices.Sorted(maps.Keys(recordedEvidence)) {
		if !scenarios[s] {
			t.Errorf("recordedEvidence names the scenario %q, which is not recorded", s)
		}
	}
}

func list(l []string) string {
	if len(l) == 0 {
		return "-"
	}
	return strings.Join(slices.Sorted(slices.Values(l)), ",")
}
