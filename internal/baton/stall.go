package baton

import (
	"fmt"
	"time"

	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

const (
	// HungAfter is how long the very same commit must not have ended, on a server that has written no WAL meanwhile, to call
	// the server hung: longer than a disk is silent when a path to it is switched, or a checkpoint floods it.
	HungAfter = 30 * time.Second
	// stallLooks is how often that must have been seen.
	stallLooks = 5
	// stallGap is how far two looks may be apart: what lies between two that are further apart nobody knows.
	stallGap = 20 * time.Second
)

// Evidence is what one look at a primary found, of which a write has not ended in time: who waits, and how far the server
// is. Slow is not dead: whoever waits for a lock, for a synchronous standby or for a processor is no evidence.
type Evidence struct {
	At       time.Time
	PID      int        // who waits, for WAL to be written
	Flushed  pgdisk.LSN // how far the server has flushed its WAL, 0 if it cannot be asked
	Switches uint64     // how often the kernel has scheduled PID, 0 if that is not looked at: the same means one and the same wait
	What     string     // for the log
	// For is how long it had waited already when it was first looked at.
	For time.Duration
}

// Stall is a primary on which no commit ends, as far as it was seen. Nil: none that is known.
type Stall struct {
	Since    time.Time  `json:"since"`
	Last     time.Time  `json:"last"`
	Looks    int        `json:"looks"`
	PID      int        `json:"pid"`
	Flushed  pgdisk.LSN `json:"flushed,omitempty"`
	Switches uint64     `json:"switches,omitempty"`
	What     string     `json:"what"`
}

// Add counts one more look. Whatever is other than it was is progress, however slow, and begins anew; no evidence ends it.
func (s *Stall) Add(e *Evidence) *Stall {
	if e == nil {
		return nil
	}
	if s == nil || s.PID != e.PID || s.Flushed != e.Flushed || s.Switches != e.Switches || e.At.Sub(s.Last) > stallGap {
		return &Stall{Since: e.At.Add(-e.For), Last: e.At, Looks: 1, PID: e.PID, Flushed: e.Flushed, Switches: e.Switches, What: e.What}
	}
	next := *s
	next.Last, next.What = e.At, e.What
	next.Looks++
	return &next
}

// Hung reports whether the server is to be given up: it does not serve, and waiting longer would not help.
func (s *Stall) Hung() bool {
	return s != nil && s.Looks >= stallLooks && s.Last.Sub(s.Since) >= HungAfter
}

func (s *Stall) String() string {
	return fmt.Sprintf("no commit has ended for %d s: %s", int(s.Last.Sub(s.Since).Seconds()), s.What)
}
