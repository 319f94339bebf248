package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/pgbaton/pgbaton/internal/durable"
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
	// NoteID and ClaimID are the nonces of the note and of the claim that the action was about: they tell which events of
	// different nodes belong to the same change.
	NoteID  string `json:"note_id,omitempty"`
	ClaimID string `json:"claim_id,omitempty"`
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
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, info.Size()-1); err == nil && last[0] != '\n' {
			line = append([]byte{'\n'}, line...) // what a crash cut short must not take this one along
		}
	}
	if _, err := f.Write(line); err != nil {
		return err
	}
	if !sync {
		return nil
	}
	if err := f.Sync(); err != nil || info.Size() > 0 {
		return err
	}
	return durable.SyncDirs(s.Dir) // a new file: its name, too
}

// LastEvents reads the end of the journal, oldest first: what a person asks for first, at a bounded cost.
func (s Store) LastEvents() ([]Event, error) {
	f, err := os.Open(s.journalPath())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const part = 256 << 10
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	from := max(0, end-part)
	data, err := io.ReadAll(io.NewSectionReader(f, from, end-from))
	if err != nil {
		return nil, err
	}
	if from > 0 {
		_, data, _ = bytes.Cut(data, []byte{'\n'}) // of the first one there is only the end
	}
	return parse(data), nil
}

func parse(data []byte) (list []Event) {
	for line := range bytes.Lines(data) {
		var e Event
		if json.Unmarshal(line, &e) == nil {
			list = append(list, e)
		}
	}
	return list
}

// JournalEnd is the size of the journal and when it was written to last; 0 if there is none.
func (s Store) JournalEnd() (int64, time.Time) {
	info, err := os.Stat(s.journalPath())
	if err != nil {
		return 0, time.Time{}
	}
	return info.Size(), info.ModTime()
}

// Flush flushes what was appended without.
func (s Store) Flush() error {
	f, err := os.Open(s.journalPath())
	if err != nil {
		return err
	}
	defer f.Close()
	return errors.Join(f.Sync(), durable.SyncDirs(s.Dir))
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
		list = append(list, parse(data)...)
	}
	return list, nil
}
