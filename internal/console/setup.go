package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// Limits of the waits of a setup. What takes longer has gone wrong.
const (
	setupLimit   = time.Minute
	commandLimit = 40 * time.Second // pcs and crmsh take seconds
	lookEvery    = 200 * time.Millisecond
)

// Setup is a plan that puts a running PostgreSQL under the care of an agent, step by step.
type Setup struct {
	*Snapshot
	world   World
	kind    string   // the value of setupMeta
	primary string   // the node whose server is writable
	members []string // the nodes with an instance, the primary first
	to      string   // the agent that is to have it
	tool    string   // whose commands: "pcs" or "crm"
	goingOn bool     // one that was cut short is gone on with
	run     string   // nonce of this run
	was     string   // the note when it was planned, "" if there was none
	noted   []string // its members, which may be more than are there now
	marked  bool     // the note is this run's
	resumed bool     // the maintenance is over, and was by an earlier run if this one only goes on from there
	paused  bool     // the cluster is in maintenance mode, by this setup
	mayDo   []string // resources that may be started when maintenance ends
	// original is the clone as it was, with the note in it, for the way back from a step that went wrong.
	original string

	intro, outro []string
	steps        []setupStep
	undo         func(ctx context.Context) error // takes everything back, while maintenance lasts
}

// setup is one that has not been planned yet. whose are the commands of pcs or crm, "" for the one that is installed.
func (w World) setup(kind, to, whose string) *Setup {
	return &Setup{Snapshot: &Snapshot{Taken: w.Now()}, world: w, kind: kind, to: to, tool: or(whose, tool()), run: nonce()}
}

// setupStep is one of them: commands, and what must be seen before the next.
type setupStep struct {
	title, why string
	reasons    []string // where it is several things
	commands   [][]string
	until      string
	wait       func(ctx context.Context) error
	reversible bool // what goes wrong here is answered by undo
	optional   bool // what goes wrong here is said, and left to check

	marks, pauses, resumes bool // from its end on the note is this run's, maintenance is on, or over
}

// wrongAnswerError says that the agents, or the scheduler, do not see what they should, so that it must not go on.
type wrongAnswerError struct{ text string }

func (e *wrongAnswerError) Error() string { return e.text }

func wrong(format string, args ...any) error { return &wrongAnswerError{fmt.Sprintf(format, args...)} }

// notOursError says that somebody else has gone on with this setup or ended it: whatever this run did now, also to take
// something back, could stop what Pacemaker manages again.
type notOursError struct{ text string }

func (e *notOursError) Error() string { return e.text }

func notOurs(text string) error {
	return &notOursError{text + ": this run changes nothing more. pgbaton status tells whether another one is under way"}
}

// commandText is a command as a person types it.
func commandText(argv []string) string {
	if len(argv) == 3 && argv[0] == "sh" && argv[1] == "-c" {
		return argv[2]
	}
	return ocf.JoinArgs(argv...)
}

// Text writes the plan.
func (s *Setup) Text(w io.Writer, y Style) {
	for n, line := range s.intro {
		if n == 0 {
			line = y.paint(bold, line)
		}
		indented(w, "", 0, line)
	}
	for n, step := range s.steps {
		fmt.Fprintln(w)
		indented(w, fmt.Sprintf("%2d. ", n+1), 4, step.title)
		if step.why != "" {
			indented(w, "    ", 4, "Why: "+step.why)
		}
		for _, r := range step.reasons {
			indented(w, "    - ", 6, r)
		}
		for _, argv := range step.commands {
			fmt.Fprintf(w, "    $ %s\n", commandText(argv))
		}
		if step.until != "" {
			indented(w, "    ", 4, "Wait until "+step.until)
		}
	}
	if len(s.outro) > 0 {
		fmt.Fprintln(w)
	}
	for _, line := range s.outro {
		indented(w, "", 0, line)
	}
}

// Apply carries the plan out. say is told what is done. If the agents do not see what they should, it takes back what
// was done; if it is ended in the middle it can be run again, and goes on.
func (s *Setup) Apply(ctx context.Context, say func(string)) error {
	for n, step := range s.steps {
		say(fmt.Sprintf("%2d. %s", n+1, step.title))
		halt := func(err error) error {
			return s.halt(ctx, fmt.Sprintf("step %d, %s: %v", n+1, step.title, err), err)
		}
		if err := s.own(ctx); err != nil {
			return halt(err)
		}
		err := s.do(ctx, step)
		var lost *notOursError
		switch {
		case err == nil:
			s.marked = s.marked || step.marks
			s.paused = (s.paused || step.pauses) && !step.resumes
			s.resumed = s.resumed || step.resumes
			continue
		case errors.As(err, &lost):
			return halt(err)
		case step.optional && ctx.Err() == nil:
			say(fmt.Sprintf("    left as it is: %v", err))
			continue
		case !step.reversible || ctx.Err() != nil || s.undo == nil:
			return halt(err)
		}
		say("    " + err.Error())
		undoErr := s.own(ctx) // the step may have waited for a minute
		if undoErr == nil {
			say("    taking everything back")
			undoErr = s.undo(ctx)
		}
		if undoErr != nil {
			return s.halt(ctx, fmt.Sprintf("%v; and it could not be taken back: %v", err, undoErr), undoErr)
		}
		return &Error{Code: RolledBack, Err: err, Text: err.Error() + ": everything is as it was before"}
	}
	return nil
}

// halt is the end half-way. What comes of a setup that is not this run's any more it does not say.
func (s *Setup) halt(ctx context.Context, text string, err error) error {
	var lost *notOursError
	if !errors.As(err, &lost) {
		text += ". " + s.standstill(ctx)
	}
	return &Error{Code: Attention, Err: err, Text: text}
}

// own looks whether the setup still is this run's: by the note, and by the maintenance mode, which only this run may end.
func (s *Setup) own(ctx context.Context) error {
	if !s.marked && !s.paused {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, askLimit, errHangs)
	defer cancel()
	if s.marked {
		config, err := pacemaker.ReadConfiguration(ctx, s.world.Run)
		if err != nil {
			return err
		}
		switch now := config.Meta(s.Clone, setupMeta); {
		case now == "":
			return notOurs("somebody has ended this setup, or taken it back")
		case parseNote(now).run != s.run:
			return notOurs("another pgbaton setup has taken this one over")
		}
	}
	if s.paused {
		return s.stillPaused(ctx)
	}
	return nil
}

// stillPaused must be so for anything that Pacemaker would answer by a start or stop.
func (s *Setup) stillPaused(ctx context.Context) error {
	st, err := pacemaker.ReadState(ctx, s.world.Run)
	if err == nil && !st.MaintenanceMode {
		err = notOurs("the maintenance is over, somebody else has ended it")
	}
	return err
}

// standstill says what it means that a setup has stopped half-way.
func (s *Setup) standstill(ctx context.Context) string {
	text := "PostgreSQL was not touched and serves on. "
	brief, cancel := context.WithTimeout(context.WithoutCancel(ctx), askLimit)
	defer cancel()
	switch st, err := pacemaker.ReadState(brief, s.world.Run); {
	case err != nil:
		text += "Whether the cluster is in maintenance mode is not known (crm_mon -1 tells): it monitors nothing then, nobody takes over. "
	case st.MaintenanceMode:
		text += "The cluster is in maintenance mode: it monitors nothing, nobody takes over. If the primary has failed, end that first (crm_attribute --name maintenance-mode --delete) and wait for a primary. "
	}
	return text + "The same command goes on from here."
}

func (s *Setup) do(ctx context.Context, step setupStep) error {
	for _, argv := range step.commands {
		if err := s.command(ctx, argv...); err != nil {
			return err
		}
	}
	if step.wait == nil {
		return nil
	}
	limited, cancel := context.WithTimeoutCause(ctx, setupLimit, errHangs)
	defer cancel()
	return step.wait(limited)
}

func (s *Setup) command(ctx context.Context, argv ...string) error {
	limited, cancel := context.WithTimeoutCause(ctx, commandLimit, errHangs)
	defer cancel()
	_, err := s.world.Run.Run(limited, argv...)
	if pacemaker.ExitStatus(err) == crmNoSuch && slices.ContainsFunc(argv, func(a string) bool { return strings.HasPrefix(a, "--delete") }) {
		return nil // it is gone already
	}
	return err
}

// crmNoSuch is CRM_EX_NOSUCH.
const crmNoSuch = 105

// await looks again and again until ok is nil. A wrong answer ends it, and that it is not ours any more; anything else may
// change.
func (s *Setup) await(ctx context.Context, ok func() error) error {
	for {
		err := ok()
		var no *wrongAnswerError
		var lost *notOursError
		if err == nil || errors.As(err, &no) || errors.As(err, &lost) {
			return err
		}
		select {
		case <-ctx.Done():
			if ctx.Err() == context.Canceled {
				return errors.New("interrupted")
			}
			return wrong("in vain waited for an end of this: %v", err)
		case <-time.After(lookEvery):
		}
	}
}

// unfit lists why nothing should be set up around this cluster now.
func (s *Setup) unfit(ctx context.Context) []string {
	var list []string
	add := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	st := s.State
	if !st.Quorum || st.DC == "" {
		add("the cluster has no quorum or no coordinator: start the other nodes")
	}
	if !s.goingOn && st.MaintenanceMode {
		add("the cluster is in maintenance mode: end it first (crm_attribute --name maintenance-mode --delete)")
	}
	if st.StopAllResources {
		add("stop-all-resources is set: end that first (%s)", setProperty("stop-all-resources", "false"))
	}
	for _, n := range st.Nodes {
		if state := nodeState(n); state != "online" && !s.goingOn {
			add("%s is %s: %s", n.Name, state, nodeRemedy(n))
		}
	}
	if len(list) == 0 && !s.goingOn {
		brief, cancel := context.WithTimeoutCause(ctx, askLimit, errHangs)
		defer cancel()
		if err := s.await(brief, func() error { return s.idle(brief, st) }); err != nil {
			add("%v: wait until it has done what it is at", err)
		}
	}
	return list
}

// refuse makes one error of the reasons.
func refuse(reasons []string) error {
	if len(reasons) == 0 {
		return nil
	}
	return fail(Refused, "%s. Nothing was changed", strings.Join(reasons, "; "))
}

// recall fills in who runs what from the note of a setup that was cut short: as long as maintenance lasts nothing of it
// changes but by a failure.
func (s *Setup) recall(members []string) []string {
	online := func(node string) bool {
		n, ok := s.State.Node(node)
		return ok && n.Usable()
	}
	if len(members) == 0 || !online(members[0]) {
		return []string{"the primary is lost, and nobody takes over while the cluster is in maintenance mode: end that (crm_attribute --name maintenance-mode --delete), wait for a primary, and run this again"}
	}
	s.primary, s.noted = members[0], members
	for _, node := range members {
		if online(node) {
			s.members = append(s.members, node)
		} else {
			s.intro = append(s.intro, node+" is not there, and left out.")
		}
	}
	return nil
}

// instances fills in who runs it where.
func (s *Setup) instances() []string {
	var list []string
	paused := s.State.MaintenanceMode
	var standbys []string
	for _, in := range s.State.Of(s.Resource) {
		switch {
		case in.Node == "" || !in.Active:
		case in.Blocked || in.Failed || !in.Managed && !paused:
			list = append(list, fmt.Sprintf("%s on %s is failed, blocked or not managed: crm_resource --cleanup -r %s, or %s", s.Resource, in.Node, s.Resource, manage(s.Resource)))
		case in.Role == pacemaker.RolePromoted && s.primary == "":
			s.primary = in.Node
		case in.Role == pacemaker.RolePromoted:
			list = append(list, fmt.Sprintf("both %s and %s are primary", s.primary, in.Node))
		case in.Pending != "":
			list = append(list, fmt.Sprintf("on %s something is under way (%s): wait for its end", in.Node, in.Pending))
		default:
			standbys = append(standbys, in.Node)
		}
	}
	slices.Sort(standbys)
	s.members = append([]string{s.primary}, standbys...)
	switch {
	case s.primary == "":
		list = append(list, "there is no primary: wait for one, or see what keeps it (crm_mon -1Af)")
	case len(standbys) == 0:
		list = append(list, "there is no standby: the others could never take over")
	}
	for _, n := range s.State.Nodes {
		if n.Usable() && !s.banned(n.Name) && !slices.Contains(s.members, n.Name) {
			list = append(list, fmt.Sprintf("%s runs no instance: crm_resource --cleanup -r %s -N %s", n.Name, s.Resource, n.Name))
		}
	}
	for _, f := range s.State.FailCounts {
		if f.Resource == s.Resource || f.Resource == s.Clone {
			list = append(list, fmt.Sprintf("%s has failed on %s (%s times): understand that, then crm_resource --cleanup -r %s", s.Resource, f.Node, f.Count, s.Resource))
		}
	}
	return list
}

// agentMetadata is what an agent says of its parameters: the default of each. The error is a reason to refuse.
func (w World) agentMetadata(ctx context.Context, agent string) (map[string]string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, askLimit, errHangs)
	defer cancel()
	out, err := w.Run.Run(ctx, "crm_resource", "--show-metadata", agent)
	if err != nil {
		return nil, fmt.Errorf("%s is not installed on this node: install it on every node", agent)
	}
	params, err := pacemaker.ParseMetadata(out)
	if err != nil {
		return nil, fmt.Errorf("the meta-data of %s is not understood: %w", agent, err)
	}
	return params, nil
}

// nvpair is one, for cibadmin.
func nvpair(id, name, value string) string {
	return fmt.Sprintf(`<nvpair id="%s" name="%s" value="%s"/>`, xmlQuote(id), xmlQuote(name), xmlQuote(value))
}

func xmlQuote(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;").Replace(s)
}

// sorted are the keys of a map.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
