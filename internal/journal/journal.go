package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Event is one line of the journal: one action's part in one change of roles.
type Event struct {
	Time     time.Time         `json:"time"` // when the action ended
	Node     string            `json:"node"`
	Action   string            `json:"action"`           // demote, pre-promote, promote, …
	Change   string            `json:"change,omitempty"` // "handover from n1 to n2"
	Kind     string            `json:"kind,omitempty"`   // handover, takeover, restart in place, cold start, shutdown
	From     string            `json:"from,omitempty"`
	To       string            `json:"to,omitempty"`
	Outcome  string            `json:"outcome"` // done, refused, failed, called off
	Reason   string            `json:"reason,omitempty"`
	Duration float64           `json:"duration_ms"`
	Details  map[string]string `json:"details,omitempty"` // note, proof, switch_point, …
}

// maxJournal is where the journal is cut; the older half moves to journal.jsonl.1.
const maxJournal = 4 << 20

func (s Store) journalPath() string { return filepath.Join(s.Dir, "journal.jsonl") }

// Append adds an event. It is flushed to disk unless the caller is in the middle of an outage (sync false): the next
// flushed event takes it along.
func (s Store) Append(e Event, sync bool) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return err
	}
	if info, err := os.Stat(s.journalPath()); err == nil && info.Size() > maxJournal {
		if err := os.Rename(s.journalPath(), s.journalPath()+".1"); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(s.journalPath(), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	line = append(line, '\n')
	if info, err := f.Stat(); err == nil && info.Size() > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, info.Size()-1); err == nil && last[0] != '\n' {
			line = append([]byte{'\n'}, line...) // what a crash cut short must not take this one along
		}
	}
	if _, err := f.Write(line); err != nil {
		return err
	}
	if sync {
		return f.Sync()
	}
	return nil
}

// Events reads the journal, oldest first, with what was cut off it last. A line that a crash cut short is passed over.
func (s Store) Events() ([]Event, error) {
	var list []Event
	for _, path := range []string{s.journalPath() + ".1", s.journalPath()} {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return list, err
		}
		for line := range bytes.Lines(data) {
			var e Event
			if json.Unmarshal(line, &e) == nil {
				list = append(list, e)
			}
		}
	}
	return list, nil
}
