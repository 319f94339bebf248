package view_test

import (
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/postgres"
	"github.com/pgbaton/pgbaton/internal/view"
)

// Ensure a view survives the way through an attribute, whatever a standby calls itself, and that another version is not
// guessed at.
func TestView(t *testing.T) {
	at := time.Date(2026, 11, 25, 4, 0, 0, 7_000_000, time.UTC)
	o := postgres.Overview{Primary: true, Timeline: 3, LSN: "0/3029C20", Standbys: []postgres.StandbyOverview{{Name: "n2 \"ö\"\n😀", State: "streaming", Unflush: -1}}}
	s, err := view.Encode("n1", at, o)
	if err != nil {
		t.Fatal(err)
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }); i >= 0 {
		t.Errorf("%q: not printable ASCII at %d", s, i)
	}
	v, err := view.Decode(s)
	if err != nil {
		t.Fatal(err)
	}
	if v.Node != "n1" || !v.At.Equal(at) || v.LSN != o.LSN || len(v.Standbys) != 1 || v.Standbys[0] != o.Standbys[0] {
		t.Errorf("got %+v, want %+v at %s", v, o, at)
	}
	for _, bad := range []string{"", "{", `{"v":2,"node":"n1"}`} {
		if _, err := view.Decode(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
