package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
)

func testStore(t *testing.T) Store {
	return Store{Dir: filepath.Join(t.TempDir(), "not there", "pgsqld")}
}

func testState() State {
	return State{
		Note: &baton.Note{
			Kind: baton.Clean, SystemID: 1<<63 + 1, Timeline: 7, Start: 0x1_0000_0028, End: 0x1_0000_00A0, CRC: 0xdeadbeef, Node: "n1", Nonce: "0123456789abcdef",
		},
		Claims:       []baton.Claim{{Seq: 3, Timeline: 8, Parent: 7, Switch: 0x1_0000_00A0, Node: "n2", Nonce: "x", State: baton.Claimed}},
		Participants: []string{"n1", "n2"},
		Refusal:      &baton.Refusal{Note: "x", Claim: 3, Reason: "lacks WAL"},
		Instance:     &InstanceRecord{DataDir: "/srv/pg data", Owner: "postgres", UID: 111},
	}
}

// Ensure what was saved is read back, all of it, and that a node without a state has an empty one.
func TestStore(t *testing.T) {
	s := testStore(t)
	st, err := s.Load()
	if err != nil || !reflect.DeepEqual(st, State{Version: stateVersion}) {
		t.Errorf("no state: %+v, %v", st, err)
	}
	want := testState()
	for range 2 {
		if err := s.Save(want); err != nil {
			t.Fatal(err)
		}
	}
	want.Version = stateVersion
	got, err := s.Load()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	entries, err := os.ReadDir(s.Dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("files %v, %v; want state.json alone", entries, err)
	}
}

// Ensure a state that cannot be understood is an error that names the file, and is never taken for an empty one: a node
// that has forgotten its claims must not be promoted.
func TestStore_Damaged(t *testing.T) {
	for name, content := range map[string]string{
		"empty":          "",
		"cut off":        `{"version":1,"note":{`,
		"not JSON":       "\x00\x00\x00",
		"no version":     `{"participants":["n1"]}`,
		"of the future":  `{"version":2}`,
		"wrong type":     `{"version":1,"claims":"x"}`,
		"two states":     `{"version":1}{"version":1}`,
		"null":           `null`,
		"negative claim": `{"version":1,"claims":[{"Seq":-1}]}`,
	} {
		s := testStore(t)
		if err := os.MkdirAll(s.Dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.path(), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if st, err := s.Load(); err == nil || !strings.Contains(err.Error(), s.path()) {
			t.Errorf("%s: %+v, %v; want an error that names %s", name, st, err, s.path())
		}
	}
	s := testStore(t)
	if err := os.MkdirAll(s.path(), 0o755); err != nil { // a directory in its place
		t.Fatal(err)
	}
	if _, err := s.Load(); err == nil {
		t.Error("a directory was read as a state")
	}
}

// Ensure a save that fails, for want of space, leaves the old state: it is replaced as a whole or not at all.
func TestStore_NoSpace(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Fatalf("a small file system (run these tests as root): %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	s := Store{Dir: filepath.Join(dir, "pgsqld")}
	want := testState()
	want.Version = stateVersion
	if err := s.Save(want); err != nil {
		t.Fatal(err)
	}
	big := want
	for n := range 5000 {
		big.Participants = append(big.Participants, fmt.Sprint("node", n))
	}
	if err := s.Save(big); err == nil {
		t.Fatal("5000 nodes found room in 16 kB")
	}
	if got, err := s.Load(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("after a failed save: %+v, %v; want what was there", got, err)
	}
	if err := s.Save(want); err != nil {
		t.Errorf("a smaller one does not fit any more: %v", err)
	}
}

// Ensure events are read in their order, one that a crash cut short is passed over, and the next one is not lost with it.
func TestJournal(t *testing.T) {
	s := testStore(t)
	if list, err := s.Events(); len(list) != 0 || err != nil {
		t.Errorf("no journal: %v, %v", list, err)
	}
	event := func(n int) Event {
		return Event{
			Time: time.Date(2026, 1, 2, 3, 4, n, 0, time.UTC), Node: "n1", Action: "promote", Kind: "handover", From: "n2", To: "n1", Outcome: "done",
			Reason: "line\nbreak", Duration: 1.5, Details: map[string]string{"switch_point": "0/1"},
		}
	}
	for n := range 3 {
		if err := s.Append(event(n), n == 2); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(s.journalPath())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(s.journalPath(), info.Size()-10); err != nil {
		t.Fatal(err)
	}
	for n := 3; n < 5; n++ {
		if err := s.Append(event(n), true); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Events()
	if err != nil {
		t.Fatal(err)
	}
	want := []Event{event(0), event(1), event(3), event(4)}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Ensure a long journal is cut, and that what it holds afterwards is the newest.
func TestJournal_Cut(t *testing.T) {
	s := testStore(t)
	reason := strings.Repeat("x", 64<<10)
	const events = 3*maxJournal/(64<<10) + 10
	for n := range events {
		if err := s.Append(Event{Node: fmt.Sprint(n), Reason: reason}, false); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.Events()
	if err != nil || len(list) == 0 || list[len(list)-1].Node != fmt.Sprint(events-1) {
		t.Fatalf("%d events, %v; want the last one to be %d", len(list), err, events-1)
	}
	var size int64
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			size += info.Size()
		}
	}
	if size > 2*maxJournal+1<<20 {
		t.Errorf("%d files of %d bytes in all, want at most two of %d", len(entries), size, maxJournal)
	}
	// Nothing is missing between the first and the last.
	first := 0
	if _, err := fmt.Sscan(list[0].Node, &first); err != nil {
		t.Fatal(err)
	}
	if len(list) != events-first {
		t.Errorf("%d events from %d to %d", len(list), first, events-1)
	}
}

// Ensure an event that is longer than a reader's buffer does not hide the others.
func TestJournal_LongLine(t *testing.T) {
	s := testStore(t)
	for n, reason := range []string{"a", strings.Repeat("x", 3<<20), "b"} {
		if err := s.Append(Event{Node: fmt.Sprint(n), Reason: reason}, false); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.Events()
	if err != nil || len(list) < 2 || list[len(list)-1].Reason != "b" {
		t.Errorf("%d events, %v; want the last one, too", len(list), err)
	}
}

func openJournal(t *testing.T, s Store) *os.File {
	t.Helper()
	f, err := os.OpenFile(s.journalPath(), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
