package journal

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// Ensure a node's events are grouped by the change of roles that they belong to.
func TestParts(t *testing.T) {
	type ev struct {
		at                            int // seconds
		action, outcome, note, change string
	}
	const ab = "handover a b"
	for name, tc := range map[string]struct {
		events []ev
		want   []string // outcomes by action, one string a change
	}{
		"a handover": {
			[]ev{{0, "pre-demote", "done", "", ab}, {1, "demote", "done", "N", ab}, {2, "post-demote", "done", "N", ab}, {3, "pre-promote", "done", "N", ab}, {4, "post-promote", "done", "N", ab}},
			[]string{"pre-demote demote post-demote pre-promote post-promote"},
		},
		"rolled back, and another one at once": {
			[]ev{
				{0, "pre-demote", "done", "", ab},
				{1, "demote", "done", "N", ab},
				{3, "pre-promote", "done", "N", ab},
				{5, "pre-promote", "done", "N", ab},
				{6, "promote", "done", "N", "restart in place a a"},
				{6, "post-promote", "done", "N", ab},
				{8, "pre-demote", "done", "", ab},
				{9, "demote", "done", "M", ab},
			},
			[]string{"pre-demote demote pre-promote pre-promote promote post-promote", "pre-demote demote"},
		},
		"a plan that is made anew before anything was stopped": {
			[]ev{{0, "pre-demote", "done", "", ab}, {1, "pre-demote", "done", "", ab}, {2, "demote", "done", "N", ab}},
			[]string{"pre-demote pre-demote demote"},
		},
		"called off twice, with a pause": {
			[]ev{{0, "pre-demote", "called off", "", ab}, {300, "pre-demote", "called off", "", ab}},
			[]string{"pre-demote", "pre-demote"},
		},
		"a crash that is restarted in place is no part of the change before": {
			[]ev{{0, "demote", "done", "N", ab}, {2, "sentinel", "done", "", "restart in place a a"}, {4, "pre-demote", "done", "", ab}},
			[]string{"demote", "sentinel", "pre-demote"},
		},
		"a crash that costs the role": {
			[]ev{{0, "sentinel", "left", "", "takeover a "}, {1, "pre-demote", "done", "", ab}, {2, "demote", "done", "N", ab}},
			[]string{"sentinel pre-demote demote"},
		},
		"a return": {
			[]ev{{0, "post-promote", "done", "N", ab}, {5, "start", "kept out", "", ab}, {6, "rejoin", "begins", "", ab}, {7, "rejoin", "rewound", "", ab}, {9, "start", "kept out", "", ab}},
			[]string{"post-promote", "start rejoin rejoin", "start"},
		},
		"a note that comes late tells where it belongs": {
			[]ev{{0, "demote", "done", "N", ab}, {500, "promote", "done", "N", ab}},
			[]string{"demote promote"},
		},
		"two takeovers without a note": {
			[]ev{{0, "promote", "done", "", "takeover a b"}, {30, "pre-demote", "done", "", ab}},
			[]string{"promote", "pre-demote"},
		},
	} {
		var events []Event
		for _, e := range tc.events {
			c := append(strings.Split(e.change, " "), "", "")
			kind, from, to := strings.Join(c[:len(c)-4], " "), c[len(c)-4], c[len(c)-3]
			events = append(events, Event{Time: time.Unix(int64(e.at), 0), Action: e.action, Outcome: e.outcome, NoteID: e.note, Kind: kind, From: from, To: to})
		}
		var got []string
		for _, p := range Parts(events) {
			var actions []string
			for _, f := range p.Phases {
				actions = append(actions, f.Action)
			}
			got = append(got, strings.Join(actions, " "))
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s:\ngot  %q\nwant %q", name, got, tc.want)
		}
	}
}

// Ensure a line of zeros, as a loss of power leaves it on some file systems, hides neither what was before nor what comes.
func TestJournal_Zeros(t *testing.T) {
	s := testStore(t)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	add := func(node string) {
		t.Helper()
		if err := s.Append(Event{Time: at, Node: node}, true); err != nil {
			t.Fatal(err)
		}
	}
	add("a")
	f := openJournal(t, s)
	if _, err := f.Write(make([]byte, 700)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	add("b")
	for name, read := range map[string]func() ([]Event, error){"all": s.Events, "the last": s.LastEvents} {
		list, err := read()
		if err != nil || len(list) != 2 || list[0].Node != "a" || list[1].Node != "b" {
			t.Errorf("%s: %+v, %v; want a and b", name, list, err)
		}
	}
}

// Ensure the last events are whole ones, however long the journal is.
func TestLastEvents(t *testing.T) {
	s := testStore(t)
	if list, err := s.LastEvents(); err == nil || len(list) > 0 {
		t.Errorf("no journal: %v, %v", list, err)
	}
	for n := range 3000 {
		if err := s.Append(Event{Time: time.Unix(int64(n), 0), Reason: strings.Repeat("x", 100)}, false); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.LastEvents()
	if err != nil || len(list) < 1000 || len(list) > 2000 || list[len(list)-1].Time.Unix() != 2999 {
		t.Fatalf("%d events, %v", len(list), err)
	}
	for n, e := range list {
		if e.Time.Unix() != int64(3000-len(list)+n) {
			t.Fatalf("event %d is of second %d", n, e.Time.Unix())
		}
	}
}
