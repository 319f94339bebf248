package follow

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// Ensure that what log/slog writes is read back, awkward values too.
func TestParse(t *testing.T) {
	want := map[string]string{
		"change": "handover from n1 to n2", "ms": "12", "empty": "", "quote": `say "no"`, "equals": "a=b", "newline": "a\nb", "unicode": "é",
	}
	var b bytes.Buffer
	log := slog.New(slog.NewTextHandler(&b, nil)).With("node", "n1")
	args := []any{}
	for k, v := range want {
		args = append(args, k, v)
	}
	log.Warn("shutting the primary down", args...)
	got, ok := Parse(b.String())
	if !ok {
		t.Fatalf("not read: %s", b.String())
	}
	if got.Msg != "shutting the primary down" || got.Node != "n1" || got.Level != "WARN" || time.Since(got.Time) > time.Minute {
		t.Errorf("got %+v", got)
	}
	for k, v := range want {
		if got.Attrs[k] != v {
			t.Errorf("%s: got %q, want %q", k, got.Attrs[k], v)
		}
	}
	for _, bad := range []string{"", "nothing", `time=yesterday msg=x`, `time=2026-11-23T08:29:31Z msg="x`} {
		if l, ok := Parse(bad); ok {
			t.Errorf("%q: got %+v, want nothing", bad, l)
		}
	}
}

// Ensure that a follower sees only what is new, whole lines of it, and wakes who waits.
func TestFollow(t *testing.T) {
	l := &lab.Lab{Options: lab.Options{Dir: t.TempDir(), Names: []string{"n1", "n2"}}}
	path := func(node string) string {
		p := filepath.Join(l.Dir, "nodes", node, "log", "pgbaton", lab.Resource+".log")
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	add := func(p, s string) {
		f, err := os.OpenFile(p, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	add(path("n1"), "time=2026-11-23T08:00:00.000Z level=INFO msg=old node=n1\n")
	f := Start(l)
	defer f.Close()
	add(path("n2"), "time=2026-11-23T08:00:01.000Z level=INFO msg=first node=n2\ntime=2026-11-23T08:00:02.000Z level=INFO ")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if got, err := f.Await(ctx, 0, "the first line", func(Line) bool { return true }); err != nil || got.Msg != "first" || got.Node != "n2" {
		t.Fatalf("got %+v, %v", got, err)
	}
	add(path("n2"), "msg=\"in two parts\" node=n2\n")
	if got, err := f.Await(ctx, 1, "the second line", func(Line) bool { return true }); err != nil || got.Msg != "in two parts" {
		t.Fatalf("got %+v, %v", got, err)
	}
	if n := f.Count(); n != 2 {
		t.Errorf("got %d lines, want 2: %v", n, f.From(0))
	}
	over, end := context.WithTimeout(ctx, 10*time.Millisecond)
	defer end()
	if _, err := f.Await(over, 2, "what never comes", func(Line) bool { return true }); err == nil {
		t.Error("Await did not say that it waited in vain")
	}
}
