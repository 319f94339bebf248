package postgres

import (
	"testing"
)

// Ensure a primary says of itself what the operator's command shows.
func TestOverview(t *testing.T) {
	i := testInstance(t)
	if _, err := i.Spawn(); err != nil {
		t.Fatal(err)
	}
	sess := connect(t, i)
	o, err := sess.Overview(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !o.Primary || o.Timeline != 1 || o.LSN == "" || o.MaxSent == 0 || len(o.Standbys) != 0 {
		t.Errorf("got %+v, want a primary on timeline 1 without standbys", o)
	}
	other := connect(t, i)
	for _, sql := range []string{"begin", "select 1"} {
		if _, err := other.Rows(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the open transaction to show its age", func() bool {
		o, err := sess.Overview(t.Context())
		return err == nil && o.OldestX > 0.002
	})
	other.Close()
}

// Ensure a standby says of itself what the operator's command shows.
func TestOverview_Standby(t *testing.T) {
	i := testInstance(t)
	i.StartArgs = append(i.StartArgs, "-c", "primary_conninfo=host=/nowhere application_name=n1")
	if err := i.SetStandbySignal(); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Spawn(); err != nil {
		t.Fatal(err)
	}
	sess := connect(t, i)
	if _, err := sess.Rows(t.Context(), "select pg_catalog.pg_wal_replay_pause()"); err != nil {
		t.Fatal(err)
	}
	o, err := sess.Overview(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if o.Primary || o.Streaming || !o.Paused || o.Timeline != 1 || o.LSN == "0/0" || o.MaxSent == 0 {
		t.Errorf("got %+v, want a paused standby on timeline 1 that does not stream", o)
	}
}
