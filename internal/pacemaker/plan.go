package pacemaker

import (
	"maps"
	"slices"
	"strings"
)

// The phases and operations of a notification.
const (
	PhasePre  = "pre"
	PhasePost = "post"

	OpStart   = "start"
	OpStop    = "stop"
	OpPromote = "promote"
	OpDemote  = "demote"
)

// Plan is what Pacemaker intends to do with all instances of the clone, as it
// stands in the environment of a notification and of start, stop, promote and
// demote.
//
// It is a plan, not a proof: the first four lists describe the state at the start
// of the current transition, the next four everything that this transition will do
// or has done, in every phase the same. Each abort makes a new plan, that knows
// nothing of the one before. Lists hold names of nodes, exactly as Pacemaker
// writes them, and are nil when empty.
type Plan struct {
	Phase     string // "pre" or "post"; empty if the action is not a notification
	Operation string // of the notification: "start", "stop", "promote" or "demote"; else empty

	Active     []string // an instance runs
	Inactive   []string // may run an instance, and does not; worked out, for a stopped instance has no node
	Promoted   []string
	Unpromoted []string

	Start   []string
	Stop    []string
	Promote []string
	Demote  []string

	All       []string // every node that the cluster knows
	Available []string // every node that may run an instance

	known bool
}

const notifyPrefix = "OCF_RESKEY_CRM_meta_notify_"

// ParsePlan reads the plan from the environment of an action. Both names of a
// role are understood: "promoted" and "unpromoted" (since 2.1), else "master" and
// "slave".
func ParsePlan(env map[string]string) Plan {
	p := Plan{
		Phase:     strings.TrimSpace(env[notifyPrefix+"type"]),
		Operation: strings.TrimSpace(env[notifyPrefix+"operation"]),
	}
	// An empty list is a single space, an absent one says nothing.
	list := func(names ...string) []string {
		for _, name := range names {
			v, ok := env[notifyPrefix+name+"_uname"]
			if !ok {
				continue
			}
			p.known = true
			if nodes := strings.Fields(v); len(nodes) > 0 {
				return nodes
			}
			return nil
		}
		return nil
	}
	p.Active = list("active")
	p.Promoted = list("promoted", "master")
	p.Unpromoted = list("unpromoted", "slave")
	p.Start = list("start")
	p.Stop = list("stop")
	p.Promote = list("promote")
	p.Demote = list("demote")
	p.All = list("all")
	p.Available = list("available")
	for _, n := range p.Available {
		if !Contains(p.Active, n) {
			p.Inactive = append(p.Inactive, n)
		}
	}
	return p
}

// WithoutPlan is the environment of an action without the plan in it, for what outlives that.
func WithoutPlan(env map[string]string) map[string]string {
	env = maps.Clone(env)
	maps.DeleteFunc(env, func(name, _ string) bool { return strings.HasPrefix(name, notifyPrefix) })
	return env
}

// Known tells whether there is a plan at all. There is none in the environment of
// monitor, of a lone action (ocf-tester, crm_resource --force-promote), and of a
// clone without notify=true.
func (p Plan) Known() bool { return p.known }

// Contains tells whether node is in list. Names are compared as a whole and with
// their case: n1 is not n10.
func Contains(list []string, node string) bool { return slices.Contains(list, node) }

// Keeps tells whether node's instance runs and is not stopped by this plan.
func (p Plan) Keeps(node string) bool { return Contains(p.Active, node) && !Contains(p.Stop, node) }

// Leaves tells whether node's instance is stopped by this plan and not started
// again: the node goes to standby, is shut down, was lost, or is banned; or this is
// the first half of a restart of the clone, which is two transitions.
func (p Plan) Leaves(node string) bool { return Contains(p.Stop, node) && !Contains(p.Start, node) }

// Restarts tells whether node's instance is stopped and started by this plan.
func (p Plan) Restarts(node string) bool { return Contains(p.Stop, node) && Contains(p.Start, node) }

// Moves tells whether this plan takes the promoted role from one node that keeps
// running and gives it to another: what a person's move, a ban or a change of
// scores looks like. from and to are empty if not.
func (p Plan) Moves() (from, to string, ok bool) {
	if len(p.Promoted) != 1 || len(p.Promote) != 1 {
		return "", "", false
	}
	from, to = p.Promoted[0], p.Promote[0]
	if from == to || !Contains(p.Demote, from) || Contains(p.Stop, from) {
		return "", "", false
	}
	return from, to, true
}
