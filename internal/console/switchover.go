package console

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// The constraint of a handover ends by itself, so that nobody's death leaves one behind: the command may be killed, lose
// its terminal or its node at any moment. Pacemaker (since 2.0.3) looks again when it ends; by then the new primary's score
// is on top and the role stays. While the handover is not over the command prolongs it, which makes Pacemaker plan anew: a
// handover of ordinary length ends before that.
const (
	lifetime = 50 * time.Second
	prolong  = 20 * time.Second // left: time to prolong
)

const (
	watchEvery  = 100 * time.Millisecond
	staleLimit  = 20 * time.Second // for the next monitor
	planLimit   = 20 * time.Second // Pacemaker plans nothing
	deafLimit   = 30 * time.Second // Pacemaker does not answer here
	idleLimit   = 15 * time.Second // something else keeps the coordinator busy
	returnLimit = 5 * time.Second  // the others follow; some may only be asked by their next monitor
)

// rulePrefix begins the name of the rule in a constraint that this command made.
const rulePrefix = "pgbaton-move-"

func newRule(node string) string { return rulePrefix + node + "-" + nonce() }

// nonce tells one run of the command from all others.
func nonce() string {
	var b [4]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// ruleNode is the node on which the command ran that made a rule.
func ruleNode(rule string) string {
	name := strings.TrimPrefix(rule, rulePrefix)
	if i := strings.LastIndexByte(name, '-'); i > 0 {
		return name[:i]
	}
	return name
}

// Switchover is a handover that was prepared.
type Switchover struct {
	World
	Snap     *Snapshot
	From, To string
	Chosen   bool    // the target was chosen, not named
	Checks   []Check // the pre-flight

	rule string
	ends time.Time

	every, follow time.Duration // watchEvery and returnLimit, but in a test
}

// Prepare looks whether the role can be handed over, to the node that is named or else the best one. It changes nothing.
// The error is about what was asked for; what stands in the way is in the Checks.
func (w World) Prepare(ctx context.Context, resource, to string) (*Switchover, error) {
	snap, err := w.Take(ctx, resource)
	if err != nil {
		return nil, err
	}
	s := &Switchover{World: w, Snap: snap, From: snap.Primary(), To: to, Checks: snap.ClusterChecks(), every: watchEvery, follow: returnLimit}
	if to != "" {
		if err := snap.known(to); err != nil {
			return nil, err
		}
		if to == s.From {
			return nil, fail(Done, "%s is the primary already: nothing was changed", to)
		}
		s.Checks = append(s.Checks, snap.TargetChecks(to)...)
		return s, nil
	}
	if len(failures(s.Checks)) > 0 {
		return s, nil // no target would do
	}
	list := snap.Candidates()
	if s.To = best(list); s.To == "" {
		s.Checks = append(s.Checks, Check{Name: "target", Result: Failed, Text: "no other node can take the role"})
		for _, c := range list { // why none of them
			s.Checks = append(s.Checks, failures(c.Checks)...)
		}
		return s, nil
	}
	s.Chosen = true
	s.Checks = append(s.Checks, list[0].Checks...)
	return s, nil
}

// PrepareFresh is Prepare, but does not let the handover fail on what was published before it was called: it then waits for
// the next monitor to say so again. waiting is told what for, once.
func (w World) PrepareFresh(ctx context.Context, resource, to string, waiting func(string)) (*Switchover, error) {
	began := w.Now()
	for told := false; ; told = true {
		s, err := w.Prepare(ctx, resource, to)
		if err != nil || !s.stale(began) || w.Now().Sub(began) > staleLimit {
			return s, err
		}
		if !told {
			waiting(failures(s.Checks)[0].Text)
		}
		select {
		case <-ctx.Done():
			return nil, fail(Refused, "interrupted, nothing was changed")
		case <-time.After(5 * s.every):
		}
	}
}

// stale tells whether everything that stands in the way was published before then.
func (s *Switchover) stale(then time.Time) bool {
	bad := slices.DeleteFunc(failures(s.Checks), func(c Check) bool { return c.Name == "target" && s.To == "" && c.at.IsZero() && len(s.Checks) > 1 })
	return len(bad) > 0 && !slices.ContainsFunc(bad, func(c Check) bool { return c.at.IsZero() || !c.at.Before(then) })
}

// known tells whether a node is one of the cluster's.
func (s *Snapshot) known(node string) error {
	var names []string
	for _, n := range s.State.Nodes {
		names = append(names, n.Name)
	}
	if slices.Contains(names, node) {
		return nil
	}
	return fail(Refused, "there is no node %q in this cluster: its nodes are %s%s", node, strings.Join(names, ", "), didYouMean(node, names))
}

// Ready is nil if nothing stands in the way.
func (s *Switchover) Ready() error {
	bad := failures(s.Checks)
	switch {
	case len(bad) == 0:
		return nil
	case s.To == "":
		return fail(Refused, "no handover is possible now, nothing was changed: %s", bad[0].Text)
	}
	return fail(Refused, "no handover to %s now, nothing was changed: %s", s.To, bad[0].Text)
}

// Event is something that happened to the role, as it was seen from this node.
type Event struct {
	At   time.Time
	Node string
	Text string
}

// Outcome is how a handover ended.
type Outcome struct {
	Code     ExitCode
	Sentence string
	Do       string        // what to do now; "" if nothing
	Primary  string        // the primary now, "" if that is not known
	Outage   time.Duration // from the last look at which the old primary served to the first at which there was one
	Proof    string        // how the old primary ended
	Switch   string        // where the new timeline begins, and what that says
	Phases   string        // as this node's journal has them
	Left     string        // a constraint that still stands and what becomes of it
	Snapshot *Snapshot
}

// Run hands the role over and waits for the real end. It returns early when ctx ends: the handover then goes on by itself.
// tell gets what happens as it happens.
func (s *Switchover) Run(ctx context.Context, tell func(Event)) (Outcome, error) {
	now := func(node, format string, args ...any) { tell(Event{s.Now(), node, fmt.Sprintf(format, args...)}) }
	// What an earlier command left and has ended by itself is in the way of the name.
	for _, m := range s.Snap.Config.Moves(s.Snap.Resource) {
		if m.ID == pacemaker.PreferID(s.Snap.Clone) && m.Rule != "" && !m.InForce(s.Now()) {
			if err := pacemaker.Unprefer(ctx, s.World.Run, m.ID, m.Rule); err != nil {
				return Outcome{}, explain(err)
			}
			now(s.Snap.Here, "removed the constraint %s of an earlier move, which ended at %s", m.ID, m.Ends.Local().Format("15:04:05"))
		}
	}
	t := newTracker(s.Snap, s.From, s.To)
	s.rule, s.ends = newRule(s.Snap.Here), s.Now().Add(lifetime)
	err := pacemaker.Prefer(ctx, s.World.Run, s.Snap.Clone, s.To, s.rule, s.Snap.State.PromotedRoleName(), s.ends)
	if errors.Is(err, pacemaker.ErrMoveExists) {
		return Outcome{}, fail(Refused, "somebody else has just moved the role: nothing was changed; pgbaton status shows the constraint")
	}
	if err != nil {
		if ctx.Err() == nil && pacemaker.Rejected(err) {
			return Outcome{}, explain(err)
		}
		return s.leave(t), nil // it may have been made
	}
	now(s.Snap.Here, "constraint %s made, it ends at %s by itself", pacemaker.PreferID(s.Snap.Clone), s.ends.Local().Format("15:04:05"))
	s.watch(ctx, t, tell)
	if t.end == interrupted {
		return s.leave(t), nil
	}
	var last *Snapshot
	if t.end == ended {
		last = s.awaitReturn(ctx, t, tell)
	}
	o := s.conclude(t)
	o.Snapshot = last
	return o, nil
}

// watch follows the handover until it has ended, ctx ends, or nothing can be seen any more. When it has ended, the
// constraint is gone.
func (s *Switchover) watch(ctx context.Context, t *tracker, tell func(Event)) {
	heard := s.Now()
	for {
		state, bulletins, err := s.look(ctx)
		at := s.Now()
		switch {
		case ctx.Err() != nil:
			t.end = interrupted
			return
		case err != nil && at.Sub(heard) > deafLimit:
			t.end, t.err = deaf, err
			return
		case err == nil:
			heard = at
			for _, e := range t.observe(at, state, bulletins) {
				tell(e)
			}
			if s.settled(ctx, t, at) {
				t.end = ended
				if t.primary != s.To && !t.refused() && t.demoted.IsZero() {
					t.end = unplanned
				}
				if err := s.retract(ctx); err != nil {
					t.err = err
				} else {
					tell(Event{s.Now(), s.Snap.Here, "removed the constraint"})
				}
				return
			}
		}
		if left := s.ends.Sub(at); left < prolong && t.wanted() {
			if err := pacemaker.Prolong(ctx, s.World.Run, s.rule, at.Add(lifetime)); err == nil {
				s.ends = at.Add(lifetime)
				tell(Event{at, s.Snap.Here, "prolonged the constraint to " + s.ends.Local().Format("15:04:05")})
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(s.every):
		}
	}
}

func (s *Switchover) look(ctx context.Context) (state pacemaker.ClusterState, list []baton.Bulletin, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, askLimit, errHangs)
	defer cancel()
	snap := &Snapshot{Resource: s.Snap.Resource, Unreadable: map[string]error{}}
	err = together(
		func() (err error) { state, err = pacemaker.ReadState(ctx, s.World.Run); return err },
		func() error { return snap.readBulletins(ctx, s.World.Run) },
	)
	return state, snap.Bulletins, err
}

// settled tells whether the role has come to rest: with a primary strictly above all others, which a removal of the
// constraint does not move, and nothing under way, which it would disturb. Before Pacemaker has done anything that looks
// the same; so it takes a sign that the order was heeded, or a coordinator that has nothing to do after so much time that it
// will not be.
func (s *Switchover) settled(ctx context.Context, t *tracker, at time.Time) bool {
	if !t.restful(at) {
		return false
	}
	idle, err := pacemaker.Idle(ctx, s.World.Run, t.dc)
	if t.unbegun() {
		return err == nil && idle // a coordinator at work may be at the old primary's checkpoint, of which nothing is seen
	}
	return err == nil && idle || at.Sub(t.calm) > idleLimit
}

// retract removes the constraint that this run made, and no other.
func (s *Switchover) retract(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), askLimit, errHangs)
	defer cancel()
	return pacemaker.Unprefer(ctx, s.World.Run, pacemaker.PreferID(s.Snap.Clone), s.rule)
}

// awaitReturn waits for the others to follow the new primary, since people ask, and returns the last picture.
func (s *Switchover) awaitReturn(ctx context.Context, t *tracker, tell func(Event)) *Snapshot {
	limit := s.Now().Add(s.follow)
	for {
		snap, err := s.Take(context.WithoutCancel(ctx), s.Snap.Resource)
		if err == nil {
			for _, e := range t.observe(s.Now(), snap.State, snap.Bulletins) {
				tell(e)
			}
		}
		if err == nil && !t.busy && snap.allFollow() || s.Now().After(limit) || ctx.Err() != nil {
			return snap
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * s.every):
		}
	}
}

// allFollow tells whether every standby that runs is known to stream.
func (s *Snapshot) allFollow() bool {
	for _, in := range s.State.Of(s.Resource) {
		if in.Node == "" || !in.Active || in.Role == pacemaker.RolePromoted {
			continue
		}
		if st := s.Standing(in.Node); st.State != "streaming" {
			return false
		}
	}
	return true
}

// leave ends the watching before the end of the handover. The constraint is removed where that moves nothing; else it stays
// to its end, since without it Pacemaker would turn back in the middle.
func (s *Switchover) leave(t *tracker) Outcome {
	ctx, cancel := context.WithTimeout(context.Background(), 2*askLimit)
	defer cancel()
	o := Outcome{
		Code: Unknown, Sentence: "the handover goes on without this command, how it ends is not known here", Do: "pgbaton status --watch, pgbaton history",
		Left: s.endsByItself(""),
	}
	state, bulletins, err := s.look(ctx)
	if err != nil {
		return o
	}
	t.observe(s.Now(), state, bulletins)
	if !t.atRest() {
		return o
	}
	if s.retract(ctx) == nil {
		o.Left, o.Primary = "", t.primary
		switch {
		case t.primary == s.To:
			o.Code, o.Sentence, o.Do = Done, fmt.Sprintf("%s is the primary", s.To), ""
		case t.primary == s.From && t.demoted.IsZero():
			o.Code, o.Sentence, o.Do = RolledBack, fmt.Sprintf("the order was taken back before anything was stopped: %s is the primary", s.From), ""
		}
	}
	return o
}

// endsByItself says what becomes of the constraint, behind what else is to be said of it.
func (s *Switchover) endsByItself(what string) string {
	return fmt.Sprintf("the constraint %s%s ends at %s by itself", pacemaker.PreferID(s.Snap.Clone), what, s.ends.Local().Format("15:04:05"))
}

// conclude says how it ended.
func (s *Switchover) conclude(t *tracker) Outcome {
	o := Outcome{Primary: t.primary, Proof: t.note, Switch: t.switched}
	why := t.why[s.To]
	var phases []string
	for _, e := range s.Journal(s.Snap.Resource) {
		if e.Time.Before(t.began) {
			continue
		}
		phases = append(phases, fmt.Sprintf("%s %s %.0f ms", e.Action, e.Outcome, e.Duration))
		if e.Outcome == "called off" || e.Outcome == "refused" && e.Node == s.To {
			why = e.Reason // the others are told less
		}
	}
	if len(phases) > 0 {
		o.Phases = "on " + s.Snap.Here + ": " + strings.Join(phases, ", ")
	}
	if !t.demoted.IsZero() && !t.promoted.IsZero() {
		o.Outage = t.promoted.Sub(t.up)
	}
	if t.err != nil {
		o.Left = s.endsByItself(fmt.Sprintf(" could not be removed (%v); it", t.err))
	}
	switch {
	case t.end == deaf:
		o.Code, o.Sentence = Unknown, fmt.Sprintf("how the handover ended is not known: %v", explain(t.err))
		o.Do = "pgbaton status on another node"
		o.Left = s.endsByItself("")
	case t.primary == s.To:
		o.Code, o.Sentence = Done, fmt.Sprintf("%s is the primary", s.To)
	case t.end == unplanned:
		o.Code, o.Sentence = Refused, fmt.Sprintf("Pacemaker did nothing within %s: %s is still the primary, nothing was stopped", planLimit, s.From)
		o.Do = "look at the scores: pgbaton status -o wide; and at the clocks of the nodes: a constraint that ends in the past there is not heeded"
	default:
		o.Code, o.Sentence = RolledBack, fmt.Sprintf("the handover to %s was rolled back: %s is the primary", s.To, or(t.primary, "nobody"))
		if t.primary == s.From && t.demoted.IsZero() {
			o.Sentence = fmt.Sprintf("the handover to %s was called off before anything was stopped: %s is still the primary", s.To, s.From)
		}
		if why != "" {
			o.Sentence += "; the reason: " + strings.TrimPrefix(why, "refused: ")
		}
		o.Do = fmt.Sprintf("mend that; %s may be promoted again once it streams, pgbaton switchover --dry-run --to %s tells", s.To, s.To)
		if t.primary == "" {
			o.Do = "pgbaton status says what keeps the agents from promoting one"
		}
	}
	return o
}
