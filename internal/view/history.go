package view

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/journal"
)

// historyVersion stands in every published history, as version does in a view.
const historyVersion = 1

// What is published stays small: every node keeps it in memory for every other.
const (
	historyParts  = 4
	historyPhases = 12   // of a part: an instance may be kept out again and again
	historySize   = 3000 // bytes
	historyText   = 160  // bytes of a reason
)

// History is what a node had to do with the last changes of roles, oldest first. The whole of it is in its journal.
type History struct {
	Version int            `json:"v"`
	Node    string         `json:"node"`
	At      time.Time      `json:"at"` // when it was published, by the clock of that node
	Parts   []journal.Part `json:"parts"`
	Older   bool           `json:"older,omitempty"` // its journal has more
}

// HistoryAttribute is the name of the private node attribute that holds a node's history.
func HistoryAttribute(resource string) string { return "pgbaton-history-" + resource }

// EncodeHistory is printable ASCII without line breaks, of as much of the last parts as there is room for.
func EncodeHistory(node string, at time.Time, parts []journal.Part) string {
	h := History{Version: historyVersion, Node: node, At: at.UTC().Truncate(time.Millisecond), Older: len(parts) > historyParts}
	for _, p := range parts[max(0, len(parts)-historyParts):] {
		h.Parts = append(h.Parts, brief(p))
		h.Older = h.Older || len(p.Phases) > historyPhases
	}
	for {
		b, _ := json.Marshal(h) // of strings, numbers and times: it cannot fail
		if value := ascii(b); len(value) <= historySize || !h.shorten() {
			return value
		}
	}
}

// shorten leaves out what is oldest: a part, or a phase of the last one. It reports whether there was something to leave out.
func (h *History) shorten() bool {
	h.Older = true
	switch {
	case len(h.Parts) > 1:
		h.Parts = h.Parts[1:]
	case len(h.Parts) == 1 && len(h.Parts[0].Phases) > 1:
		h.Parts[0].Phases = h.Parts[0].Phases[1:]
	default:
		return false
	}
	return true
}

// brief is a part with its last phases, times cut to milliseconds, and long reasons cut short.
func brief(p journal.Part) journal.Part {
	p.Phases = slices.Clone(p.Phases[max(0, len(p.Phases)-historyPhases):])
	for i := range p.Phases {
		f := &p.Phases[i]
		f.Ended, f.Duration, f.Reason = f.Ended.UTC().Truncate(time.Millisecond), float64(int64(f.Duration+0.5)), cut(f.Reason)
		if f.Outcome == "done" && f.Action == "promote" {
			f.Reason = "" // the proof
		}
	}
	p.Proof, p.Result, p.Kept, p.Note = cut(p.Proof), cut(p.Result), cut(p.Kept), cut(p.Note)
	return p
}

func cut(s string) string {
	if len(s) <= historyText {
		return s
	}
	return strings.ToValidUTF8(s[:historyText], "") + "..."
}

// DecodeHistory reads what EncodeHistory wrote.
func DecodeHistory(s string) (History, error) {
	var h History
	if err := json.Unmarshal([]byte(s), &h); err != nil {
		return h, fmt.Errorf("what a node published of its history cannot be read: %w", err)
	}
	if h.Version != historyVersion {
		return h, fmt.Errorf("a history of version %d, this release reads version %d: upgrade pgbaton on this node", h.Version, historyVersion)
	}
	h.Parts = slices.DeleteFunc(h.Parts, func(p journal.Part) bool { return len(p.Phases) == 0 })
	return h, nil
}
