package view

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/internal/journal"
)

// historyVersion stands in every published history, as version does in a view.
const historyVersion = 1

// What is published stays small: every node keeps it in memory for every other.
const (
	historyParts = 4
	historySize  = 3000 // bytes
	historyText  = 160  // bytes of a reason
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

// EncodeHistory is printable ASCII without line breaks, of as many of the last parts as there is room for.
func EncodeHistory(node string, at time.Time, parts []journal.Part) string {
	h := History{Version: historyVersion, Node: node, At: at.UTC().Truncate(time.Millisecond)}
	for n := max(0, len(parts)-historyParts); ; n++ {
		h.Parts, h.Older = nil, n > 0
		for _, p := range parts[n:] {
			h.Parts = append(h.Parts, brief(p))
		}
		b, _ := json.Marshal(h) // of strings, numbers and times: it cannot fail
		if value := ascii(b); len(value) <= historySize || n >= len(parts)-1 {
			return value
		}
	}
}

// brief is a part with times cut to milliseconds and long reasons cut short.
func brief(p journal.Part) journal.Part {
	p.Phases = slices.Clone(p.Phases)
	if len(p.Phases) > 12 {
		p.Phases = p.Phases[len(p.Phases)-12:] // an instance that was kept out again and again
	}
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
	return string([]rune(s[:historyText])) + "..."
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
