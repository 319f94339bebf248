package baton_test

import (
	"slices"
	"strings"

	"github.com/pgbaton/pgbaton/internal/baton"
)

// judge holds a promotion that is about to happen against the truth.
func (w *world) judge(n *sim, q baton.Question, v baton.Verdict) {
	stored, live, effective, there := 0, false, false, false
	for _, o := range w.nodes {
		if slices.ContainsFunc(o.claims, func(c baton.Claim) bool { return c.Nonce == q.Challenge.Nonce }) {
			stored++
		}
	}
	if need := baton.Quorum(len(w.nodes)); stored < need {
		w.violated("%s is promoted with its claim on %d disks of %d, %d needed", n.name, stored, len(w.nodes), need)
	}
	for _, b := range q.Bulletins {
		if b.Answer == nil || b.Answer.Challenge != q.Challenge.Nonce {
			continue
		}
		live = live || w.node(b.Node).saw == w.last
		there = there || w.there[b.Node] && !w.node(b.Node).dead // what that one has, nobody gets
		effective = effective || slices.ContainsFunc(b.Claims, func(c baton.Claim) bool { return c.State == baton.Effective && c.CRC == w.last })
		if o := w.node(b.Node); v.Note == nil && o != n && !o.dead && common(o.log, w.truth) == len(o.log) && common(n.log, w.truth) < len(o.log) {
			w.violated("%s is elected with %d records of the last primary, %s answered and has %d", n.name, common(n.log, w.truth), o.name, len(o.log))
		}
	}
	has := w.last == 0 || slices.ContainsFunc(n.log, func(r rec) bool { return r.id == w.last })
	switch {
	case v.Note != nil && !slices.Equal(n.log, w.truth):
		w.violated("%s is promoted by the note %s, but has %d of %d records of the last primary", n.name, v.Note.Nonce, common(n.log, w.truth), len(w.truth))
	case v.Note == nil && !live && !has:
		w.violated("cold start: %s is elected without the timeline that was started last (record %d)", n.name, w.last)
	case v.Note == nil && !there && common(n.log, w.truth) < w.acked:
		w.violated("%s is elected with %d of %d records, and nobody who answered was there when the last primary acknowledged the last of them", n.name, common(n.log, w.truth), w.acked)
	case v.Note == nil && effective && common(n.log, w.truth) < len(n.log):
		w.violated("%s is elected, but has diverged from the last primary: %d of its %d records are common, and those who answered know it", n.name, common(n.log, w.truth), len(n.log))
	}
}

// common counts the records that two logs share from the start.
func common(a, b []rec) int {
	n := 0
	for n < len(a) && n < len(b) && a[n].id == b[n].id {
		n++
	}
	return n
}

// noteStillTrue holds what any quorum of disks would believe against the truth: a note that is usable must be the end of
// all that was ever written. Of two nodes one alone believes only in what it was there for: what it makes of that, judge sees.
func (w *world) noteStillTrue() {
	need := max(2, baton.Quorum(len(w.nodes)))
	for set := range 1 << len(w.nodes) {
		var l []baton.Bulletin
		var who []string
		for i, n := range w.nodes {
			if set&(1<<i) != 0 {
				l = append(l, baton.Bulletin{Node: n.name, Note: n.note, Claims: n.claims})
				who = append(who, n.name)
			}
		}
		if len(l) != need {
			continue
		}
		note, err := baton.Gather(l, "").Usable("")
		end := len(w.truth)
		if err == nil && (note.End != lsn(end) || note.CRC != w.truth[end-1].id) {
			w.violated("%s believe in the note %s of %s, which ends at %s, but the last primary ended at %s", strings.Join(who, " and "), note.Nonce, note.Node, note.End, lsn(end))
		}
	}
}
