package pacemaker

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Constraint is a location constraint that bears on where a resource may be
// promoted, worked out for one node.
type Constraint struct {
	ID       string
	Resource string // what it names: the resource, its clone, a tag, or a pattern
	Node     string
	Role     string // RolePromoted, RoleStarted, or empty for any
	Score    Score
	CLI      bool // made by a move or ban of crm_resource, pcs or crmsh
	// Unsure: it hangs on a rule that was not understood, or on what is not in the
	// configuration (a transient attribute), and may not be in force.
	Unsure bool
}

// Favours tells whether the constraint draws the promoted role to node. Of one that
// is Unsure this is not said.
func (c Constraint) Favours(node string) bool {
	return c.Node == node && c.Score > 0 && !c.Unsure
}

// Bans tells whether the constraint keeps the promoted role off node.
func (c Constraint) Bans(node string) bool {
	return c.Node == node && c.Score <= NegInfinity && !c.Unsure
}

// RoleConstraints returns the location constraints in force for the promoted role
// of a resource, which is named without the number of a clone's instance, or of the
// clone that it belongs to. Those without a role count, too: the scheduler adds
// them to the promotion score when it sorts the candidates. Those for the
// unpromoted role alone do not.
func RoleConstraints(ctx context.Context, r Runner, resource string) ([]Constraint, error) {
	c, err := ReadConfiguration(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("constraints of %s: %w", resource, err)
	}
	return c.RoleConstraints(resource, time.Now()), nil
}

// configuration is the part of the CIB that constraints refer to.
type configuration struct {
	names []string // ids by which constraints can mean the resource
	nodes []cibNode
	now   time.Time
}

type cibNode struct {
	name, id   string
	attributes map[string]string // permanent ones
}

func roleConstraints(root element, resource string, now time.Time) []Constraint {
	cfg := configuration{names: resourceNames(root, resource), now: now}
	for nodes := range root.all("nodes") {
		for _, n := range nodes.Children {
			node := cibNode{name: n.attr("uname"), id: n.attr("id"), attributes: map[string]string{}}
			for nv := range n.child("instance_attributes").all("nvpair") {
				node.attributes[nv.attr("name")] = nv.attr("value")
			}
			cfg.nodes = append(cfg.nodes, node)
		}
	}
	var out []Constraint
	for loc := range root.all("rsc_location") {
		out = append(out, cfg.location(loc)...)
	}
	return out
}

// resourceNames returns the resource, the clones and groups around it, and the tags
// on any of them.
func resourceNames(root element, resource string) []string {
	names := []string{resource}
	for outer := range root.all("clone", "master", "group") { // master: before 2.0's upgrade of the schema
		for inner := range outer.all("primitive") {
			if inner.attr("id") == resource {
				names = append(names, outer.attr("id"))
			}
		}
	}
	for tag := range root.all("tag") {
		for ref := range tag.all("obj_ref") {
			if slices.Contains(names, ref.attr("id")) {
				names = append(names, tag.attr("id"))
				break
			}
		}
	}
	return names
}

// location works one rsc_location out for every node that it names.
func (cfg configuration) location(loc element) []Constraint {
	c := Constraint{
		ID:       loc.attr("id"),
		Resource: loc.attr("rsc"),
		Role:     locationRole(loc.attr("role")),
		CLI:      strings.HasPrefix(loc.attr("id"), "cli-"),
	}
	if !cfg.applies(loc, &c) {
		return nil
	}
	if node := loc.attr("node"); node != "" {
		score, err := ParseScore(loc.attr("score"))
		c.Node, c.Score, c.Unsure = node, score, err != nil
		return relevant(c)
	}
	var out []Constraint
	for _, rule := range loc.Children {
		if rule.name() != "rule" {
			continue
		}
		for _, node := range cfg.nodes {
			rc := c
			rc.Node = node.name
			if role := rule.attr("role"); role != "" {
				rc.Role = locationRole(role)
			}
			matches := cfg.rule(rule, node)
			if matches == no {
				continue
			}
			score, err := ParseScore(rule.attr("score"))
			if name := rule.attr("score-attribute"); name != "" {
				score, err = ParseScore(node.attributes[name])
			}
			rc.Score, rc.Unsure = score, err != nil || matches == unsure
			out = append(out, relevant(rc)...)
		}
	}
	return out
}

// applies tells whether the constraint means the resource, by its id, a pattern, or
// a set; and takes the set's role over.
func (cfg configuration) applies(loc element, c *Constraint) bool {
	if slices.Contains(cfg.names, loc.attr("rsc")) {
		return true
	}
	if pattern := loc.attr("rsc-pattern"); pattern != "" {
		c.Resource = pattern
		pattern, inverted := strings.CutPrefix(pattern, "!")
		re, err := regexp.CompilePOSIX(pattern)
		if err != nil {
			c.Unsure = true
			return true
		}
		return slices.ContainsFunc(cfg.names, re.MatchString) != inverted
	}
	for set := range loc.all("resource_set") {
		for ref := range set.all("resource_ref") {
			if slices.Contains(cfg.names, ref.attr("id")) {
				c.Resource = ref.attr("id")
				if role := set.attr("role"); role != "" {
					c.Role = locationRole(role)
				}
				return true
			}
		}
	}
	return false
}

// locationRole normalises; "Started" of a location constraint means any role.
func locationRole(s string) string {
	role := roleName(s)
	for _, known := range []string{RolePromoted, RoleUnpromoted, RoleStarted, RoleStopped} {
		if strings.EqualFold(role, known) {
			return known
		}
	}
	switch strings.ToLower(s) {
	case "master":
		return RolePromoted
	case "slave":
		return RoleUnpromoted
	}
	return role
}

func relevant(c Constraint) []Constraint {
	if c.Role == RoleUnpromoted || c.Role == RoleStopped || (c.Score == 0 && !c.Unsure) {
		return nil
	}
	return []Constraint{c}
}

// verdict is what is known about a rule.
type verdict int

const (
	no verdict = iota
	unsure
	yes
)

func decided(b bool) verdict {
	if b {
		return yes
	}
	return no
}

// rule evaluates a rule for a node, as Pacemaker Explained, "Rules", says.
func (cfg configuration) rule(rule element, node cibNode) verdict {
	or := rule.attr("boolean-op") == "or"
	result := yes
	if or {
		result = no
	}
	for _, e := range rule.Children {
		v := unsure // op_expression, rsc_expression: not allowed in locations
		switch e.name() {
		case "rule":
			v = cfg.rule(e, node)
		case "expression":
			v = expression(e, node)
		case "date_expression":
			v = dateExpression(e, cfg.now)
		}
		if or {
			result = max(result, v)
		} else {
			result = min(result, v)
		}
	}
	return result
}

// expression compares an attribute of the node. Only the name and the permanent
// attributes stand in the configuration.
func expression(e element, node cibNode) verdict {
	var value string
	var known bool
	switch name := e.attr("attribute"); name {
	case "#uname":
		value, known = node.name, true
	case "#id":
		value, known = node.id, true
	default:
		value, known = node.attributes[name]
	}
	if !known {
		return unsure // it may be set as a transient attribute
	}
	if src := e.attr("value-source"); src != "" && src != "literal" {
		return unsure
	}
	want := e.attr("value")
	switch e.attr("operation") {
	case "eq":
		return decided(strings.EqualFold(value, want)) // as Pacemaker compares strings here
	case "ne":
		return decided(!strings.EqualFold(value, want))
	case "defined":
		return yes
	case "not_defined":
		return no
	}
	return unsure // lt, gt, lte, gte: of a type that need not be given
}

// dateExpression knows what moves and bans with a lifetime use.
func dateExpression(e element, now time.Time) verdict {
	start, hasStart, okStart := date(e.attr("start"))
	end, hasEnd, okEnd := date(e.attr("end"))
	if !okStart || !okEnd || len(e.Children) > 0 { // date_spec, duration
		return unsure
	}
	switch op := e.attr("operation"); op {
	case "lt":
		return decided(hasEnd && now.Before(end))
	case "gt":
		return decided(hasStart && now.After(start))
	case "in_range", "":
		if !hasStart && !hasEnd {
			return unsure
		}
		return decided((!hasStart || !now.Before(start)) && (!hasEnd || !now.After(end)))
	}
	return unsure
}

// date reads the ISO 8601 forms that Pacemaker's tools write.
func date(s string) (t time.Time, present, ok bool) {
	if s == "" {
		return t, false, true
	}
	for _, layout := range []string{
		"2006-01-02 15:04:05 Z07:00", "2006-01-02 15:04:05Z07:00", time.RFC3339,
		"2006-01-02 15:04:05", "2006-01-02T15:04:05", "2006-01-02",
	} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, true, true
		}
	}
	return t, true, false
}
