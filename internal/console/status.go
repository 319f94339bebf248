package console

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// Status is what a person wants to know first: who is what, and what stands in the way.
type Status struct {
	Resource    string       `json:"resource"`
	Coordinator string       `json:"coordinator"` // empty: none
	Quorum      bool         `json:"quorum"`
	Fencing     bool         `json:"fencing"`
	Maintenance bool         `json:"maintenance"`
	Primary     []string     `json:"primary"` // names: one, hopefully
	Nodes       []NodeStatus `json:"nodes"`
	Note        string       `json:"note,omitempty"`   // of the last primary that ended
	Claims      []string     `json:"claims,omitempty"` // timelines that may hold rows, oldest first
	Constraints []string     `json:"constraints,omitempty"`
	Failures    []string     `json:"failures,omitempty"`
}

// NodeStatus is one node's part of a [Status].
type NodeStatus struct {
	Name   string `json:"name"`
	State  string `json:"state"`           // online, offline, standby, maintenance, unclean, pending
	Role   string `json:"role"`            // Promoted, Unpromoted, Stopped; with the action under way
	Score  string `json:"score,omitempty"` // promotion score, empty: none
	Says   string `json:"says,omitempty"`  // why it refuses or has diverged
	Silent bool   `json:"silent"`          // it publishes nothing: its agent does not run there, or its bulletin is unreadable
}

// ReadStatus asks the cluster.
func ReadStatus(ctx context.Context, run pacemaker.Runner, resource string) (Status, error) {
	state, err := pacemaker.ReadState(ctx, run)
	if err != nil {
		return Status{}, fmt.Errorf("the cluster does not answer, is Pacemaker running here? %w", err)
	}
	values, err := pacemaker.NewAttrd(run).QueryAll(ctx, baton.BulletinAttribute(resource))
	if err != nil {
		return Status{}, err
	}
	constraints, err := pacemaker.RoleConstraints(ctx, run, resource)
	if err != nil {
		return Status{}, err
	}
	return statusOf(resource, state, values, constraints), nil
}

func statusOf(resource string, state pacemaker.ClusterState, bulletins map[string]string, constraints []pacemaker.Constraint) Status {
	s := Status{
		Resource: resource, Coordinator: state.DC, Quorum: state.Quorum,
		Fencing: state.FencingEnabled, Maintenance: state.MaintenanceMode,
	}
	var list []baton.Bulletin
	readable := map[string]bool{}
	for node, v := range bulletins {
		if b, err := baton.Decode(v); err == nil && b.Node == node {
			list = append(list, b)
			readable[node] = true
		}
	}
	for _, n := range state.Nodes {
		attrs := state.Attributes[n.Name]
		ns := NodeStatus{
			Name: n.Name, State: nodeState(n), Role: pacemaker.RoleStopped,
			Score: attrs["master-"+resource], Says: attrs["pgbaton-status-"+resource], Silent: !readable[n.Name],
		}
		for _, i := range state.Instances {
			if i.Resource != resource || i.Node != n.Name {
				continue
			}
			ns.Role = i.Role
			if i.Role == pacemaker.RolePromoted {
				s.Primary = append(s.Primary, n.Name)
			}
			if i.Blocked {
				ns.Role += ", blocked"
			}
			if i.Failed {
				ns.Role += ", failed"
			}
			if !i.Managed {
				ns.Role += ", unmanaged"
			}
			if i.Pending != "" {
				ns.Role += ", " + i.Pending
			}
		}
		s.Nodes = append(s.Nodes, ns)
	}
	know := baton.Gather(list, "")
	if know.Note != nil {
		s.Note = know.Note.String()
	}
	for _, c := range know.Claims {
		if c.Open() {
			s.Claims = append(s.Claims, c.String())
		}
	}
	for _, c := range constraints {
		s.Constraints = append(s.Constraints, fmt.Sprintf("%s: %s on %s", c.ID, c.Score, c.Node))
	}
	for _, f := range state.Failures {
		text := fmt.Sprintf("%s of %s on %s: %s", f.Action, f.Resource, f.Node, f.Text)
		if f.Reason != "" {
			text += ": " + f.Reason
		}
		s.Failures = append(s.Failures, text)
	}
	return s
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

// Healthy tells whether there is nothing for a person to do: one primary, a quorum, every node a standby or the primary.
func (s Status) Healthy() bool {
	return len(s.Primary) == 1 && s.Quorum && !s.Maintenance && len(s.Failures) == 0 &&
		!slices.ContainsFunc(s.Nodes, func(n NodeStatus) bool { return n.State != "online" || n.Says != "" || n.Silent })
}

// Text writes the status for a person.
func (s Status) Text(w io.Writer) {
	yes := map[bool]string{true: "yes", false: "NO"}
	fmt.Fprintf(w, "%s: coordinator %s, quorum %s, fencing %s", s.Resource, or(s.Coordinator, "NONE"), yes[s.Quorum], yes[s.Fencing])
	if s.Maintenance {
		fmt.Fprint(w, ", MAINTENANCE")
	}
	fmt.Fprintln(w)
	switch len(s.Primary) {
	case 0:
		fmt.Fprintln(w, "NO PRIMARY")
	case 1:
	default:
		fmt.Fprintf(w, "%d PRIMARIES\n", len(s.Primary))
	}
	fmt.Fprintln(w)
	fmt.Fprintf(w, "%-14s %-12s %-24s %s\n", "node", "state", "role", "score")
	for _, n := range s.Nodes {
		fmt.Fprintf(w, "%-14s %-12s %-24s %s\n", n.Name, n.State, n.Role, or(n.Score, "none"))
		if n.Silent && n.State == "online" {
			fmt.Fprintln(w, "    tells the others nothing: does the agent run there, in the same version?")
		}
		for _, l := range wrap(n.Says, 72) {
			fmt.Fprintf(w, "    %s\n", l)
		}
	}
	paragraph := func(title string, lines ...string) {
		if len(lines) == 0 || lines[0] == "" {
			return
		}
		fmt.Fprintf(w, "\n%s\n", title)
		for _, l := range lines {
			for _, part := range wrap(l, 74) {
				fmt.Fprintf(w, "  %s\n", part)
			}
		}
	}
	paragraph("failed actions (crm_resource --cleanup, once they are understood)", s.Failures...)
	paragraph("constraints on the role (crm_resource --clear, once they have served)", s.Constraints...)
	paragraph("how the last primary ended", s.Note)
	paragraph("timelines that may hold rows", s.Claims...)
}

func or(a, b string) string {
	if strings.TrimSpace(a) == "" {
		return b
	}
	return a
}
