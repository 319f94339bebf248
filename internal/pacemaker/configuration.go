package pacemaker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Configuration is the part of the CIB that people write.
type Configuration struct{ root element }

// ReadConfiguration reads this node's copy of the configuration.
func ReadConfiguration(ctx context.Context, r Runner) (Configuration, error) {
	out, err := r.Run(ctx, "cibadmin", "--query", "--local", "--xpath", "/cib/configuration")
	if err != nil {
		return Configuration{}, fmt.Errorf("read the cluster's configuration: %w", err)
	}
	root, err := parseXML(out)
	if err != nil {
		return Configuration{}, fmt.Errorf("read the cluster's configuration: cibadmin's answer is not XML: %w", err)
	}
	return Configuration{root}, nil
}

// ResourceText returns a resource, with all that is in it, as it stands in the CIB, so that it can be put back.
func ResourceText(ctx context.Context, r Runner, id string) (string, error) {
	if strings.ContainsAny(id, `'"`) {
		return "", fmt.Errorf("resource %q: expected a name without quotes", id)
	}
	out, err := r.Run(ctx, "cibadmin", "--query", "--xpath", "//resources//*[@id='"+id+"']")
	if err != nil {
		return "", fmt.Errorf("read the resource %s: %w", id, err)
	}
	if root, err := parseXML(out); err != nil || root.attr("id") != id {
		return "", fmt.Errorf("read the resource %s: cibadmin's answer is <%s id=%q> (%v)", id, root.name(), root.attr("id"), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// RoleConstraints is [RoleConstraints] for a configuration that was read before.
func (c Configuration) RoleConstraints(resource string, now time.Time) []Constraint {
	return roleConstraints(c.root, resource, now)
}

// Parameters returns the instance attributes of a primitive. Of several sets, and of rules on them, nothing is known
// here: the first word on a name is taken, as Pacemaker does where all sets apply.
func (c Configuration) Parameters(primitive string) map[string]string {
	params := map[string]string{}
	for p := range c.root.all("primitive") {
		if p.attr("id") != primitive {
			continue
		}
		for _, set := range p.Children {
			if set.name() != "instance_attributes" {
				continue
			}
			for nv := range set.all("nvpair") {
				if _, ok := params[nv.attr("name")]; !ok {
					params[nv.attr("name")] = nv.attr("value")
				}
			}
		}
	}
	return params
}

// Move is a location constraint for the role that a person's command left: crm_resource, pcs, crmsh and pgbaton name it
// "cli-...".
type Move struct {
	ID    string
	On    string // the resource it is about, the clone or its primitive: crm_resource --clear finds it by that name alone
	Rule  string // by which one that pgbaton made is told from another of the same name ([Prefer]); "" if it has no rule
	Nodes []string
	Score Score
	Ends  time.Time // zero: never
}

// InForce tells whether the scheduler still heeds it.
func (m Move) InForce(now time.Time) bool { return m.Ends.IsZero() || now.Before(m.Ends) }

// Clear is the command that removes it.
func (m Move) Clear() string { return "crm_resource --clear -r " + m.On }

// String is for a person.
func (m Move) String() string {
	what := fmt.Sprintf("%s: %s on %s", m.ID, m.Score, strings.Join(m.Nodes, ", "))
	if !m.Ends.IsZero() {
		what += " until " + m.Ends.Local().Format("15:04:05")
	}
	return what
}

// Moves returns the constraints that moves and bans of a resource or its clone left, also those whose time is over.
func (c Configuration) Moves(resource string) []Move {
	var moves []Move
	names := resourceNames(c.root, resource)
	for loc := range c.root.all("rsc_location") {
		if !strings.HasPrefix(loc.attr("id"), "cli-") || !slices.Contains(names, loc.attr("rsc")) {
			continue
		}
		m := Move{ID: loc.attr("id"), On: loc.attr("rsc")}
		score := loc.attr("score")
		if node := loc.attr("node"); node != "" {
			m.Nodes = append(m.Nodes, node)
		}
		if rule := loc.child("rule"); rule.attr("id") != "" {
			m.Rule, score = rule.attr("id"), rule.attr("score")
			for e := range rule.all("expression") {
				if e.attr("attribute") == "#uname" {
					m.Nodes = append(m.Nodes, e.attr("value"))
				}
			}
			for d := range rule.all("date_expression") {
				if end, present, ok := date(d.attr("end")); present && ok {
					m.Ends = end
				}
				if name, ours := strings.CutSuffix(d.attr("id"), "-end"); ours {
					m.Rule = name
				}
			}
		}
		m.Score, _ = ParseScore(score)
		moves = append(moves, m)
	}
	return moves
}

// Prefer orders the promoted role of a clone to a node until end, by a constraint of the name that crm_resource --move
// would give it, so that crm_resource --clear and its kin find it. It is made in one step that fails if there is one of
// that name already ([ErrMoveExists]): of two people only one moves. Clear goes by the id of the rule, too
// (build_clear_xpath_string in tools/crm_resource_ban.c), so that what tells this constraint from another stands in the ids of its
// expressions.
func Prefer(ctx context.Context, r Runner, clone, node, rule, role string, end time.Time) error {
	for _, s := range []string{clone, node, rule} {
		if s == "" || strings.ContainsAny(s, `'"<>& `) {
			return fmt.Errorf("move %s to %s: name %q: expected one without spaces and quotes", clone, node, s)
		}
	}
	create := func(role string) error {
		_, err := r.Run(ctx, "cibadmin", "--create", "--scope", "constraints", "--xml-text",
			fmt.Sprintf(`<rsc_location id="%s" rsc="%s" role="%s"><rule id="cli-prefer-rule-%s" score="INFINITY" boolean-op="and">`+
				`<expression id="%s-node" attribute="#uname" operation="eq" value="%s" type="string"/>`+
				`<date_expression id="%s-end" operation="lt" end="%s"/></rule></rsc_location>`,
				PreferID(clone), clone, role, clone, rule, node, rule, writeDate(end)))
		return err
	}
	err := create(role)
	if ExitStatus(err) == exitConfig && role == RolePromoted {
		err = create("Master") // the schema of a cluster that was upgraded from 2.0 knows that word alone (validate-with before 3.7)
	}
	if ExitStatus(err) == exitExists {
		return fmt.Errorf("move %s to %s: %w", clone, node, ErrMoveExists)
	}
	return wrap(err, "move %s to %s", clone, node)
}

// Rejected tells whether an error of [Prefer] says for certain that there is no constraint of it: a tool that was killed, or waited
// for the configuration in vain, may have made it.
func Rejected(err error) bool {
	var e *RunError
	return !errors.As(err, &e) || e.Status > 0 && e.Status != exitTimeout
}

// ErrMoveExists says that somebody else has moved the role meanwhile.
var ErrMoveExists = fmt.Errorf("a constraint of an earlier move is there")

// PreferID is the name of the constraint that a move of a clone makes.
func PreferID(clone string) string { return "cli-prefer-" + clone }

// Prolong lets a constraint that [Prefer] made end later. It changes the configuration, and so makes Pacemaker plan anew.
func Prolong(ctx context.Context, r Runner, rule string, end time.Time) error {
	_, err := r.Run(ctx, "cibadmin", "--modify", "--xml-text",
		fmt.Sprintf(`<date_expression id="%s-end" operation="lt" end="%s"/>`, rule, writeDate(end)))
	return wrap(err, "prolong the move")
}

// Unprefer removes a constraint by its name and its rule, and no other. That it is gone already is no error.
func Unprefer(ctx context.Context, r Runner, id, rule string) error {
	_, err := r.Run(ctx, "cibadmin", "--delete", "--xpath",
		fmt.Sprintf("/cib/configuration/constraints/rsc_location[@id='%s'][rule[@id='%s' or date_expression[@id='%s-end']]]", id, rule, rule))
	if ExitStatus(err) == exitNoSuch {
		return nil
	}
	return wrap(err, "remove the constraint %s", id)
}

// PromotedRoleName is what a constraint calls the role, in the words of the cluster's version.
func (s ClusterState) PromotedRoleName() string {
	if strings.HasPrefix(s.Version, "2.0.") || strings.HasPrefix(s.Version, "1.") {
		return "Master"
	}
	return RolePromoted
}

// UnpromotedRoleName is the same for the other role.
func (s ClusterState) UnpromotedRoleName() string {
	if s.PromotedRoleName() == "Master" {
		return "Slave"
	}
	return RoleUnpromoted
}

// writeDate is the form of crm_resource --lifetime.
func writeDate(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// Idle tells whether the coordinator has nothing to do. Between two transitions it looks idle for a moment.
func Idle(ctx context.Context, r Runner, dc string) (bool, error) {
	out, err := r.Run(ctx, "crmadmin", "--status="+dc)
	if err != nil {
		return false, fmt.Errorf("ask the coordinator %s what it does: %w", dc, err)
	}
	return strings.Contains(string(out), "S_IDLE"), nil
}
