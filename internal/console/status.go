package console

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// statusVersion is that of the JSON form, which docs/command.md describes. New fields do not change it.
const statusVersion = 1

// Status is what a person wants to know first: who is what, what is wrong, and whether the role can be handed over.
type Status struct {
	Version     int          `json:"version"`
	Time        time.Time    `json:"time"`
	SeenFrom    string       `json:"seen_from"` // this node
	Resource    string       `json:"resource"`
	Clone       string       `json:"clone"`
	Pacemaker   string       `json:"pacemaker"`   // version
	Coordinator string       `json:"coordinator"` // empty: none
	Quorum      bool         `json:"quorum"`
	Fencing     bool         `json:"fencing"`
	Maintenance bool         `json:"maintenance"`
	Primary     []string     `json:"primary"` // names: one, hopefully
	Nodes       []NodeStatus `json:"nodes"`
	Problems    []Problem    `json:"problems"`
	Handover    Handover     `json:"handover"`
	Constraints []string     `json:"constraints"`      // for the role, in force
	Note        string       `json:"note,omitempty"`   // of the last primary that ended
	Claims      []string     `json:"claims,omitempty"` // timelines that may hold rows, oldest first
}

// NodeStatus is one node's part of a [Status]. What is not known is absent.
type NodeStatus struct {
	Name     string   `json:"name"`
	State    string   `json:"state"`           // online, offline, standby, maintenance, unclean, pending, leaving
	Role     string   `json:"role"`            // primary, standby, stopped, or what is under way: promoting, demoting, ...
	Score    string   `json:"score,omitempty"` // promotion score
	Server   string   `json:"server"`          // runs, streams, catchup, startup, paused, "does not stream", "not known"
	Timeline uint32   `json:"timeline,omitempty"`
	LSN      string   `json:"lsn,omitempty"` // written by a primary, replayed by a standby
	Lag      *int64   `json:"lag_bytes,omitempty"`
	LagTime  *float64 `json:"lag_seconds,omitempty"`
	Sync     string   `json:"sync,omitempty"`        // sync, quorum, potential, async
	Age      *float64 `json:"age_seconds,omitempty"` // of what is known of its server; 0: asked just now
	Says     string   `json:"says,omitempty"`        // why it refuses or has diverged
}

// Severity of a problem.
type Severity string

// The severities. A warning does not keep the cluster from doing its work.
const (
	Critical Severity = "critical"
	Warning  Severity = "warning"
)

// Problem is something for a person.
type Problem struct {
	Severity Severity `json:"severity"`
	Node     string   `json:"node,omitempty"`
	Text     string   `json:"text"`
	Do       string   `json:"do,omitempty"`
}

// Handover tells whether the role could be handed over now.
type Handover struct {
	Possible bool     `json:"possible"`
	To       []string `json:"to"`            // the best first
	Why      string   `json:"why,omitempty"` // it is not possible
}

// ReadStatus asks.
func (w World) ReadStatus(ctx context.Context, resource string) (Status, error) {
	snap, err := w.Take(ctx, resource)
	if err != nil {
		return Status{}, err
	}
	return snap.Status(), nil
}

// Status is the snapshot in a person's words.
func (s *Snapshot) Status() Status {
	st := Status{
		Version: statusVersion, Time: s.Taken, SeenFrom: s.Here, Resource: s.Resource, Clone: s.Clone,
		Pacemaker: s.State.Version, Coordinator: s.State.DC, Quorum: s.State.Quorum,
		Fencing: s.State.FencingEnabled,
		Primary: s.State.Promoted(s.Resource), Problems: []Problem{}, Constraints: []string{},
	}
	_, st.Maintenance = s.Paused()
	if st.Primary == nil {
		st.Primary = []string{}
	}
	for _, n := range s.State.Nodes {
		st.Nodes = append(st.Nodes, s.nodeStatus(n))
	}
	slices.SortFunc(st.Nodes, func(a, b NodeStatus) int { return strings.Compare(a.Name, b.Name) })
	know := baton.Gather(s.Bulletins, "")
	if know.Note != nil {
		st.Note = know.Note.String()
	}
	for _, c := range know.Claims {
		if c.Open() {
			st.Claims = append(st.Claims, c.String())
		}
	}
	for _, c := range s.Config.RoleConstraints(s.Resource, s.Taken) {
		st.Constraints = append(st.Constraints, fmt.Sprintf("%s: %s on %s", c.ID, c.Score, c.Node))
	}
	st.Problems = s.problems()
	st.Handover = s.handover()
	return st
}

func (s *Snapshot) nodeStatus(n pacemaker.NodeState) NodeStatus {
	ns := NodeStatus{
		Name: n.Name, State: nodeState(n), Role: "stopped",
		Score: s.State.Attributes[n.Name][pacemaker.ScoreAttribute(s.Resource)], Says: s.says(n.Name), Server: "not known",
	}
	in, runs := s.Instance(n.Name)
	if !runs || in.Role == pacemaker.RoleStopped {
		ns.Server = ""
		return ns
	}
	ns.Role = roleWord(in)
	v, hasView := s.Views[n.Name]
	if hasView {
		age := s.ageSeconds(v.At)
		ns.Age, ns.Timeline, ns.LSN = &age, v.Timeline, v.LSN
	}
	if in.Role == pacemaker.RolePromoted {
		if hasView && v.Primary {
			ns.Server = "runs"
		}
		return ns
	}
	st := s.Standing(n.Name)
	switch {
	case hasView && v.Paused && s.Age(v.At) <= oldView:
		ns.Server = "paused"
	case !st.Known:
	case st.State == "":
		ns.Server = "does not stream"
	case st.State == "streaming":
		ns.Server = "streams"
	default:
		ns.Server = st.State
	}
	if st.Known && ns.Server != "paused" {
		age := s.ageSeconds(st.At)
		ns.Age = &age
	}
	if sb, _, known := s.Standby(n.Name); known && sb.State != "" && sb.Unreplay >= 0 {
		lag, behind := sb.Unreplay, sb.Behind
		ns.Lag, ns.LagTime, ns.Sync = &lag, &behind, sb.Sync
	}
	return ns
}

// ageSeconds is an age to the millisecond.
func (s *Snapshot) ageSeconds(at time.Time) float64 {
	return float64(s.Age(at).Milliseconds()) / 1000
}

// roleWord is PostgreSQL's word for a role, or what is under way.
func roleWord(in pacemaker.Instance) string {
	word := map[string]string{
		pacemaker.RolePromoted: "primary", pacemaker.RoleUnpromoted: "standby", pacemaker.RoleStarted: "started", pacemaker.RoleStopped: "stopped",
	}[in.Role]
	if word == "" {
		word = strings.ToLower(in.Role)
	}
	if in.Pending != "" && in.Pending != "Monitoring" {
		word = strings.ToLower(in.Pending)
	}
	return word
}

func nodeState(n pacemaker.NodeState) string {
	switch {
	case n.Unclean:
		return "unclean"
	case n.Pending:
		return "pending"
	case !n.Online:
		return "offline"
	case n.Shutdown:
		return "leaving"
	case n.Standby:
		return "standby"
	case n.Maintenance:
		return "maintenance"
	}
	return "online"
}

// problems are what a person should know, the worst first.
func (s *Snapshot) problems() []Problem {
	list := []Problem{}
	add := func(sev Severity, node, do, format string, args ...any) {
		list = append(list, Problem{sev, node, fmt.Sprintf(format, args...), do})
	}
	switch p := s.State.Promoted(s.Resource); {
	case len(p) > 1:
		add(Critical, "", "wait for Pacemaker to demote all but one; if it does not, stop one by hand: crm_resource --ban", "%s are primaries", strings.Join(p, " and "))
	case len(p) == 0 && s.underWay() != "":
		add(Warning, "", "", "there is no primary at the moment: %s", s.underWay())
	case len(p) == 0:
		add(Critical, "", "what keeps each node from it stands below and in README.md, When nobody is promoted", "there is no primary")
	}
	switch {
	case s.State.DC == "":
		add(Critical, "", "look at the network and at corosync-cfgtool -s; a coordinator is elected within seconds", "the cluster has no coordinator: nothing is decided")
	case !s.State.Quorum:
		add(Critical, "", "start more nodes, or mend the network: corosync-quorumtool", "this part of the cluster has no quorum: nothing is promoted here")
	}
	if !s.State.FencingEnabled {
		add(Warning, "", "give every node a device (README.md, Configuration), then "+setProperty("stonith-enabled", "true"), "fencing is off: no node can know that a silent primary is gone")
	}
	by, paused := s.Paused()
	if way := s.setupWay(); way != "" {
		add(Warning, "", endSetup+way, unfinishedSetup)
	} else if paused {
		add(Warning, "", resumeHow(s.State.MaintenanceMode), "%s: nothing is monitored, a failure is not acted upon", by)
	}
	if s.State.StopAllResources {
		add(Critical, "", setProperty("stop-all-resources", "false"), "stop-all-resources is set")
	}
	for _, n := range s.State.Nodes {
		s.nodeProblems(n, paused, add)
	}
	failed := s.State.FailuresOf(s.Resource)
	for _, f := range failed {
		add(Warning, f.Node, "once it is understood: crm_resource --cleanup -r "+s.Resource+" -N "+f.Node, "%s failed on %s: %s", f.Action, f.Node, or(f.Reason, f.Text))
	}
	for _, c := range s.State.FailCounts {
		if c.Resource == s.Resource && !slices.ContainsFunc(failed, func(f pacemaker.Failure) bool { return f.Node == c.Node }) {
			add(Warning, c.Node, "crm_resource --cleanup -r "+s.Resource+" -N "+c.Node, "the fail count of %s on %s is %s", s.Resource, c.Node, c.Count)
		}
	}
	for _, m := range s.leftMoves() {
		switch {
		case !m.InForce(s.Taken):
		case strings.HasPrefix(m.Rule, rulePrefix):
			add(Warning, "", "", "a pgbaton switchover begun on %s is under way, or was killed: %s", ruleNode(m.Rule), m)
		default:
			add(Warning, "", m.Clear(), "a constraint of a move or ban is left: %s", m)
		}
	}
	slices.SortStableFunc(list, func(a, b Problem) int { return strings.Compare(string(a.Severity), string(b.Severity)) })
	return list
}

// serverLog is where the output of a server goes that the agent started.
func (s *Snapshot) serverLog() string {
	return or(s.Config.Parameters(s.Resource)["logfile"], "/var/log/pgbaton/"+s.Resource+"-postgresql.log")
}

// underWay names the action that is under way, "" if none is.
func (s *Snapshot) underWay() string {
	for _, in := range s.State.Of(s.Resource) {
		if word := roleWord(in); in.Node != "" && strings.HasSuffix(word, "ing") && word != "monitoring" {
			return word + " " + in.Node
		}
	}
	return ""
}

func (s *Snapshot) nodeProblems(n pacemaker.NodeState, paused bool, add func(Severity, string, string, string, ...any)) {
	state := nodeState(n)
	switch {
	case n.Unclean:
		add(Critical, n.Name, "Pacemaker fences it; if that fails, see crm_mon and stonith_admin --history '*'", "%s is unclean: it must be fenced before anything of it is taken over", n.Name)
	case !n.Online:
		add(Warning, n.Name, "start it", "%s is offline", n.Name)
	case state == "standby":
		add(Warning, n.Name, nodeRemedy(n), "%s is in standby mode: nothing runs there", n.Name)
	case state == "maintenance":
		add(Warning, n.Name, nodeRemedy(n), "%s is in maintenance", n.Name)
	case state != "online":
		add(Warning, n.Name, "", "%s is %s", n.Name, state)
	}
	if !n.Usable() {
		return
	}
	says := s.says(n.Name)
	if strings.HasPrefix(says, "does not follow") {
		says = "" // what the primary says of it, below, is newer and tells more
	}
	in, runs := s.Instance(n.Name)
	switch {
	case (!runs || in.Role == pacemaker.RoleStopped) && s.banned(n.Name):
		return // it only votes
	case !runs || in.Role == pacemaker.RoleStopped:
		add(Warning, n.Name, "crm_mon -1f shows why; once mended: crm_resource --cleanup -r "+s.Resource+" -N "+n.Name, "the resource does not run on %s", n.Name)
		return
	case in.Blocked:
		add(Critical, n.Name, "look at it, then crm_resource --cleanup -r "+s.Resource+" -N "+n.Name, "%s is blocked on %s by a failure that only a person can clear", s.Resource, n.Name)
	case !in.Managed && !paused:
		add(Warning, n.Name, manage(s.Resource), "%s is not managed on %s", s.Resource, n.Name)
	}
	if says != "" {
		text, commands, has := strings.Cut(says, " $ ")
		do := "its agent lifts this by itself once it streams from the primary"
		if len(s.State.Promoted(s.Resource)) == 0 {
			do = "its agent tries again by itself; if nobody is promoted: README.md, When nobody is promoted"
		}
		switch {
		case has:
			do = "$ " + commands
		case strings.Contains(says, "the rewind stopped"):
			do = "mend that: it is tried again by itself"
		case strings.HasPrefix(says, "diverged"), strings.HasPrefix(says, "kept out"):
			do = "nothing: it is rewound, and comes back by itself"
		}
		add(Warning, n.Name, do, "%s %s", n.Name, text)
	}
	if err := s.Unreadable[n.Name]; err != nil {
		add(Warning, n.Name, "install the same version of pgbaton everywhere", "what %s says cannot be read here: %v", n.Name, err)
	} else if !slices.ContainsFunc(s.Bulletins, func(b baton.Bulletin) bool { return b.Node == n.Name }) {
		add(Warning, n.Name, "look there at /var/log/pgbaton/"+s.Resource+".log", "the agent on %s says nothing", n.Name)
	}
	if n.Name == s.Here && s.LocalErr != nil && !errors.Is(s.LocalErr, errNotHere) {
		add(Warning, n.Name, "look at its log: "+s.serverLog(), "the server on %s does not answer: %v", n.Name, s.LocalErr)
	}
	if in.Role != pacemaker.RoleUnpromoted || says != "" {
		return
	}
	ns := s.nodeStatus(n)
	switch {
	case ns.Server == "does not stream":
		add(Warning, n.Name, "look at its server's log and primary_conninfo; is its application_name "+n.Name+"?", "%s does not stream from the primary%s", n.Name, s.aged(ns))
	case ns.Server == "paused":
		add(Warning, n.Name, "on "+n.Name+": SELECT pg_wal_replay_resume()", "replay is paused on %s%s", n.Name, s.aged(ns))
	}
}

func (s *Snapshot) aged(n NodeStatus) string {
	if n.Age == nil || *n.Age < 1 {
		return ""
	}
	return fmt.Sprintf(" (%s)", ago(time.Duration(*n.Age*float64(time.Second))))
}

func (s *Snapshot) handover() Handover {
	h := Handover{To: []string{}}
	if bad := failures(s.ClusterChecks()); len(bad) > 0 {
		h.Why = bad[0].Text
		return h
	}
	list := s.Candidates()
	for _, c := range list {
		if bad := failures(c.Checks); len(bad) == 0 {
			h.To = append(h.To, c.Node)
		} else if h.Why == "" {
			h.Why = bad[0].Text
		}
	}
	if h.Possible = len(h.To) > 0; h.Possible {
		h.Why = ""
	}
	return h
}

// Healthy tells whether there is nothing for a person to do.
func (s Status) Healthy() bool { return len(s.Problems) == 0 && len(s.Primary) == 1 }

func or(a, b string) string {
	if strings.TrimSpace(a) == "" {
		return b
	}
	return a
}
