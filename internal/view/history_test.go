package view_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/view"
)

// Ensure what a node publishes of its history is small and printable, holds the last changes, and says that there is more.
func TestHistory(t *testing.T) {
	at := time.Date(2026, 11, 25, 4, 0, 0, 7_000_000, time.UTC)
	lost := int64(120)
	var parts []journal.Part
	for n := range 9 {
		parts = append(parts, journal.Part{
			IDs: []string{fmt.Sprint("note", n)}, Kind: "takeover", From: "n1", To: "n2", Lost: &lost,
			Phases: []journal.Phase{{Action: "promote", Ended: at, Duration: 12, Outcome: "refused", Reason: strings.Repeat("ö\n", 50+100*n)}},
		})
	}
	s := view.EncodeHistory("n1", at, parts)
	if i := strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }); i >= 0 {
		t.Errorf("%q: not printable ASCII at %d", s, i)
	}
	if len(s) > 3000 {
		t.Errorf("%d bytes, want no more than 3000", len(s))
	}
	h, err := view.DecodeHistory(s)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(h.Parts); n < 2 || n > 4 || h.Parts[n-1].IDs[0] != "note8" || !h.Older || h.Node != "n1" || *h.Parts[0].Lost != lost {
		t.Errorf("got %+v", h)
	}
	// One that was kept out again and again, with a long reason each time.
	var long journal.Part
	for n := range 40 {
		long.Phases = append(long.Phases, journal.Phase{Action: fmt.Sprint("start", n), Ended: at, Outcome: "kept out", Reason: strings.Repeat("ö", 200)})
	}
	s = view.EncodeHistory("n1", at, []journal.Part{long})
	if h, err = view.DecodeHistory(s); err != nil || len(s) > 3000 || len(h.Parts) != 1 || !h.Older {
		t.Fatalf("%d bytes, %+v, %v", len(s), h, err)
	}
	if f := h.Parts[0].Phases; len(f) < 2 || f[len(f)-1].Action != "start39" {
		t.Errorf("of 40 phases: %+v", f)
	}
	short := parts[:1]
	short[0].Phases[0].Reason = "short"
	h, err = view.DecodeHistory(view.EncodeHistory("n1", at, short))
	if err != nil || !reflect.DeepEqual(h.Parts, short) || h.Older {
		t.Errorf("got %+v, %v; want %+v", h, err, short)
	}
	for _, bad := range []string{"", "{", `{"v":2,"node":"n1"}`} {
		if _, err := view.DecodeHistory(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
