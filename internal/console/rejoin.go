package console

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/view"
)

// Rejoin lets the instance of this node back into the cluster.
type Rejoin struct {
	Node, Resource string
	Params         map[string]string // of the resource
	// Needs is empty if there is nothing to do; Why then says how the instance stands.
	Needs *view.Outside
	Why   string
}

// PrepareRejoin finds out whether the instance of this node is kept out, which outside tells.
func (w World) PrepareRejoin(ctx context.Context, asked string, outside func(r *Rejoin) (*view.Outside, error)) (*Rejoin, error) {
	s, err := w.Take(ctx, asked)
	if err != nil {
		return nil, err
	}
	r := &Rejoin{Node: s.Here, Resource: s.Resource, Params: s.Config.Parameters(s.Resource)}
	in, ok := s.Instance(s.Here)
	if !ok || !in.Active {
		return nil, fail(Refused, "Pacemaker runs no instance of %s on %s, so that nothing can rejoin: is the node in standby, banned, or has it failed there? pgbaton status tells", s.Clone, s.Here)
	}
	if r.Needs, err = outside(r); err != nil {
		return nil, &Error{Code: Refused, Text: fmt.Sprintf("what keeps the instance of %s out cannot be read: %v", s.Here, err), Err: err}
	}
	if r.Needs != nil {
		return r, nil
	}
	v := s.Views[s.Here]
	switch {
	case in.Role == pacemaker.RolePromoted || v.Primary: // right after a reload Pacemaker does not know it until the next monitor
		r.Why = "it is the primary"
	case s.LocalErr != nil:
		return nil, fail(Attention, "the instance of %s is not kept out, but its server does not answer (%v): look at its log; pgbaton status tells more", s.Here, s.LocalErr)
	case v.Streaming:
		r.Why = "it is a standby and streams"
	default:
		return nil, fail(Attention, "the instance of %s is not kept out, and runs as a standby, but does not stream: see its log and its primary_conninfo; pgbaton status tells more", s.Here)
	}
	return r, nil
}

// Possible says why a rewind is not, with what is to be done instead; nil if it is.
func (r *Rejoin) Possible() error {
	switch r.Needs.Verdict {
	case baton.Rewind:
		return nil
	case baton.Await:
		return fail(Refused, "nothing was changed: there is no primary that %s could be compared with. Let the other nodes come back; or, if what %s has is what counts: pgbaton promote --accept-data-loss %s", r.Node, r.Node, r.Node)
	}
	return fail(Refused, "nothing was changed: pg_rewind is no help, %s must be made anew by the commands above", r.Node)
}

// Text says why the instance is out, what it has that the cluster has not, and what will be done.
func (r *Rejoin) Text(w io.Writer, conninfo string) {
	o := r.Needs
	fmt.Fprintf(w, "%s on %s is kept out\n", r.Resource, r.Node)
	line := func(label, text string) {
		if text != "" {
			indented(w, fmt.Sprintf("  %-10s", label), 12, text)
		}
	}
	line("why", o.Reason)
	switch {
	case o.Begun:
		line("", "a rewind of it was begun and cut short: what is in its data directory must not be started")
	case o.Fork != 0:
		text := fmt.Sprintf("%d bytes of WAL, from %s of timeline %d to %s of timeline %d", o.Bytes, o.Fork, o.Timeline, o.Ends.LSN, o.Ends.Timeline)
		switch {
		case o.Transactions > 0:
			text += fmt.Sprintf(", committed transactions: %d", o.Transactions)
		case o.Transactions == 0:
			text += ", committed transactions: none"
		}
		line("it has", text+", which the cluster has not")
		if o.Transactions > 0 {
			line("to see", "$ "+o.Waldump)
		}
	}
	line("its agent", o.Doing)
	fmt.Fprintln(w)
	switch {
	case o.Busy:
		fmt.Fprintln(w, "A rewind is under way.")
	case o.Verdict == baton.Rewind:
		keep := fmt.Sprintf("the WAL that is taken away, up to %d MB (rewind_keep), is kept in %s", o.Keeps, filepath.Join(o.StateDir, "lost-..."))
		if o.Keeps == 0 {
			keep = "the WAL that is taken away is thrown away (rewind_keep is 0)"
		}
		fmt.Fprintln(w, "What will be done")
		for n, step := range []string{
			"the primary is asked whether a rewind is possible: " + conninfo,
			keep + "; the node's own configuration is put aside, and back afterwards",
			"pg_rewind takes out of the data directory what the cluster has not; what changed since comes from the primary",
			"the server is started as a standby, and may be promoted once it streams",
		} {
			indented(w, fmt.Sprintf("  %d. ", n+1), 5, step)
		}
	case o.Verdict == baton.Clone:
		fmt.Fprintf(w, "To make it anew, as root on %s; what it has now is gone then:\n", r.Node)
		for _, c := range o.Clone {
			fmt.Fprintf(w, "  %s\n", c)
		}
	}
}

// Joined waits until the server of this node streams, after it was let in.
func (w World) Joined(ctx context.Context, params map[string]string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	said := "it does not answer"
	for {
		o, err := w.Ask(ctx, params)
		switch {
		case err == nil && o.Streaming:
			return nil
		case err == nil:
			said = "it does not stream"
		case ctx.Err() == nil:
			said = "it does not answer: " + err.Error()
		}
		select {
		case <-ctx.Done():
			return fail(Attention, "the server was rewound and started, but %s after %s: see its log; pgbaton status tells more", said, limit)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// ShowLost is the command that shows the transactions which the last rewind of this node took away, by its journal; "" if
// they were not kept.
func (w World) ShowLost(resource string) string {
	events := w.Journal(resource)
	for n := len(events) - 1; n >= 0; n-- {
		if events[n].Outcome == journal.Rewound {
			return events[n].Details["waldump"]
		}
	}
	return ""
}
