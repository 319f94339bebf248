package lab

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"html"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Status is what a lab looks like at one moment.
type Status struct {
	Asked    string // the node whose view of the cluster this is; empty: none answers
	DC       string // the coordinator, empty if there is none
	Quorum   bool
	Nodes    []NodeStatus
	VIP      string   // the node where the virtual IP runs, empty if nowhere
	Failed   []string // failed actions, as crm_mon names them
	Fenced   []string // fencing events, newest first
	Cut      []Link
	Busy     bool     // the coordinator is not idle: a transition runs or is about to
	Location []string // identities of location constraints, those of moves and bans included
}

// NodeStatus is one node's part of Status.
type NodeStatus struct {
	Name       string
	Power      bool
	Online     bool // a member with Pacemaker running
	Standby    bool
	Role       string            // of PostgreSQL: Promoted, Unpromoted, Starting..., Stopped; empty: unknown
	Score      string            // its promotion score, empty: none
	Attributes map[string]string // transient and permanent, not the private ones: see Attr
	FailCount  string            // of PostgreSQL's resource, empty: none
}

// Node returns a node's part of the status.
func (s *Status) Node(name string) NodeStatus {
	for _, n := range s.Nodes {
		if n.Name == name {
			return n
		}
	}
	return NodeStatus{Name: name}
}

// Promoted returns the names of the nodes in the promoted role: one, hopefully.
func (s *Status) Promoted() []string {
	var names []string
	for _, n := range s.Nodes {
		if n.Role == "Promoted" {
			names = append(names, n.Name)
		}
	}
	return names
}

// monXML is what is read of crm_mon's XML (crm_mon-2.x.rng, the same in 2.1 and 3.0).
type monXML struct {
	DC struct {
		Name   string `xml:"name,attr"`
		Quorum bool   `xml:"with_quorum,attr"`
	} `xml:"summary>current_dc"`
	Nodes []struct {
		Name    string `xml:"name,attr"`
		Online  bool   `xml:"online,attr"`
		Pending bool   `xml:"pending,attr"`
		Standby bool   `xml:"standby,attr"`
	} `xml:"nodes>node"`
	Clones []struct {
		ID        string        `xml:"id,attr"`
		Resources []monResource `xml:"resource"`
	} `xml:"resources>clone"`
	Resources []monResource `xml:"resources>resource"`
	Attrs     []struct {
		Name  string `xml:"name,attr"`
		Attrs []struct {
			Name  string `xml:"name,attr"`
			Value string `xml:"value,attr"`
		} `xml:"attribute"`
	} `xml:"node_attributes>node"`
	History []struct {
		Name      string `xml:"name,attr"`
		Resources []struct {
			ID        string `xml:"id,attr"`
			FailCount string `xml:"fail-count,attr"`
		} `xml:"resource_history"`
	} `xml:"node_history>node"`
	Failures []struct {
		OpKey  string `xml:"op_key,attr"`
		Node   string `xml:"node,attr"`
		Status string `xml:"exitstatus,attr"`
		Reason string `xml:"exitreason,attr"`
		State  string `xml:"status,attr"`
		When   string `xml:"last-rc-change,attr"`
	} `xml:"failures>failure"`
	Fences []struct {
		Target    string `xml:"target,attr"`
		Action    string `xml:"action,attr"`
		Status    string `xml:"status,attr"`
		Completed string `xml:"completed,attr"`
	} `xml:"fence_history>fence_event"`
}

type monResource struct {
	ID    string `xml:"id,attr"`
	Role  string `xml:"role,attr"`
	Nodes []struct {
		Name string `xml:"name,attr"`
	} `xml:"node"`
}

// crmMon asks one node for its view. The legacy names of the roles are mapped to
// the new ones.
func (l *Lab) crmMon(ctx context.Context, node string) (*monXML, error) {
	out, err := l.Run(ctx, node, "crm_mon", "-1", "-A", "-r", "-f", "-m2", "--output-as=xml")
	if err != nil {
		return nil, err
	}
	var m monXML
	if err := xml.Unmarshal([]byte(out), &m); err != nil {
		return nil, fmt.Errorf("crm_mon on %s: %w", node, err)
	}
	return &m, nil
}

// Status asks the cluster how it is, through the first node that answers, if possible
// one that has a quorum. A lab in which no node answers has a status too.
func (l *Lab) Status(ctx context.Context) (*Status, error) {
	s, err := l.View(ctx)
	if err != nil || s.Asked == "" {
		return s, err
	}
	s.Busy = s.DC != "" && l.busy(ctx, s)
	out, err := l.Run(ctx, s.Asked, "cibadmin", "-Q", "--local", "-o", "constraints")
	if err != nil {
		return s, err
	}
	var constraints struct {
		Location []struct {
			ID string `xml:"id,attr"`
		} `xml:"rsc_location"`
	}
	if err := xml.Unmarshal([]byte(out), &constraints); err != nil {
		return s, fmt.Errorf("constraints: %w", err)
	}
	for _, c := range constraints.Location {
		s.Location = append(s.Location, c.ID)
	}
	return s, nil
}

// busy reports whether the coordinator has something to do.
func (l *Lab) busy(ctx context.Context, s *Status) bool {
	// One that has just lost its power does not answer, and crmadmin waits for it for good.
	brief, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	out, err := l.Run(brief, s.Asked, "crmadmin", "-q", "-S", s.DC)
	return err != nil || !strings.Contains(out, "S_IDLE")
}

// View is Status without Busy and Location, which one crm_mon tells: a third of the price, for who polls.
func (l *Lab) View(ctx context.Context) (*Status, error) {
	power, cut, err := l.PowerState()
	if err != nil {
		return nil, err
	}
	s := &Status{Cut: cut}
	for _, n := range l.Names {
		s.Nodes = append(s.Nodes, NodeStatus{Name: n, Power: power[n] != 0, Attributes: map[string]string{}})
	}
	var best *monXML
	for _, n := range l.Names {
		if power[n] == 0 {
			continue
		}
		m, err := l.crmMon(ctx, n)
		if err != nil {
			continue
		}
		if best == nil || m.DC.Quorum && !best.DC.Quorum {
			best, s.Asked = m, n
		}
		if m.DC.Quorum {
			break
		}
	}
	if best == nil {
		return s, ctx.Err()
	}
	s.fill(best)
	return s, nil
}

func (s *Status) fill(m *monXML) {
	s.DC, s.Quorum = m.DC.Name, m.DC.Quorum
	node := func(name string) *NodeStatus {
		i := slices.IndexFunc(s.Nodes, func(n NodeStatus) bool { return n.Name == name })
		if i < 0 {
			return &NodeStatus{Attributes: map[string]string{}}
		}
		return &s.Nodes[i]
	}
	for _, n := range m.Nodes {
		p := node(n.Name)
		p.Online, p.Standby = n.Online && !n.Pending, n.Standby
		if p.Online {
			p.Role = "Stopped"
		}
	}
	for _, c := range m.Clones {
		if c.ID != Clone {
			continue
		}
		for _, r := range c.Resources {
			for _, n := range r.Nodes {
				role := r.Role
				switch role {
				case "Master":
					role = "Promoted"
				case "Slave":
					role = "Unpromoted"
				}
				node(n.Name).Role = role
			}
		}
	}
	for _, r := range m.Resources {
		if r.ID == VIPResource && len(r.Nodes) == 1 {
			s.VIP = r.Nodes[0].Name
		}
	}
	for _, n := range m.Attrs {
		p := node(n.Name)
		for _, a := range n.Attrs {
			p.Attributes[a.Name] = a.Value
			if a.Name == "master-"+Resource {
				p.Score = a.Value
			}
		}
	}
	for _, n := range m.History {
		for _, r := range n.Resources {
			if r.ID == Resource {
				node(n.Name).FailCount = r.FailCount
			}
		}
	}
	for _, f := range m.Failures {
		s.Failed = append(s.Failed, fmt.Sprintf("%s on %s: %s (%s) %s %s", f.OpKey, f.Node, f.Status, f.State, html.UnescapeString(f.Reason), f.When))
	}
	for _, f := range m.Fences {
		s.Fenced = append(s.Fenced, fmt.Sprintf("%s of %s: %s %s", f.Action, f.Target, f.Status, f.Completed))
	}
}

// Attr returns the value of a node attribute on a node, private ones too, as seen from
// the node "from". No such attribute, or none on that node: an empty string.
func (l *Lab) Attr(ctx context.Context, from, node, name string) (string, error) {
	out, stderr, exit, err := l.Exec(ctx, from, "attrd_updater", "-Q", "-n", name, "-N", node)
	if err != nil {
		return "", err
	}
	if exit != 0 {
		if strings.Contains(stderr+out, "No such device") {
			return "", nil
		}
		return "", fmt.Errorf("attribute %s of %s on %s: exit code %d: %s", name, node, from, exit, strings.TrimSpace(stderr))
	}
	// name="x" host="n1" value="y"
	_, value, ok := strings.Cut(out, `value="`)
	if !ok {
		return "", nil
	}
	return strings.TrimSuffix(strings.TrimSpace(value), `"`), nil
}

// errNotYet marks a condition that may still come true.
type errNotYet struct{ what string }

func (e errNotYet) Error() string { return e.what }

// Poll calls f until it returns nil, an error that is not made by NotYet, or the
// context ends: then the error says what was still missing before it ended.
func Poll(ctx context.Context, every time.Duration, f func() error) error {
	var missing error
	for {
		err := f()
		var notYet errNotYet
		if err == nil || ctx.Err() == nil && !errors.As(err, &notYet) {
			return err
		}
		if ctx.Err() == nil || missing == nil {
			missing = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", missing, ctx.Err())
		case <-time.After(every):
		}
	}
}

// NotYet is the error for Poll that says what is still missing.
func NotYet(format string, args ...any) error { return errNotYet{fmt.Sprintf(format, args...)} }

// DefaultWait bounds the waiting methods when their context has no deadline.
const DefaultWait = 60 * time.Second

func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, DefaultWait)
}

// WaitPromoted waits until Pacemaker shows one node promoted, this one if it is not
// empty, PostgreSQL on it is writable, and the virtual IP is there. It returns the
// node's name.
func (l *Lab) WaitPromoted(ctx context.Context, node string) (string, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	found := ""
	err := Poll(ctx, 200*time.Millisecond, func() error {
		s, err := l.View(ctx)
		if err != nil {
			return NotYet("lab %s: %v", l.Name, err)
		}
		p := s.Promoted()
		if len(p) != 1 || node != "" && p[0] != node {
			return NotYet("lab %s: expected %s promoted, found %v (failed actions: %v)", l.Name, or(node, "one node"), p, s.Failed)
		}
		if s.VIP != p[0] {
			return NotYet("lab %s: %s is promoted, the virtual IP is on %q", l.Name, p[0], s.VIP)
		}
		out, err := l.SQL(ctx, p[0], "SELECT pg_is_in_recovery()")
		if err != nil || out != "f" {
			return NotYet("lab %s: %s is promoted, but pg_is_in_recovery() there is %q (%v)", l.Name, p[0], out, err)
		}
		found = p[0]
		return nil
	})
	return found, err
}

// WaitAllStreaming waits until every other node streams from the primary and has
// replayed what the primary had written when it was asked.
func (l *Lab) WaitAllStreaming(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	return Poll(ctx, 200*time.Millisecond, func() error {
		s, err := l.View(ctx)
		if err != nil {
			return NotYet("lab %s: %v", l.Name, err)
		}
		p := s.Promoted()
		if len(p) != 1 {
			return NotYet("lab %s: expected one primary, found %v", l.Name, p)
		}
		return l.allStream(ctx, p[0])
	})
}

// endsItsPage reports whether the WAL position on the first line is the end of a page.
func endsItsPage(rows string) bool {
	lsn, _, _ := strings.Cut(rows, "\n")
	_, low, _ := strings.Cut(lsn, "/")
	at, err := strconv.ParseUint(low, 16, 32)
	return err == nil && at%8192 == 0
}

// allStream asks the primary who streams from it, and each standby whether it does
// and has replayed what the primary had flushed a moment ago. The primary alone does
// not know: the connection of a node that lost its power looks well for a minute.
func (l *Lab) allStream(ctx context.Context, primary string) error {
	const ask = "SELECT pg_current_wal_flush_lsn(); SELECT application_name || '|' || state FROM pg_stat_replication"
	out, err := l.SQL(ctx, primary, ask)
	if err == nil && endsItsPage(out) {
		// The WAL writer flushes whole pages, and leaves the rest of a record to a commit: no standby can replay that far
		// before there is one.
		out, err = l.SQL(ctx, primary, "SET synchronous_commit = local; SELECT pg_logical_emit_message(true, 'lab', ''); "+ask)
		_, out, _ = strings.Cut(out, "\n")
	}
	if err != nil {
		return NotYet("%v", err)
	}
	rows := strings.Split(out, "\n")
	for _, n := range l.Instances() {
		if n == primary {
			continue
		}
		if !slices.Contains(rows, n+"|streaming") {
			return NotYet("lab %s: %s does not stream from %s, whose walsenders are %q", l.Name, n, primary, rows[1:])
		}
		got, err := l.SQL(ctx, n, "SELECT coalesce((SELECT status FROM pg_stat_wal_receiver), 'no receiver'), pg_last_wal_replay_lsn() >= '"+rows[0]+"', pg_last_wal_replay_lsn()")
		if err != nil {
			return NotYet("%v", err)
		}
		if !strings.HasPrefix(got, "streaming|t|") {
			return NotYet("lab %s: %s says of itself %s (receiver|caught up|replayed), expected streaming up to %s", l.Name, n, got, rows[0])
		}
	}
	return nil
}
