package pacemaker

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// Property returns a cluster property, "" if it is not set.
func (c Configuration) Property(name string) string {
	for set := range c.root.all("cluster_property_set") {
		for nv := range set.all("nvpair") {
			if nv.attr("name") == name {
				return nv.attr("value")
			}
		}
	}
	return ""
}

// Default returns a default for the meta attributes of resources, "" if it is not set.
func (c Configuration) Default(name string) string {
	for d := range c.root.all("rsc_defaults") {
		for nv := range d.all("nvpair") {
			if nv.attr("name") == name {
				return nv.attr("value")
			}
		}
	}
	return ""
}

// DefaultTimeout is that of an operation that names none: the one of op_defaults, or Pacemaker's own.
func (c Configuration) DefaultTimeout() time.Duration {
	for d := range c.root.all("op_defaults") {
		for nv := range d.all("nvpair") {
			if nv.attr("name") == "timeout" {
				return interval(nv.attr("value"))
			}
		}
	}
	return 20 * time.Second
}

// Meta returns a meta attribute of a clone or primitive itself, "" if it is not set.
func (c Configuration) Meta(id, name string) string {
	for e := range c.root.all("clone", "master", "group", "primitive") {
		if e.attr("id") != id {
			continue
		}
		for _, set := range e.Children {
			if set.name() != "meta_attributes" {
				continue
			}
			for nv := range set.all("nvpair") {
				if nv.attr("name") == name {
					return nv.attr("value")
				}
			}
		}
	}
	return ""
}

// Operation is a configured operation of a primitive. Times that cannot be read are zero.
type Operation struct {
	ID, Name, Role    string // Role as RolePromoted and RoleUnpromoted, "" if none is named
	OnFail            string
	Interval, Timeout time.Duration
	HasTimeout        bool
}

// Operations returns those of a primitive.
func (c Configuration) Operations(primitive string) []Operation {
	var ops []Operation
	for p := range c.root.all("primitive") {
		if p.attr("id") != primitive {
			continue
		}
		for op := range p.child("operations").all("op") {
			o := Operation{ID: op.attr("id"), Name: op.attr("name"), OnFail: op.attr("on-fail"), Interval: interval(op.attr("interval"))}
			if role := op.attr("role"); role != "" {
				o.Role = locationRole(role)
			}
			timeout := op.attr("timeout")
			for nv := range op.all("nvpair") {
				switch nv.attr("name") {
				case "timeout":
					timeout = nv.attr("value")
				case "on-fail":
					o.OnFail = nv.attr("value")
				}
			}
			o.Timeout, o.HasTimeout = interval(timeout), timeout != ""
			ops = append(ops, o)
		}
	}
	return ops
}

// interval reads a time as Pacemaker's configuration has it (crm_get_msec): a number with a unit, or of seconds.
func interval(s string) time.Duration {
	s = strings.TrimSpace(s)
	n := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if n < 0 {
		n = len(s)
	}
	v, err := strconv.ParseInt(s[:n], 10, 64)
	if err != nil {
		return 0
	}
	unit, ok := map[string]time.Duration{
		"": time.Second, "s": time.Second, "sec": time.Second, "ms": time.Millisecond, "msec": time.Millisecond,
		"us": time.Microsecond, "usec": time.Microsecond, "m": time.Minute, "min": time.Minute, "h": time.Hour, "hr": time.Hour,
	}[strings.ToLower(strings.TrimSpace(s[n:]))]
	if !ok {
		return 0
	}
	return time.Duration(v) * unit
}

// Address is a resource that holds a virtual IP address.
type Address struct{ ID, IP string }

// Addresses returns the IPaddr2 resources.
func (c Configuration) Addresses() []Address {
	var list []Address
	for p := range c.root.all("primitive") {
		if p.attr("type") == "IPaddr2" || p.attr("type") == "IPaddr" {
			list = append(list, Address{p.attr("id"), c.Parameters(p.attr("id"))["ip"]})
		}
	}
	return list
}

// HasFenceDevice tells whether a fencing device is configured.
func (c Configuration) HasFenceDevice() bool {
	for p := range c.root.all("primitive") {
		if p.attr("class") == "stonith" {
			return true
		}
	}
	return false
}

// Colocation binds one resource to another.
type Colocation struct {
	ID, With, WithRole string
	Score              Score
}

// Colocations returns the simple ones of a resource, with the groups that it belongs to taken for it.
func (c Configuration) Colocations(resource string) []Colocation {
	var list []Colocation
	names := resourceNames(c.root, resource)
	for e := range c.root.all("rsc_colocation") {
		if !slices.Contains(names, e.attr("rsc")) {
			continue
		}
		score, _ := ParseScore(e.attr("score"))
		role := e.attr("with-rsc-role")
		if role != "" {
			role = locationRole(role)
		}
		list = append(list, Colocation{e.attr("id"), e.attr("with-rsc"), role, score})
	}
	return list
}

// WithPrimary returns the primitives that a simple colocation binds to the promoted role of a resource, a virtual IP or whatever else:
// the scheduler adds to the role what speaks for them on a node (pcmk__apply_coloc_to_primary).
func (c Configuration) WithPrimary(resource string) []string {
	var list []string
	names := resourceNames(c.root, resource)
	for e := range c.root.all("rsc_colocation") {
		score, _ := ParseScore(e.attr("score"))
		if !slices.Contains(names, e.attr("with-rsc")) || locationRole(e.attr("with-rsc-role")) != RolePromoted || score < Infinity {
			continue
		}
		bound := e.attr("rsc")
		if c.Has(bound) {
			for p := range c.root.all("primitive") {
				if slices.Contains(resourceNames(c.root, p.attr("id")), bound) && !slices.Contains(list, p.attr("id")) {
					list = append(list, p.attr("id"))
				}
			}
		}
	}
	return list
}

// Order is a simple ordering constraint.
type Order struct {
	ID, First, FirstAction, Then, ThenAction string
	Symmetrical, Mandatory                   bool
}

// Orders returns them.
func (c Configuration) Orders() []Order {
	var list []Order
	for e := range c.root.all("rsc_order") {
		o := Order{
			ID: e.attr("id"), First: e.attr("first"), FirstAction: e.attr("first-action"), Then: e.attr("then"), ThenAction: e.attr("then-action"),
			Symmetrical: e.attr("symmetrical") != "false", Mandatory: e.attr("kind") == "" || strings.EqualFold(e.attr("kind"), "Mandatory"),
		}
		if o.FirstAction == "" {
			o.FirstAction = "start"
		}
		if o.ThenAction == "" {
			o.ThenAction = o.FirstAction
		}
		list = append(list, o)
	}
	return list
}

// Names returns a resource, and the clones, groups and tags that mean it too.
func (c Configuration) Names(resource string) []string { return resourceNames(c.root, resource) }

// ParameterSet is the id of the set that holds the parameters of a primitive, "" if it has none.
func (c Configuration) ParameterSet(primitive string) string {
	for p := range c.root.all("primitive") {
		if p.attr("id") == primitive {
			return p.child("instance_attributes").attr("id")
		}
	}
	return ""
}

// Has tells whether there is a resource of that name.
func (c Configuration) Has(id string) bool {
	for e := range c.root.all("primitive", "clone", "master", "group", "bundle", "template") {
		if e.attr("id") == id {
			return true
		}
	}
	return false
}

// PermanentScores returns the nodes on which a promotion score of the resource stands for ever: the Perl agent's way,
// which outlives the node's leaving.
func (c Configuration) PermanentScores(resource string) []string {
	var nodes []string
	for all := range c.root.all("nodes") {
		for _, n := range all.Children {
			for nv := range n.all("nvpair") {
				if nv.attr("name") == ScoreAttribute(resource) {
					nodes = append(nodes, n.attr("uname"))
				}
			}
		}
	}
	return nodes
}
