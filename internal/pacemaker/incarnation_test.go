package pacemaker

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Ensure a real process is found by its name, and another life of it is another
// incarnation.
func TestFindProcess(t *testing.T) {
	const name = "pgbaton-test-at" // 15 characters, as long as the kernel keeps
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), name+"trd")
	if err := os.Symlink(sleep, program); err != nil {
		t.Fatal(err)
	}
	if _, err := findProcess("/proc", name); !errors.Is(err, ErrNoAttrd) {
		t.Fatalf("before it runs: error %v", err)
	}
	cmd := exec.Command(program, "3600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	got, err := findProcess("/proc", name)
	if err != nil || got.PID != cmd.Process.Pid || got.Start == 0 {
		t.Errorf("got %v, %v; want pid %d", got, err, cmd.Process.Pid)
	}
	if !got.Alive() {
		t.Errorf("%v is not alive", got)
	}
	if other := (Incarnation{got.PID, got.Start + 1}); other.Alive() {
		t.Errorf("%v is alive", other)
	}
	if back, err := ParseIncarnation(got.String()); err != nil || back != got {
		t.Errorf("%v: written and read it is %v, %v", got, back, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if got.Alive() {
		t.Errorf("%v is alive after its end", got)
	}
	if got, err := findProcess("/proc", name); !errors.Is(err, ErrNoAttrd) {
		t.Errorf("after its end: %v, error %v", got, err)
	}
}

// Ensure names with spaces and parentheses do not shift the fields.
func TestParseStat(t *testing.T) {
	stat := "42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 10"
	comm, state, start, ok := parseStat([]byte(stat))
	if comm != "a) b (c" || state != "S" || start != 987654 || !ok {
		t.Errorf("got %q %q %d %v", comm, state, start, ok)
	}
	for _, bad := range []string{"", "42", "42 (x", "42 (x) S 1"} {
		if _, _, _, ok := parseStat([]byte(bad)); ok {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestParseIncarnation_Wrong(t *testing.T) {
	for _, s := range []string{"", "1", "1/", "/1", "0/1", "-1/1", "1/-1", "a/b", "1/2/3"} {
		if got, err := ParseIncarnation(s); err == nil {
			t.Errorf("%q: got %v, want an error", s, got)
		}
	}
}

func BenchmarkAlive(b *testing.B) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		b.Fatal(err)
	}
	_, _, start, _ := parseStat(stat)
	i := Incarnation{os.Getpid(), start}
	for b.Loop() {
		if !i.Alive() {
			b.Fatal("not alive")
		}
	}
}

func BenchmarkAttrdIncarnation(b *testing.B) {
	for b.Loop() {
		_, _ = AttrdIncarnation()
	}
}
