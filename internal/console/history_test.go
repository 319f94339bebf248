package console

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/view"
)

// story is what the journals of three nodes say: a handover, one that was rolled back, one that was called off, a takeover
// that lost something, and the return of the old primary.
func story() map[string][]journal.Event {
	start := time.Date(2026, 11, 25, 4, 0, 0, 0, time.UTC)
	all := map[string][]journal.Event{}
	at := start
	kind, from, to, note, claim := "", "", "", "", ""
	add := func(node, action string, ms float64, outcome, reason string, details ...string) {
		at = at.Add(100 * time.Millisecond)
		e := journal.Event{Time: at, Node: node, Action: action, Kind: kind, From: from, To: to, Outcome: outcome, Reason: reason, Duration: ms, NoteID: note, ClaimID: claim, Details: map[string]string{}}
		for n := 0; n < len(details); n += 2 {
			e.Details[details[n]] = details[n+1]
		}
		all[node] = append(all[node], e)
	}
	everybody := func(action string, ms float64, but string) {
		for _, n := range []string{"n1", "n2", "n3"} {
			if n != but {
				add(n, action, ms, "done", "")
			}
		}
	}
	// Only the old primary knows that it has not crashed.
	preDemote := func(ms float64, but string) {
		for _, n := range []string{"n1", "n2", "n3"} {
			if kind = "change of roles"; n == from {
				kind = "handover"
			}
			if n != but {
				add(n, "pre-demote", ms, "done", "")
			}
		}
		kind = "handover"
	}
	const (
		noteA = "shutdown checkpoint 0/3000268..0/30002E0 (crc 211f8d20) of timeline 2, left by n1"
		noteB = "shutdown checkpoint 0/30004A8..0/3000520 (crc c3067429) of timeline 3, left by n2"
		lacks = "n3 lacks the last 120 bytes of WAL: it ends at 0/30004A8, but the " + noteB
	)
	kind, from, to = "handover", "n1", "n2"
	preDemote(12, "")
	note = "A"
	add("n1", "demote", 80, "done", "", "note", noteA)
	claim = "1"
	everybody("post-demote", 130, "")
	everybody("pre-promote", 40, "")
	add("n2", "promote", 60, "done", "n2 has everything: the "+noteA, "note", noteA, "switch_point", "0/30002E0", "timeline", "3", "result", journal.NothingLost)
	everybody("post-promote", 1, "")

	at = start.Add(10 * time.Minute)
	from, to, note, claim = "n2", "n3", "", ""
	preDemote(9, "")
	note = "B"
	add("n2", "demote", 70, "done", "", "note", noteB)
	claim = "2"
	everybody("post-demote", 90, "")
	add("n3", "pre-promote", 2280, "refused", lacks)
	claim = "3"
	everybody("pre-promote", 30, "")
	kind, from, to = "restart in place", "n2", "n2"
	add("n2", "promote", 55, "done", "n2 has everything: the "+noteB, "note", noteB, "switch_point", "0/3000520", "timeline", "4", "result", journal.NothingLost)
	everybody("post-promote", 1, "")

	at = start.Add(20 * time.Minute)
	kind, from, to, note, claim = "handover", "n2", "n3", "", ""
	add("n2", "pre-demote", 10020, "called off", "n3 is not connected")
	preDemote(3, "n2")

	at = start.Add(30 * time.Minute)
	kind, from, to, claim = "takeover", "n2", "n1", "4"
	everybody("pre-promote", 900, "n2")
	add("n1", "promote", 300, "done", "n1 has the best position of those who answered; n2 is gone", "missing_bytes", "4096", "switch_point", "0/4000000", "timeline", "5")
	everybody("post-promote", 1, "n2")

	at = start.Add(40 * time.Minute)
	kind, claim = "no change", ""
	add("n2", "start", 40, "kept out", "its WAL of timeline 4 ends at 0/4001000, but n1 started timeline 5 at 0/4000000")
	add("n2", "rejoin", 900, "begins", "its WAL of timeline 4 ends at 0/4001000, but n1 started timeline 5 at 0/4000000")
	add("n2", "rejoin", 4100, "rewound", "its WAL of timeline 4 ends at 0/4001000, but n1 started timeline 5 at 0/4000000", "kept", "/var/lib/pgbaton/pgsqld/lost-1")
	return all
}

// Ensure the journal of this node and what the others published come together to one story; that it keeps to 80 columns;
// and that what is only to be had elsewhere is marked.
func TestHistory(t *testing.T) {
	local := time.Local
	time.Local = time.UTC
	t.Cleanup(func() { time.Local = local })
	var all bytes.Buffer
	for _, tc := range []struct {
		name  string
		heard []string
	}{
		{"all nodes", []string{"n2", "n3"}},
		{"n2 is silent", []string{"n3"}},
	} {
		w, r := replay(t, "healthy")
		events := story()
		w.Journal = func(string) []journal.Event { return events["n1"] }
		r.told = map[string]string{}
		for _, n := range tc.heard {
			r.told[n] = view.EncodeHistory(n, w.Now(), journal.Parts(events[n]))
		}
		h, err := w.ReadHistory(t.Context(), "", 0)
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString("--- " + tc.name + "\n")
		h.Text(&all, Style{})
		if tc.name == "all nodes" {
			b, err := json.MarshalIndent(h.Changes[1], "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			goldenPage(t, "history.json", string(b)+"\n")
		}
		if h, err = w.ReadHistory(t.Context(), "", 2); err != nil || len(h.Changes) != 2 {
			t.Errorf("the last 2: %d, %v", len(h.Changes), err)
		}
	}
	goldenPage(t, "history", all.String())
}

// Ensure that there is an answer without the cluster: this node's journal.
func TestHistory_NoCluster(t *testing.T) {
	w, _ := replay(t, "notrunning")
	w.Root = t.TempDir()
	if _, err := w.ReadHistory(t.Context(), "", 0); CodeOf(err) != NoCluster {
		t.Errorf("neither cluster nor journal: %v", err)
	}
	mkdir(t, w.Root, "pgsqld")
	w.Journal = func(string) []journal.Event { return story()["n2"] }
	h, err := w.ReadHistory(t.Context(), "", 0)
	if err != nil || h.SeenFrom != "n2" || len(h.Changes) != 4 || len(h.NotHeard) != 1 || !strings.Contains(h.NotHeard[0].Why, "does not run") {
		t.Errorf("got %+v, %v", h, err)
	}
	if more := h.Changes[0].MoreOn; strings.Join(more, " ") != "n1" {
		t.Errorf("more on %q", more)
	}
}
