package pacemaker

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The roles of an instance, by their names since Pacemaker 2.1.
const (
	RolePromoted   = "Promoted"
	RoleUnpromoted = "Unpromoted"
	RoleStarted    = "Started"
	RoleStopped    = "Stopped"
)

// ClusterState is the cluster as this node's partition sees it.
type ClusterState struct {
	DC      string // name of the designated controller; empty: none elected
	Version string // of Pacemaker on the DC
	Quorum  bool   // the DC's partition has it; false without a DC

	MaintenanceMode  bool // the whole cluster is in maintenance
	StopAllResources bool
	FencingEnabled   bool

	Nodes      []NodeState
	Instances  []Instance // of every resource
	Failures   []Failure  // failed actions that nobody has cleaned up
	FailCounts []FailCount
	Bans       []Ban // location constraints of -INFINITY in force

	// Attributes are the node attributes in the CIB, permanent and transient, by
	// node and name; of nodes that are online. Private ones are not among them.
	Attributes map[string]map[string]string
}

// FailCount is how often a resource has failed on a node.
type FailCount struct {
	Node, Resource string
	Count          Score // Infinity after a failed start or stop
}

// NodeState is one node of the cluster.
type NodeState struct {
	Name, ID    string
	Online      bool // its controller is a member
	Standby     bool // by a person or on-fail
	Maintenance bool
	Pending     bool // joins, not yet a member
	Unclean     bool // to be fenced, or fencing is under way
	Shutdown    bool // leaves
	DC          bool
}

// Usable tells whether Pacemaker may run an instance there, by the node's state.
func (n NodeState) Usable() bool {
	return n.Online && !n.Standby && !n.Pending && !n.Unclean && !n.Shutdown
}

// Instance is one instance of a resource; those of a clone that run nowhere have
// no node.
type Instance struct {
	Resource string // without the number of a clone's instance
	Clone    string // id of the clone; empty if there is none
	Agent    string // such as "ocf:pgbaton:postgresql"
	Node     string
	Role     string // RolePromoted, RoleUnpromoted, RoleStarted or RoleStopped
	Pending  string // the action under way, such as "Promoting"; empty if none

	Active         bool
	Managed        bool
	Blocked        bool // a failure that only a person can clear holds it
	Failed         bool
	FailureIgnored bool
	Orphaned       bool // not configured any more
}

// Failure is a failed action in the history of a node.
type Failure struct {
	Node     string
	Resource string // without the number of a clone's instance
	Action   string
	Code     int    // the agent's exit code
	Text     string // of the exit code, in Pacemaker's words
	Reason   string // the agent's exit reason
	Status   string // how it ended for Pacemaker, such as "complete" or "Timed Out"
	When     string // as Pacemaker writes it
}

// Ban is a location constraint of -INFINITY.
type Ban struct {
	ID, Resource, Node string
	PromotedOnly       bool
}

// ReadState asks crm_mon for the state of the cluster.
func ReadState(ctx context.Context, r Runner) (ClusterState, error) {
	out, err := r.Run(ctx, "crm_mon", "--output-as=xml", "--one-shot", "--inactive")
	if err != nil {
		return ClusterState{}, fmt.Errorf("read the state of the cluster: %w", err)
	}
	s, err := ParseState(out)
	if err != nil {
		return s, fmt.Errorf("read the state of the cluster: %w", err)
	}
	return s, nil
}

// ParseState reads what crm_mon --output-as=xml prints.
func ParseState(out []byte) (ClusterState, error) {
	root, err := parseXML(out)
	if err != nil {
		return ClusterState{}, fmt.Errorf("crm_mon's answer is not XML: %w", err)
	}
	if root.name() != "pacemaker-result" && root.name() != "pacemaker" && root.name() != "crm_mon" {
		return ClusterState{}, fmt.Errorf("crm_mon's answer is <%s>: expected <pacemaker-result>", root.name())
	}
	// Since 2.1.0 a failed command prints its reason as XML, too.
	if st := root.child("status"); st.attr("code") != "" && st.attr("code") != "0" {
		return ClusterState{}, fmt.Errorf("crm_mon: %s (exit status %s)", st.attr("message"), st.attr("code"))
	}
	summary := root.child("summary")
	if summary.name() == "" {
		return ClusterState{}, errors.New("crm_mon's answer has no <summary>: expected the state of a running cluster")
	}
	dc, opts := summary.child("current_dc"), summary.child("cluster_options")
	s := ClusterState{
		DC:               dc.attr("name"),
		Version:          dc.attr("version"),
		Quorum:           dc.isSet("with_quorum"),
		MaintenanceMode:  opts.isSet("maintenance-mode"),
		StopAllResources: opts.isSet("stop-all-resources"),
		FencingEnabled:   opts.isSet("stonith-enabled") || opts.isSet("fencing-enabled"),
	}
	for _, n := range root.child("nodes").Children {
		if n.name() != "node" {
			continue
		}
		s.Nodes = append(s.Nodes, NodeState{
			Name: n.attr("name"), ID: n.attr("id"),
			Online:      n.isSet("online"),
			Standby:     n.isSet("standby") || n.isSet("standby_onfail"),
			Maintenance: n.isSet("maintenance"),
			Pending:     n.isSet("pending"),
			Unclean:     n.isSet("unclean"),
			Shutdown:    n.isSet("shutdown"),
			DC:          n.isSet("is_dc"),
		})
	}
	s.instances(root.child("resources"), "")
	for f := range root.child("failures").all("failure") {
		s.Failures = append(s.Failures, parseFailure(f))
	}
	for b := range root.child("bans").all("ban") {
		s.Bans = append(s.Bans, Ban{
			ID: b.attr("id"), Resource: b.attr("resource"), Node: b.attr("node"),
			PromotedOnly: b.isSet("promoted-only") || b.isSet("master_only"),
		})
	}
	for n := range root.child("node_history").all("node") {
		for h := range n.all("resource_history") {
			// An absent count is 0; an unreadable one cannot come from Pacemaker.
			if count, err := ParseScore(h.attr("fail-count")); err == nil && count > 0 {
				s.FailCounts = append(s.FailCounts, FailCount{Node: n.attr("name"), Resource: instanceName(h.attr("id")), Count: count})
			}
		}
	}
	s.Attributes = map[string]map[string]string{}
	for n := range root.child("node_attributes").all("node") {
		values := map[string]string{}
		for at := range n.all("attribute") {
			values[at.attr("name")] = at.attr("value")
		}
		s.Attributes[n.attr("name")] = values
	}
	return s, nil
}

// Score returns the promotion score of a resource on a node that the CIB shows, and
// whether there is one that can be read.
func (s ClusterState) Score(node, resource string) (Score, bool) {
	v, ok := s.Attributes[node][ScoreAttribute(resource)]
	if !ok {
		return 0, false
	}
	score, err := ParseScore(v)
	return score, err == nil
}

// instances collects the instances below e, which belong to clone.
func (s *ClusterState) instances(e element, clone string) {
	for _, c := range e.Children {
		switch c.name() {
		case "clone":
			s.instances(c, c.attr("id"))
		case "resource":
			s.addResource(c, clone)
		default: // group, bundle, replica
			s.instances(c, clone)
		}
	}
}

func (s *ClusterState) addResource(e element, clone string) {
	in := Instance{
		Resource:       instanceName(e.attr("id")),
		Clone:          clone,
		Agent:          strings.Replace(e.attr("resource_agent"), "::", ":", 1), // "ocf::" before 2.1
		Role:           roleName(e.attr("role")),
		Pending:        e.attr("pending"),
		Active:         e.isSet("active"),
		Managed:        e.isSet("managed"),
		Blocked:        e.isSet("blocked"),
		Failed:         e.isSet("failed"),
		FailureIgnored: e.isSet("failure_ignored"),
		Orphaned:       e.isSet("orphaned"),
	}
	found := false
	for _, n := range e.Children {
		if n.name() == "node" {
			in.Node = n.attr("name")
			s.Instances = append(s.Instances, in)
			found = true
		}
	}
	if !found {
		s.Instances = append(s.Instances, in)
	}
}

// operationKey is RESOURCE_ACTION_INTERVAL, in which the resource may hold underscores of its own, and some actions do.
var operationKey = regexp.MustCompile(`^(.+?)_((?:(?:pre|post)_notify_)?[^_]+|migrate_(?:to|from))_[0-9]+$`)

func parseFailure(e element) Failure {
	key := e.attr("op_key")
	if key == "" {
		key = e.attr("id")
	}
	f := Failure{
		Node: e.attr("node"), Resource: key, Text: e.attr("exitstatus"),
		Reason: e.attr("exitreason"), Status: e.attr("status"), When: e.attr("last-rc-change"),
	}
	f.Code, _ = strconv.Atoi(e.attr("exitcode"))
	if m := operationKey.FindStringSubmatch(key); m != nil {
		f.Resource, f.Action = m[1], m[2]
	}
	f.Resource = instanceName(f.Resource)
	if f.Reason == "none" { // how 2.0 writes "no reason"
		f.Reason = ""
	}
	return f
}

// FailuresOf returns the failed actions of a resource, which is named without the number of a clone's instance.
func (s ClusterState) FailuresOf(resource string) []Failure {
	return slices.DeleteFunc(slices.Clone(s.Failures), func(f Failure) bool { return f.Resource != resource })
}

// Of returns the instances of a resource, which is named without the number of a
// clone's instance.
func (s ClusterState) Of(resource string) []Instance {
	var out []Instance
	for _, in := range s.Instances {
		if in.Resource == resource {
			out = append(out, in)
		}
	}
	return out
}

// Promoted returns the nodes on which Pacemaker takes the resource for promoted. An
// instance whose promotion failed is among them until it has been demoted.
func (s ClusterState) Promoted(resource string) []string {
	var nodes []string
	for _, in := range s.Of(resource) {
		if in.Role == RolePromoted && in.Node != "" {
			nodes = append(nodes, in.Node)
		}
	}
	return nodes
}

// Node returns the state of a node.
func (s ClusterState) Node(name string) (NodeState, bool) {
	for _, n := range s.Nodes {
		if n.Name == name {
			return n, true
		}
	}
	return NodeState{}, false
}

// instanceName cuts the number of a clone's instance off.
func instanceName(s string) string {
	i := strings.LastIndexByte(s, ':')
	if i <= 0 {
		return s
	}
	if _, err := strconv.ParseUint(s[i+1:], 10, 32); err != nil {
		return s
	}
	return s[:i]
}

// roleName translates the names of Pacemaker before 2.1.
func roleName(s string) string {
	switch s {
	case "Master":
		return RolePromoted
	case "Slave":
		return RoleUnpromoted
	}
	return s
}
