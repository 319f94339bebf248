package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// stage prints for a person, in 80 columns; colours only on a terminal, and not if NO_COLOR is set (no-color.org).
type stage struct {
	mu     sync.Mutex
	w      io.Writer
	colour bool
	number int
}

const columns = 80

func newStage(f *os.File) *stage {
	fi, err := f.Stat()
	terminal := err == nil && fi.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	return &stage{w: f, colour: terminal && os.Getenv("NO_COLOR") == ""}
}

const (
	bold, dim, red, green, yellow = "1", "2", "31", "32", "33"
)

func (s *stage) paint(code, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// Write is for the lab's own lines.
func (s *stage) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for line := range strings.Lines(string(p)) {
		for _, part := range fold(strings.TrimRight(line, "\n"), columns-2) {
			fmt.Fprintln(s.w, "  "+s.paint(dim, part))
		}
	}
	return len(p), nil
}

// title opens a part; command is what an operator typed to start it.
func (s *stage) title(text, command string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number++
	fmt.Fprintf(s.w, "\n%s\n", s.paint(bold, fmt.Sprintf("%d. %s", s.number, text)))
	if command != "" {
		fmt.Fprintln(s.w, "   "+s.paint(dim, command))
	}
}

// line is something that somebody did.
func (s *stage) line(at time.Duration, who, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	const indent = 20
	code := ""
	switch {
	case strings.HasPrefix(text, "refuses"), strings.HasPrefix(text, "calls"), strings.HasPrefix(text, "warn"):
		code = yellow
	case strings.HasPrefix(text, "error"):
		code = red
	}
	for i, part := range fold(text, columns-indent) {
		if code != "" {
			part = s.paint(code, part)
		}
		if i == 0 {
			fmt.Fprintf(s.w, "  %s  %-8s %s\n", s.paint(dim, fmt.Sprintf("%7.3f", at.Seconds())), who, part)
			continue
		}
		fmt.Fprintf(s.w, "%*s%s\n", indent, "", part)
	}
}

func (s *stage) rule() { s.plain(strings.Repeat("-", columns-4)) }

func (s *stage) fact(name, value string) { s.plain(fmt.Sprintf("%-28s %s", name, value)) }

func (s *stage) plain(text string) { s.coloured("", text) }

func (s *stage) good(text string) { s.coloured(green, text) }

func (s *stage) bad(text string) { s.coloured(red, "NOT AS IT SHOULD BE: "+text) }

func (s *stage) coloured(code, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, part := range fold(text, columns-2) {
		if code != "" {
			part = s.paint(code, part)
		}
		fmt.Fprintln(s.w, "  "+part)
	}
}

// fold breaks text at spaces into lines of at most width characters, as far as its words allow. The spaces it begins
// with are kept.
func fold(text string, width int) []string {
	var out []string
	for len(text) > width {
		at := strings.LastIndexByte(text[:width+1], ' ')
		if strings.TrimSpace(text[:max(at, 0)]) == "" {
			break // a word longer than a line
		}
		out = append(out, strings.TrimRight(text[:at], " "))
		text = strings.TrimLeft(text[at:], " ")
	}
	return append(out, text)
}
