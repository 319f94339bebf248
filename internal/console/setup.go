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

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// setupMeta is a meta attribute of the clone for as long as a setup is under way, so that one that was cut short is
// known for what it is, on every node. Its value says which way it goes, who ran what when it began, the primary first (in
// the middle of it Pacemaker does not know), and whose it is: of two runs the one that wrote it last goes on, since the
// other one may be alive and none can tell.
const setupMeta = "pgbaton-setup"

// note is what is known of a setup that is under way, the value of setupMeta.
type note struct {
	kind    string
	members []string
	run     string // nonce of the run that wrote it, "" in one of an earlier release
}

// runPrefix stands before the nonce: no node has such a name, and an earlier release takes it for one that is not there.
const runPrefix = "run:"

func (n note) String() string {
	return strings.Join(append(append([]string{n.kind}, n.members...), runPrefix+n.run), ",")
}

func parseNote(text string) note {
	words := strings.Split(text, ",")
	n := note{kind: words[0], members: words[1:]}
	if last := len(n.members) - 1; last >= 0 && strings.HasPrefix(n.members[last], runPrefix) {
		n.run, n.members = strings.TrimPrefix(n.members[last], runPrefix), n.members[:last]
	}
	return n
}

// setupCommand is how a setup is gone on with.
func setupCommand(meta string) string {
	kind := parseNote(meta).kind
	if kind == fromReplication {
		return "pgbaton setup --apply"
	}
	return "pgbaton setup --" + kind + " --apply"
}

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
		case now != s.note():
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
		text += "The cluster is in maintenance mode: it monitors nothing, nobody takes over. "
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

// mark makes the setup known, on the clone.
func (s *Setup) mark() setupStep {
	return setupStep{
		title: "Make a note of it in the cluster's configuration",
		why:   "if this is cut short, also by the loss of this node, it is known for what it is, and the same command goes on",
		commands: [][]string{
			{"crm_resource", "--resource", s.Clone, "--meta", "--set-parameter", setupMeta, "--parameter-value", s.note()},
		},
		wait:  s.awaitNote,
		marks: true,
	}
}

// note is the value of setupMeta that this run writes.
func (s *Setup) note() string {
	members := s.members
	if len(s.noted) > 0 {
		members = s.noted
	}
	return note{s.kind, members, s.run}.String()
}

// awaitNote waits until this node's copy of the configuration has the note of this run.
func (s *Setup) awaitNote(ctx context.Context) error {
	return s.await(ctx, func() error {
		config, err := pacemaker.ReadConfiguration(ctx, s.world.Run)
		if err != nil {
			return err
		}
		switch config.Meta(s.Clone, setupMeta) {
		case s.note():
			return nil
		case s.was:
			return errors.New("the note is not in the configuration yet")
		}
		return notOurs("another pgbaton setup has begun at the same moment")
	})
}

func (s *Setup) unmark() setupStep {
	return setupStep{
		title: "Remove the note",
		commands: [][]string{
			{"crm_resource", "--resource", s.Clone, "--meta", "--delete-parameter", setupMeta},
		},
	}
}

func (s *Setup) pause() setupStep {
	return setupStep{
		title:    "Put the cluster into maintenance mode",
		why:      "Pacemaker then starts, stops and moves nothing, whatever it believes, while it is told who looks after PostgreSQL. Clients write on; until it ends no failure is acted upon",
		commands: [][]string{{"crm_attribute", "--name", "maintenance-mode", "--update", "true"}},
		until:    "nothing is under way any more",
		wait:     s.awaitPaused,
		pauses:   true,
	}
}

func (s *Setup) awaitPaused(ctx context.Context) error {
	return s.await(ctx, func() error {
		st, err := pacemaker.ReadState(ctx, s.world.Run)
		if err != nil {
			return err
		}
		if !st.MaintenanceMode {
			return errors.New("the cluster is not in maintenance mode yet")
		}
		return s.idle(ctx, st)
	})
}

func (s *Setup) idle(ctx context.Context, st pacemaker.ClusterState) error {
	if st.DC == "" {
		return errors.New("the cluster has no coordinator")
	}
	ok, err := pacemaker.Idle(ctx, s.world.Run, st.DC)
	if err == nil && !ok {
		err = errors.New("the coordinator is busy")
	}
	return err
}

// probe has every node's agent say what it finds.
func (s *Setup) probe() setupStep {
	return setupStep{
		title:      "Have the agent look at PostgreSQL on every node",
		why:        "Pacemaker forgets what it was told before, and learns from its new agent what runs where. The agent only looks",
		commands:   [][]string{{"crm_resource", "--refresh", "--resource", s.Clone}},
		until:      "it has found the primary on " + s.primary + others(" and standbys on ", s.members[1:]),
		wait:       func(ctx context.Context) error { return s.awaitProbes(ctx, s.to) },
		reversible: true,
	}
}

// others names nodes behind words, if there are any.
func others(words string, nodes []string) string {
	if len(nodes) == 0 {
		return ""
	}
	return words + strings.Join(nodes, ", ")
}

// expected is the exit code that a monitor must have on a node.
func (s *Setup) expected(node string) int {
	if node == s.primary {
		return int(ocf.RunningPromoted)
	}
	return int(ocf.Success)
}

func (s *Setup) awaitProbes(ctx context.Context, agent string) error {
	return s.await(ctx, func() error {
		status, err := pacemaker.ReadStatus(ctx, s.world.Run)
		if err != nil {
			return err
		}
		return s.answers(status, agent, pacemaker.History.Probe)
	})
}

// answers checks what the agent has answered last on every node. That it has not is no wrong answer.
func (s *Setup) answers(status pacemaker.Status, agent string, last func(pacemaker.History) (pacemaker.DoneOperation, bool)) error {
	histories := status.Histories(s.Resource)
	for _, node := range s.members {
		h := histories[node]
		op, ok := last(h)
		switch {
		case h.Agent != agent || !ok || op.Pending:
			return fmt.Errorf("%s on %s has not answered", agent, node)
		case op.Code != s.expected(node):
			return wrong("%s on %s answers %s: expected %s", agent, node, answerText(op), codeText(s.expected(node)))
		}
	}
	return nil
}

func answerText(op pacemaker.DoneOperation) string {
	text := codeText(op.Code)
	if op.Reason != "" {
		text += " (" + op.Reason + ")"
	}
	return text
}

func codeText(code int) string {
	switch ocf.ExitCode(code) {
	case ocf.RunningPromoted:
		return "a running primary"
	case ocf.Success:
		return "a running standby"
	case ocf.NotRunning:
		return "nothing runs"
	case ocf.ErrInstalled:
		return "not installed: is the agent on that node, and the data directory?"
	}
	return fmt.Sprintf("exit code %d", code)
}

// foresee asks the scheduler what the end of the maintenance would bring about.
func (s *Setup) foresee() setupStep {
	return setupStep{
		title:      "Ask the scheduler what it would do if maintenance ended now",
		why:        "it must want to do nothing but monitor" + others(", and to start ", s.mayDo) + ". It is asked on a copy of the configuration, by crm_simulate",
		wait:       s.harmless,
		reversible: true,
	}
}

func (s *Setup) harmless(ctx context.Context) error {
	return s.await(ctx, func() error {
		list, err := pacemaker.SimulateResume(ctx, s.world.Run)
		if errors.Is(err, pacemaker.ErrNotPaused) {
			return notOurs("the maintenance is over, somebody else has ended it")
		}
		if err != nil {
			return err
		}
		var bad []string
		for _, a := range list {
			if a.Alters() && !(a.Name == "start" && slices.Contains(s.mayDo, a.Resource)) {
				bad = append(bad, a.String())
			}
		}
		if len(bad) > 0 {
			return wrong("if maintenance ended now, Pacemaker would %s", strings.Join(bad, ", "))
		}
		return nil
	})
}

// resume ends the maintenance.
func (s *Setup) resume(until string, settled func(ctx context.Context) error) setupStep {
	return setupStep{
		title:    "End the maintenance mode",
		why:      "Pacemaker monitors and acts again, through " + s.to,
		commands: [][]string{{"crm_attribute", "--name", "maintenance-mode", "--delete"}},
		until:    until,
		wait:     settled,
		resumes:  true,
	}
}

// awaitMonitors waits until every node's agent was asked again by the running cluster, and the scores are those of want.
func (s *Setup) awaitMonitors(ctx context.Context, scores func(pacemaker.Status) (map[string]string, error), standby int) error {
	return s.await(ctx, func() error {
		status, err := pacemaker.ReadStatus(ctx, s.world.Run)
		if err != nil {
			return err
		}
		if err := s.answers(status, s.to, pacemaker.History.Monitor); err != nil {
			return fmt.Errorf("monitor: %v", err) // not wrapped, so not final: the next one may see it otherwise
		}
		values, err := scores(status)
		if err != nil {
			return err
		}
		return s.ranked(values, standby)
	})
}

// ranked tells whether the primary's score is on top of all others, and each standby's high enough.
func (s *Setup) ranked(values map[string]string, standby int) error {
	of := func(node string) pacemaker.Score {
		score, err := pacemaker.ParseScore(values[node])
		if err != nil {
			return pacemaker.NegInfinity
		}
		return score
	}
	for _, node := range s.members {
		switch {
		case node == s.primary && of(node) < baton.ScorePrimary:
			return fmt.Errorf("the promotion score of the primary %s is %q: expected %d", node, values[node], baton.ScorePrimary)
		case node != s.primary && (of(node) < pacemaker.Score(standby) || of(node) >= of(s.primary)):
			return fmt.Errorf("the promotion score of the standby %s is %q: expected %d or more, and less than that of the primary", node, values[node], standby)
		}
	}
	return nil
}

// transientScores are those that pgbaton sets.
func (s *Setup) transientScores(st pacemaker.Status) (map[string]string, error) {
	return st.Transient(pacemaker.ScoreAttribute(s.Resource)), nil
}

// permanentScores are those that pgsqlms sets.
func (s *Setup) permanentScores(ctx context.Context) func(pacemaker.Status) (map[string]string, error) {
	return func(pacemaker.Status) (map[string]string, error) {
		return pacemaker.Permanent(ctx, s.world.Run, pacemaker.ScoreAttribute(s.Resource))
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
