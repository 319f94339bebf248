package console

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/journal"
)

// Ensure the command finds the one resource of a node, and says what there is when it cannot.
func TestResource(t *testing.T) {
	root := t.TempDir()
	if _, err := Resource(filepath.Join(root, "missing"), ""); err == nil || !strings.Contains(err.Error(), "no resource") {
		t.Errorf("nothing there: got %v", err)
	}
	mkdir(t, root, "pgsqld")
	if got, err := Resource(root, ""); err != nil || got != "pgsqld" {
		t.Errorf("one there: got %q, %v", got, err)
	}
	if _, err := Resource(root, "other"); err == nil || !strings.Contains(err.Error(), "pgsqld") {
		t.Errorf("another asked for: got %v, want an error that names pgsqld", err)
	}
	mkdir(t, root, "second")
	if _, err := Resource(root, ""); err == nil || !strings.Contains(err.Error(), "--resource") {
		t.Errorf("two there: got %v, want an error that names --resource", err)
	}
	if got, err := Resource(root, "second"); err != nil || got != "second" {
		t.Errorf("second asked for: got %q, %v", got, err)
	}
}

// Ensure that the history keeps to 80 columns and leaves out no reason and no proof.
func TestHistory(t *testing.T) {
	at := time.Date(2026, 11, 23, 8, 0, 0, 0, time.Local)
	var b bytes.Buffer
	History(&b, []journal.Event{
		{
			Time: at, Node: "n1", Action: "demote", Change: "handover from n1 to n2", Outcome: "done", Duration: 131,
			Details: map[string]string{"note": "shutdown checkpoint 0/7000028..0/70000A0 (crc 9ab01234) of timeline 3, left by n1"},
		},
		{
			Time: at.Add(time.Second), Node: "n2", Action: "pre-promote", Change: "handover from n1 to n2", Outcome: "refused",
			Reason: "n2 lacks the last 120 bytes of WAL: it ends at 0/7000028, but the shutdown checkpoint ends at 0/70000A0",
		},
	})
	got := b.String()
	for line := range strings.Lines(got) {
		if len(strings.TrimRight(line, "\n")) > 80 {
			t.Errorf("longer than 80 columns: %q", line)
		}
	}
	flat := strings.Join(strings.Fields(got), " ")
	for _, want := range []string{"handover from n1 to n2", "0/7000028..0/70000A0 (crc 9ab01234) of timeline 3, left by n1", "refused", "n2 lacks the last 120 bytes of WAL: it ends at"} {
		if !strings.Contains(flat, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	if strings.Count(got, "handover from n1 to n2") != 1 {
		t.Errorf("one change of roles should be one paragraph:\n%s", got)
	}
}

func mkdir(t *testing.T, elem ...string) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(elem...), 0o755); err != nil {
		t.Fatal(err)
	}
}
