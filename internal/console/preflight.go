package console

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/view"
)

// Result is what a check found.
type Result string

// The results of a check. Only Failed stands in the way.
const (
	Passed   Result = "passed"
	Warned   Result = "warning"
	Failed   Result = "failed"
	NotKnown Result = "unknown" // nobody that could be asked knows it, or what is known is old
)

// Check is one line of the pre-flight.
type Check struct {
	Name   string `json:"name"` // does not change from release to release
	Result Result `json:"result"`
	Text   string `json:"text"`
	Do     string `json:"do,omitempty"` // what to do about it

	at time.Time // when it was so, where it was published and not asked now
}

// Limits of the pre-flight. The agent has its own (nearBytes, replayBytes in internal/agent/predemote.go) and waits for a
// target that is further behind; the command says beforehand that it would.
const (
	nearBytes    = 16 << 20
	replayBytes  = 64 << 20
	replayTime   = 10 * time.Second
	longXact     = time.Minute
	manyFiles    = 100             // WAL files to be archived
	oldView      = 2 * time.Minute // some monitor intervals
	logicalBytes = 16 << 20
)

// preflight collects checks.
type preflight struct {
	*Snapshot
	list []Check
}

func (p *preflight) say(name string, r Result, do, format string, args ...any) {
	p.list = append(p.list, Check{Name: name, Result: r, Text: fmt.Sprintf(format, args...), Do: do})
}

// from notes of the last check when it was so, if it was published.
func (p *preflight) from(node string, at time.Time) {
	if node != p.Here || !p.Fresh {
		p.list[len(p.list)-1].at = at
	}
}

// check says one of two sentences.
func (p *preflight) check(name string, ok bool, good, bad, do string) {
	if ok {
		p.say(name, Passed, "", "%s", good)
		return
	}
	p.say(name, Failed, do, "%s", bad)
}

// Failures are the checks that stand in the way.
func failures(list []Check) []Check {
	return slices.DeleteFunc(slices.Clone(list), func(c Check) bool { return c.Result != Failed })
}

// ClusterChecks are those that do not depend on the target.
func (s *Snapshot) ClusterChecks() []Check {
	p := &preflight{Snapshot: s}
	p.cluster()
	if primary := s.Primary(); primary != "" {
		p.primary(primary)
	}
	return p.list
}

func (p *preflight) cluster() {
	p.check("quorum", p.State.DC != "" && p.State.Quorum, "the cluster has a coordinator, "+p.State.DC+", and quorum",
		"the cluster has no coordinator or no quorum", "start more nodes, or look at the network between them: corosync-quorumtool")
	switch by, paused := p.Paused(); {
	case p.setupWay() != "":
		p.say("maintenance", Failed, endSetup+p.setupWay(), unfinishedSetup)
	case paused:
		p.say("maintenance", Failed, resumeHow(p.State.MaintenanceMode), "%s: Pacemaker would do nothing", by)
	case p.State.StopAllResources:
		p.say("maintenance", Failed, setProperty("stop-all-resources", "false"), "stop-all-resources is set: nothing runs")
	default:
		p.say("maintenance", Passed, "", "Pacemaker manages %s", p.Resource)
	}
	if !p.State.FencingEnabled {
		p.say("fencing", Warned, "set fencing up: a handover that is hit by a failure may otherwise need you", "fencing is off")
	} else {
		p.say("fencing", Passed, "", "fencing is on")
	}
	promoted := p.State.Promoted(p.Resource)
	switch len(promoted) {
	case 1:
		p.say("primary", Passed, "", "%s is the primary", promoted[0])
	case 0:
		p.say("primary", Failed, "pgbaton status says what keeps the agents from promoting one", "there is no primary")
	default:
		p.say("primary", Failed, "wait for Pacemaker to demote all but one", "%s are primaries", strings.Join(promoted, " and "))
	}
	busy := p.underWay()
	p.check("idle", busy == "", "no change of roles is under way", "a change of roles is under way: "+busy, "wait for its end: pgbaton status --watch")
	p.moves()
	p.failed()
	p.silent()
}

func (p *preflight) isPaused() bool {
	_, paused := p.Paused()
	return paused
}

// resumeHow ends a pause.
func resumeHow(whole bool) string {
	if whole {
		return setProperty("maintenance-mode", "false")
	}
	return "pgbaton resume"
}

// leftMoves are the constraints that moves and bans left, of the resource and of what is bound to its primary: where the address is
// banned no client comes in, and what draws it elsewhere draws the role.
func (s *Snapshot) leftMoves() []pacemaker.Move {
	list := s.Config.Moves(s.Resource)
	for _, bound := range s.Config.WithPrimary(s.Resource) {
		for _, m := range s.Config.Moves(bound) {
			if !slices.ContainsFunc(list, func(o pacemaker.Move) bool { return o.ID == m.ID }) {
				list = append(list, m)
			}
		}
	}
	return list
}

// moves finds constraints that moves and bans left.
func (p *preflight) moves() {
	var in, do []string
	for _, m := range p.leftMoves() {
		switch {
		case !m.InForce(p.Taken):
		case strings.HasPrefix(m.Rule, rulePrefix):
			p.say("constraints", Failed, "wait for its end", "another pgbaton switchover is under way, begun on %s: %s", ruleNode(m.Rule), m)
			return
		default:
			in = append(in, m.String())
			if !slices.Contains(do, m.Clear()) {
				do = append(do, m.Clear())
			}
		}
	}
	p.check("constraints", len(in) == 0, "no constraint of an earlier move or ban is left",
		"a constraint of a move or ban is left: "+strings.Join(in, "; "), strings.Join(do, " && "))
}

func (p *preflight) failed() {
	var lines []string
	for _, f := range p.State.FailuresOf(p.Resource) {
		lines = append(lines, fmt.Sprintf("%s on %s (%s)", f.Action, f.Node, or(f.Reason, f.Text)))
	}
	p.check("failures", len(lines) == 0, "no failed action", "failed actions: "+strings.Join(lines, "; "), "understand them, then crm_resource --cleanup -r "+p.Resource)
}

// silent finds nodes whose agents say nothing that can be read: they cannot take part.
func (p *preflight) silent() {
	var who []string
	running := 0
	for _, in := range p.State.Of(p.Resource) {
		if in.Node == "" || !in.Active {
			continue
		}
		running++
		if !slices.ContainsFunc(p.Bulletins, func(b baton.Bulletin) bool { return b.Node == in.Node }) {
			why := ""
			if err := p.Unreadable[in.Node]; err != nil {
				why = " (" + err.Error() + ")"
			}
			who = append(who, in.Node+why)
		}
	}
	p.check("agents", len(who) == 0, fmt.Sprintf("the agents of all %d nodes speak", running),
		"the agent says nothing on "+strings.Join(who, ", "), "look there at /var/log/pgbaton/"+p.Resource+".log: is it the same version of pgbaton?")
}

// primary are the checks of what the primary knows.
func (p *preflight) primary(node string) {
	if in, ok := p.Instance(node); ok && (!in.Managed || in.Blocked) && !p.isPaused() {
		p.say("managed", Failed, manage(p.Resource)+", or crm_resource --cleanup -r "+p.Resource, "%s is not managed on %s, or blocked by a failure", p.Resource, node)
	}
	v, ok := p.Views[node]
	switch {
	case !ok:
		p.say("asked", NotKnown, "run this on "+node+", or wait for its next monitor", "the server of %s was not asked, and its agent has published nothing", node)
		return
	case p.Age(v.At) > oldView:
		p.say("asked", NotKnown, "run this on "+node, "the server of %s was not asked, what is known of it is %s old", node, p.Age(v.At).Round(time.Second))
	default:
		p.say("asked", Passed, "", "the server of %s was asked %s", node, p.on(node, v.At))
	}
	p.queues(v)
	p.archive(v)
	switch {
	case v.OldestX > longXact.Seconds():
		p.say("transactions", Warned, "wait for them, or accept that they are rolled back", "the oldest transaction of a client is %s old: the handover ends it", seconds(v.OldestX))
	default:
		p.say("transactions", Passed, "", "no client's transaction is older than a minute")
	}
	if v.Prepared > 0 {
		p.say("prepared", Warned, "they survive, and hold their locks on the new primary: SELECT * FROM pg_prepared_xacts", "prepared transactions: %d", v.Prepared)
	} else {
		p.say("prepared", Passed, "", "no prepared transactions")
	}
}

// queues finds walsenders that would hold up the shutdown.
func (p *preflight) queues(v view.View) {
	var long []string
	for _, sb := range v.Standbys {
		if sb.Unsent > nearBytes {
			long = append(long, fmt.Sprintf("%s (%s)", or(sb.Name, "without a name"), size(sb.Unsent)))
		}
	}
	if len(long) > 0 {
		p.say("queues", Warned, "wait, or end what reads too slowly: the shutdown waits for it, at most wal_sender_timeout, which the agent lowers to 2 s",
			"WAL waits to be sent to %s", strings.Join(long, ", "))
	} else {
		p.say("queues", Passed, "", "no long queue of WAL to any standby")
	}
	if v.Logical > logicalBytes {
		p.say("logical", Warned, "wait until it has caught up: the shutdown waits for it", "a logical subscriber is %s behind", size(v.Logical))
	} else {
		p.say("logical", Passed, "", "no logical subscriber is behind")
	}
}

func (p *preflight) archive(v view.View) {
	switch {
	case !v.Archiving:
		p.say("archiver", Passed, "", "archive_mode is off: nothing to archive")
	case v.ArchFails:
		p.say("archiver", Warned, "mend archive_command; the handover loses no file: pgbaton archives them afterwards", "the last archive_command failed; %d files wait", v.Unarch)
	case v.Unarch > manyFiles:
		p.say("archiver", Warned, "the handover does not wait for them; pgbaton archives them afterwards", "%d WAL files wait to be archived", v.Unarch)
	default:
		p.say("archiver", Passed, "", "the archiver keeps up (%d files wait)", v.Unarch)
	}
}

// TargetChecks are those of one possible target.
func (s *Snapshot) TargetChecks(target string) []Check {
	p := &preflight{Snapshot: s}
	n, _ := s.State.Node(target)
	in, runs := s.Instance(target)
	switch {
	case !n.Usable():
		p.say("target", Failed, nodeRemedy(n), "%s is %s", target, nodeState(n))
		return p.list
	case n.Maintenance:
		p.say("target", Failed, nodeRemedy(n), "%s is in maintenance", target)
		return p.list
	case !runs || in.Role != pacemaker.RoleUnpromoted:
		role := "nothing"
		if runs {
			role = in.Role
		}
		p.say("target", Failed, "pgbaton status says why", "%s runs no standby: %s", target, role)
		return p.list
	case in.Blocked || in.Failed || !in.Managed && !p.isPaused():
		p.say("target", Failed, "crm_resource --cleanup -r "+s.Resource+" -N "+target, "the instance on %s is failed, blocked or not managed", target)
	default:
		p.say("target", Passed, "", "%s is online and runs a standby", target)
	}
	p.score(target)
	p.preferences(target)
	p.streams(target)
	p.replay(target)
	p.senders(target)
	return p.list
}

func (p *preflight) score(target string) {
	score, ok := p.State.Score(target, p.Resource)
	says := p.says(target)
	bans := p.bans(target)
	switch {
	case len(bans) > 0:
		p.say("score", Failed, "remove it: "+deleteConstraint(bans[0]), "a constraint keeps the role off %s: %s", target, strings.Join(bans, ", "))
	case ok && score <= pacemaker.NegInfinity:
		p.say("score", Failed, "its agent lifts this by itself once the reason is gone", "%s refuses the role: %s", target, or(strings.TrimPrefix(says, "refused: "), "its log says why"))
	case !ok:
		p.say("score", Failed, "wait for its next monitor", "%s has no promotion score yet", target)
	default:
		p.say("score", Passed, "", "%s may be promoted (score %s)", target, score)
	}
}

// bans are the constraints that keep the role off a node.
func (s *Snapshot) bans(node string) (ids []string) {
	for _, c := range s.Config.RoleConstraints(s.Resource, s.Taken) {
		if c.Bans(node) {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

// preferences finds constraints of people that would draw the role away from the target again once the move has ended. The
// promotion score of a primary is then above that of a standby by the difference of two of the agent's scores.
func (p *preflight) preferences(target string) {
	sum := map[string]pacemaker.Score{}
	ids := map[string][]string{}
	seen := map[string]bool{}
	add := func(list []pacemaker.Constraint, times pacemaker.Score) {
		for _, c := range list {
			if !c.CLI && !c.Unsure && c.Score != 0 && !seen[c.ID+" "+c.Node] {
				seen[c.ID+" "+c.Node] = true
				sum[c.Node] += times * c.Score
				ids[c.Node] = append(ids[c.Node], c.ID)
			}
		}
	}
	add(p.Config.RoleConstraints(p.Resource, p.Taken), 1)
	for _, bound := range p.Config.WithPrimary(p.Resource) {
		// The scheduler adds what speaks for it to the instance, and to the role once more.
		add(p.Config.RoleConstraints(bound, p.Taken), 2)
	}
	for _, n := range p.State.Nodes {
		if n.Name != target && n.Usable() && sum[n.Name]-sum[target] >= baton.ScorePrimary-baton.ScoreFollows {
			list := append(slices.Clone(ids[n.Name]), ids[target]...)
			p.say("preferences", Failed, "remove it, or give it a smaller score: "+deleteConstraint(list[0]),
				"the role would leave %s again: %s favours %s by %s", target, strings.Join(list, ", "), n.Name, sum[n.Name]-sum[target])
			return
		}
	}
	p.say("preferences", Passed, "", "no constraint would take the role away from %s again", target)
}

func (p *preflight) streams(target string) {
	st := p.Standing(target)
	sb, _, _ := p.Standby(target)
	when := p.on(st.By, st.At)
	defer p.from(st.By, st.At)
	switch {
	case !st.Known:
		p.say("streams", NotKnown, "the agents look again before they stop anything", "whether %s streams was not asked on %s", target, p.Primary())
	case st.State == "":
		p.say("streams", Failed, "look at its server's log; is its application_name "+target+"?", "%s does not stream from %s (asked on %s, %s)", target, p.Primary(), st.By, when)
	case st.State != "streaming":
		p.say("streams", Failed, "wait until it has caught up", "%s is in state %q, not streaming (asked on %s, %s)", target, st.State, st.By, when)
	case sb.Unflush > nearBytes:
		p.say("streams", Failed, "wait until it has caught up", "%s streams and is %s behind (asked on %s, %s)", target, size(sb.Unflush), st.By, when)
	case sb.State == "":
		p.say("streams", Passed, "", "%s streams (asked on %s, %s)", target, st.By, when)
	default:
		p.say("streams", Passed, "", "%s streams, %s, %s behind (asked on %s, %s)", target, or(sb.Sync, "async"), size(max(0, sb.Unflush)), st.By, when)
	}
}

func (p *preflight) replay(target string) {
	sb, at, known := p.Standby(target)
	own, hasOwn := p.Views[target]
	if hasOwn && own.Paused && p.Age(own.At) <= oldView {
		defer p.from(target, own.At)
		p.say("replay", Failed, "on "+target+": SELECT pg_wal_replay_resume()", "replay is paused on %s (%s)", target, p.on(target, own.At))
		return
	}
	if !known || sb.State == "" {
		p.say("replay", NotKnown, "the agents look again before they stop anything", "how far %s has replayed was not asked on %s", target, p.Primary())
		return
	}
	defer p.from(p.Primary(), at)
	switch {
	case sb.Unreplay > replayBytes || sb.Behind > replayTime.Seconds():
		p.say("replay", Failed, "wait until it has caught up", "%s has yet to replay %s, %s (%s)", target, size(sb.Unreplay), seconds(sb.Behind), p.on(p.Primary(), at))
	case !hasOwn || p.Age(own.At) > oldView:
		p.say("replay", Passed, "", "%s replays, %s behind; whether replay is paused was not asked on %s", target, size(max(0, sb.Unreplay)), target)
	default:
		p.say("replay", Passed, "", "%s replays, %s behind (%s)", target, size(max(0, sb.Unreplay)), p.on(p.Primary(), at))
	}
}

// senders: the other nodes will stream from the target.
func (p *preflight) senders(target string) {
	others := 0
	for _, in := range p.State.Of(p.Resource) {
		if in.Node != "" && in.Node != target && in.Active {
			others++
		}
	}
	own, ok := p.Views[target]
	switch {
	case !ok || p.Age(own.At) > oldView:
		p.say("senders", NotKnown, "run this on "+target, "how many walsenders %s has free was not asked there", target)
	case own.MaxSent-own.Sent < others:
		p.say("senders", Failed, "raise max_wal_senders on "+target+" and restart it there", "%s has %d of %d walsenders free, %d nodes will stream from it", target, own.MaxSent-own.Sent, own.MaxSent, others)
	default:
		p.say("senders", Passed, "", "%s has %d walsenders free for %d nodes", target, own.MaxSent-own.Sent, others)
	}
}

// Candidate is a node that may become primary, with what the pre-flight says about it.
type Candidate struct {
	Node   string
	Checks []Check
}

// Candidates are the possible targets, the best one first: those that nothing stands in the way of, then the ones that the
// primary counts as synchronous, then by what they lack.
func (s *Snapshot) Candidates() []Candidate {
	var list []Candidate
	for _, n := range s.State.Nodes {
		if n.Name != s.Primary() {
			list = append(list, Candidate{n.Name, s.TargetChecks(n.Name)})
		}
	}
	key := func(c Candidate) [4]int64 {
		var k [4]int64
		k[0] = int64(len(failures(c.Checks)))
		for _, check := range c.Checks {
			if check.Result == NotKnown {
				k[1]++
			}
		}
		sb, _, known := s.Standby(c.Node)
		if sb.Sync == "sync" || sb.Sync == "quorum" {
			k[2] = -1
		}
		k[3] = sb.Unflush + sb.Unreplay
		if !known {
			k[3] = 1 << 62
		}
		return k
	}
	slices.SortStableFunc(list, func(a, b Candidate) int {
		ka, kb := key(a), key(b)
		return slices.Compare(ka[:], kb[:])
	})
	return list
}

// best is the target to take if nobody names one, "" if there is none.
func best(list []Candidate) string {
	if len(list) == 0 || len(failures(list[0].Checks)) > 0 {
		return ""
	}
	return list[0].Node
}

func nodeRemedy(n pacemaker.NodeState) string {
	switch {
	case n.Standby && n.Online:
		return "pcs node unstandby " + n.Name + ", or crm node online " + n.Name
	case !n.Online:
		return "start it, or choose another node"
	case n.Maintenance:
		return "pcs node unmaintenance " + n.Name + ", or crm node ready " + n.Name
	}
	return "wait until it is a member of the cluster again"
}

// What people type, with whichever tool they have.

func setProperty(name, value string) string {
	return fmt.Sprintf("pcs property set %s=%s, or crm configure property %s=%s", name, value, name, value)
}

func manage(resource string) string {
	return "pcs resource manage " + resource + ", or crm resource manage " + resource
}

func deleteConstraint(id string) string {
	return "pcs constraint delete " + id + ", or crm configure delete " + id
}

func size(b int64) string {
	switch {
	case b < 0:
		return "an unknown amount"
	case b < 10<<10:
		return fmt.Sprintf("%d B", b)
	case b < 10<<20:
		return fmt.Sprintf("%d kB", b>>10)
	case b < 10<<30:
		return fmt.Sprintf("%d MB", b>>20)
	}
	return fmt.Sprintf("%d GB", b>>30)
}

func seconds(s float64) string {
	if s < 120 {
		return fmt.Sprintf("%.1f s", s)
	}
	return (time.Duration(s) * time.Second).String()
}
