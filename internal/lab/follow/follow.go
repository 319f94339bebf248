// Package follow reads what the agents of a lab write to their logs, while they write it: the demo shows it, the
// benchmark measures with it.
package follow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// Line is one fact in the log of an agent.
type Line struct {
	Time  time.Time // to the millisecond; the lab's nodes have one clock
	Node  string
	Level string // INFO, WARN, ERROR
	Msg   string
	Attrs map[string]string
}

// Follower collects the lines that all nodes wrote since it was made.
type Follower struct {
	mu    sync.Mutex
	lines []Line
	fresh chan struct{} // closed and made anew when lines come in
	stop  context.CancelFunc
	done  chan struct{}
}

// pollEvery is how often the logs are looked at. The demo acts on what they say.
const pollEvery = time.Millisecond

// Start follows the logs of a lab's agents from now on, until Close.
func Start(l *lab.Lab) *Follower {
	ctx, cancel := context.WithCancel(context.Background())
	f := &Follower{fresh: make(chan struct{}), stop: cancel, done: make(chan struct{})}
	var tails []*tail
	for _, n := range l.Names {
		t := &tail{node: n, path: filepath.Join(l.Dir, "nodes", n, "log", "pgbaton", lab.Resource+".log")}
		if fi, err := os.Stat(t.path); err == nil {
			t.offset = fi.Size()
		}
		tails = append(tails, t)
	}
	go f.loop(ctx, tails)
	return f
}

// Close ends the following.
func (f *Follower) Close() {
	f.stop()
	<-f.done
}

// Count is the number of lines so far: where to go on with From and Await.
func (f *Follower) Count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.lines)
}

// From returns the lines from a number on, in the order of their times as far as they came in together.
func (f *Follower) From(n int) []Line {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.lines[n:])
}

// Await waits for a line from number n on for which ok is true. The error says what was waited for.
func (f *Follower) Await(ctx context.Context, n int, what string, ok func(Line) bool) (Line, error) {
	for {
		f.mu.Lock()
		lines, fresh := f.lines[n:], f.fresh
		f.mu.Unlock()
		for _, l := range lines {
			if ok(l) {
				return l, nil
			}
		}
		n += len(lines)
		select {
		case <-fresh:
		case <-ctx.Done():
			return Line{}, fmt.Errorf("waiting in the agents' logs for %s: %w", what, ctx.Err())
		}
	}
}

// Fresh is closed when there are more lines than Count said before.
func (f *Follower) Fresh() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fresh
}

func (f *Follower) loop(ctx context.Context, tails []*tail) {
	defer close(f.done)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		var got []Line
		for _, t := range tails {
			got = append(got, t.read()...)
		}
		if len(got) > 0 {
			slices.SortStableFunc(got, func(a, b Line) int { return a.Time.Compare(b.Time) })
			f.mu.Lock()
			f.lines = append(f.lines, got...)
			close(f.fresh)
			f.fresh = make(chan struct{})
			f.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// tail is one file that grows.
type tail struct {
	node   string
	path   string
	offset int64
	rest   string // a line that has not ended yet
}

func (t *tail) read() []Line {
	fi, err := os.Stat(t.path)
	if err != nil || fi.Size() == t.offset {
		if errors.Is(err, fs.ErrNotExist) {
			t.offset = 0
		}
		return nil
	}
	file, err := os.Open(t.path)
	if err != nil {
		return nil
	}
	defer file.Close()
	b, err := io.ReadAll(io.NewSectionReader(file, t.offset, fi.Size()-t.offset))
	if err != nil {
		return nil
	}
	t.offset += int64(len(b))
	t.rest += string(b)
	var out []Line
	for {
		line, rest, ok := strings.Cut(t.rest, "\n")
		if !ok {
			return out
		}
		t.rest = rest
		if l, ok := Parse(line); ok {
			l.Node = t.node
			out = append(out, l)
		}
	}
}

// Parse reads one line in the format of log/slog's TextHandler: key=value, values that need it quoted as Go strings.
func Parse(s string) (Line, bool) {
	l := Line{Attrs: map[string]string{}}
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimLeft(s, " ") {
		key, rest, ok := strings.Cut(s, "=")
		if !ok {
			return l, false
		}
		value := ""
		if strings.HasPrefix(rest, `"`) {
			quoted, err := strconv.QuotedPrefix(rest)
			if err != nil {
				return l, false
			}
			value, err = strconv.Unquote(quoted)
			if err != nil {
				return l, false
			}
			s = rest[len(quoted):]
		} else {
			value, s, _ = strings.Cut(rest, " ")
		}
		switch key {
		case "time":
			at, err := time.Parse(time.RFC3339Nano, value)
			if err != nil {
				return l, false
			}
			l.Time = at
		case "level":
			l.Level = value
		case "msg":
			l.Msg = value
		case "node":
			l.Node = value
		default:
			l.Attrs[key] = value
		}
	}
	return l, l.Msg != "" && !l.Time.IsZero()
}
