package console

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// The least time-outs that a small database can do with, by the README's reasons. What took longer in the last changes of
// roles asks for more.
var leastTimeouts = map[string]time.Duration{
	"start": 30 * time.Second, "stop": 30 * time.Second, "promote": 30 * time.Second, "demote": time.Minute,
	"notify": 20 * time.Second, "monitor": 10 * time.Second,
}

// checkCluster looks at the cluster's configuration.
func (s *Site) checkCluster() {
	s.checkFencing()
	s.checkProperties()
	s.checkClone()
	s.checkOperations()
	s.checkAddress()
	s.checkLeftovers()
}

func isTrue(v string) bool {
	return slices.Contains([]string{"true", "on", "yes", "y", "1"}, strings.ToLower(v))
}

func isFalse(v string) bool {
	return slices.Contains([]string{"false", "off", "no", "n", "0"}, strings.ToLower(v))
}

func (s *Site) property(id string, sev Severity, name, value, why, format string, args ...any) {
	s.find(id, sev, "pcs property set "+name+"="+value, "crm configure property "+name+"="+value, why, format, args...)
}

func (s *Site) checkFencing() {
	if !s.State.FencingEnabled {
		s.property("fencing-off", Critical, "stonith-enabled", "true",
			"without fencing nobody can know that a silent primary is gone: two primaries, or none", "stonith-enabled is false")
	}
	if !s.Config.HasFenceDevice() {
		s.find("fencing-no-device", Critical, "pcs stonith create NAME AGENT PARAMETERS (pcs stonith list)", "crm configure primitive NAME stonith:AGENT params PARAMETERS (crm ra list stonith)",
			"no failed node can be fenced, and what ran on it is never taken over", "no fencing device is configured")
	}
	if isFalse(s.Config.Property("startup-fencing")) {
		s.property("startup-fencing-off", Warning, "startup-fencing", "true",
			"a node that was never seen is taken for clean, though it may run a primary", "startup-fencing is false")
	}
}

func (s *Site) checkProperties() {
	switch v := s.Config.Property("no-quorum-policy"); v {
	case "ignore":
		s.property("quorum-ignored", Critical, "no-quorum-policy", "stop", "both halves of a split cluster promote a primary", "no-quorum-policy is ignore")
	case "freeze":
		s.property("quorum-freeze", Warning, "no-quorum-policy", "stop", "the primary of the lost half serves on until it is fenced", "no-quorum-policy is freeze")
	}
	switch by, paused := s.Paused(); {
	case s.setupWay() != "":
		do := endSetup + s.setupWay()
		s.find("setup-unfinished", Warning, do, do, "until it has ended nothing is monitored, a failure is not acted upon", unfinishedSetup)
	case paused && !s.State.MaintenanceMode:
		s.find("maintenance", Warning, "pgbaton resume", "pgbaton resume", "nothing is monitored, a failure is not acted upon", "%s", by)
	case s.State.MaintenanceMode:
		s.property("maintenance", Warning, "maintenance-mode", "false", "nothing is monitored, a failure is not acted upon", "the cluster is in maintenance mode")
	}
	if s.State.StopAllResources {
		s.property("stop-all", Critical, "stop-all-resources", "false", "nothing runs", "stop-all-resources is set")
	}
	if v := s.Config.Default("migration-threshold"); v == "1" && s.Config.Meta(s.Resource, "migration-threshold") == "" && s.Config.Meta(s.Clone, "migration-threshold") == "" {
		s.find("migration-threshold", Warning, "pcs resource defaults update migration-threshold=5", "crm configure rsc_defaults migration-threshold=5",
			"one failed monitor bans an instance from its node for good", "migration-threshold is 1 by default")
	}
}

// meta is the command that sets a meta attribute.
func (s *Site) meta(id string, sev Severity, on, name, value, why, format string, args ...any) {
	s.find(id, sev, fmt.Sprintf("pcs resource meta %s %s=%s", on, name, value), fmt.Sprintf("crm resource meta %s set %s %s", on, name, value), why, format, args...)
}

func (s *Site) checkClone() {
	meta := func(name string) string {
		if v := s.Config.Meta(s.Clone, name); v != "" {
			return v
		}
		return s.Config.Meta(s.Resource, name)
	}
	if !isTrue(meta("notify")) {
		s.meta("notify-missing", Critical, s.Clone, "notify", "true", "the nodes exchange note, claim and answers in notifications: nothing is promoted in a plan", "%s has no notify=true", s.Clone)
	}
	for _, name := range []string{"promoted-max", "master-max"} {
		if v := meta(name); v != "" && v != "1" {
			s.meta("promoted-max", Critical, s.Clone, name, "1", "there can be one primary only, and start refuses anything else", "%s has %s=%s", s.Clone, name, v)
		}
	}
	able := 0
	for _, n := range s.State.Nodes {
		if !s.banned(n.Name) { // else it only votes
			able++
		}
	}
	if v, err := strconv.Atoi(meta("clone-max")); err == nil && v < able {
		s.meta("clone-max", Warning, s.Clone, "clone-max", strconv.Itoa(able), "a node without an instance cannot take over", "%s has clone-max=%d, for %d nodes", s.Clone, v, able)
	}
	if v := meta("clone-node-max"); v != "" && v != "1" {
		s.meta("clone-node-max", Critical, s.Clone, "clone-node-max", "1", "two instances on a node would use one data directory", "%s has clone-node-max=%s", s.Clone, v)
	}
	if isTrue(meta("globally-unique")) {
		s.meta("globally-unique", Critical, s.Clone, "globally-unique", "false", "instances are told apart by their node, not by a number", "%s has globally-unique=true", s.Clone)
	}
	if !isTrue(meta("interleave")) {
		s.meta("interleave-missing", Warning, s.Clone, "interleave", "true", "the virtual IP waits for all nodes' instances, a slow one included, instead of its own node's", "%s has no interleave=true", s.Clone)
	}
	if v := meta("target-role"); v != "" && !strings.EqualFold(v, "Started") && !strings.EqualFold(v, pacemaker.RolePromoted) && !strings.EqualFold(v, "Master") {
		s.meta("target-role", Critical, s.Clone, "target-role", "Started", "nothing is promoted, or nothing runs", "%s has target-role=%s", s.Clone, v)
	}
	if v := meta("is-managed"); isFalse(v) {
		s.find("unmanaged", Warning, "pcs resource manage "+s.Resource, "crm resource manage "+s.Resource, "Pacemaker acts on no failure of it", "%s is not managed", s.Resource)
	}
	if meta("migration-threshold") == "1" {
		s.meta("migration-threshold", Warning, s.Resource, "migration-threshold", "5", "one failed monitor bans an instance from its node for good", "%s has migration-threshold=1", s.Resource)
	}
}

// changeOp is the command that changes an operation. pcs forgets every option of it that is not repeated.
func (s *Site) changeOp(id string, sev Severity, o pacemaker.Operation, why, format string, args ...any) {
	sec := func(d time.Duration) string {
		if d%time.Second != 0 {
			return fmt.Sprintf("%dms", d.Milliseconds())
		}
		return fmt.Sprintf("%ds", int(d.Seconds()))
	}
	pcs := fmt.Sprintf("pcs resource update %s op %s interval=%s", s.Resource, o.Name, sec(o.Interval))
	xml := fmt.Sprintf("cibadmin --modify --xml-text '<op id=\"%s\" interval=\"%s\"", o.ID, sec(o.Interval))
	if o.HasTimeout {
		pcs += " timeout=" + sec(o.Timeout)
		xml += fmt.Sprintf(" timeout=\"%s\"", sec(o.Timeout))
	}
	switch o.Role {
	case "":
	case pacemaker.RolePromoted:
		pcs += " role=" + s.State.PromotedRoleName()
	case pacemaker.RoleUnpromoted:
		pcs += " role=" + s.State.UnpromotedRoleName()
	default:
		pcs += " role=" + o.Role
	}
	if o.OnFail != "" {
		pcs += " on-fail=" + o.OnFail
		xml += fmt.Sprintf(" on-fail=\"%s\"", o.OnFail)
	}
	s.find(id, sev, pcs, xml+"/>'", why, format, args...)
}

// addOp is the command that adds an operation.
func (s *Site) addOp(id string, sev Severity, op, why, format string, args ...any) {
	xml := strings.ReplaceAll(op, " ", `" `)
	xml = strings.ReplaceAll(xml, "=", `="`) + `"`
	name, rest, _ := strings.Cut(xml, `" `)
	s.find(id, sev, fmt.Sprintf("pcs resource op add %s %s --force", s.Resource, op),
		fmt.Sprintf("cibadmin --create --xpath \"//primitive[@id='%s']/operations\" --xml-text '<op id=\"%s-%s\" name=\"%s\" %s/>'", s.Resource, s.Resource, id, name, rest), why, format, args...)
}

const promoteFails = "a failed promotion restarts that standby, or stops the whole clone, before the next candidate is tried"

func (s *Site) checkOperations() {
	ops := s.Config.Operations(s.Resource)
	byName := map[string]bool{}
	var promoted, unpromoted *pacemaker.Operation
	for n, o := range ops {
		byName[o.Name] = true
		if o.Name != "monitor" || o.Interval == 0 {
			continue
		}
		if o.Role == pacemaker.RolePromoted {
			promoted = &ops[n]
		} else {
			unpromoted = &ops[n]
		}
	}
	switch {
	case promoted == nil && unpromoted != nil && unpromoted.Interval == 15*time.Second:
		s.addOp("monitor-promoted-missing", Critical, "monitor interval=14s timeout=20s role="+s.State.PromotedRoleName(), "a primary is not monitored", "%s has no monitor of the promoted role", s.Resource)
	case promoted == nil:
		s.addOp("monitor-promoted-missing", Critical, "monitor interval=15s timeout=20s role="+s.State.PromotedRoleName(), "a primary is not monitored", "%s has no monitor of the promoted role", s.Resource)
	}
	switch {
	case unpromoted == nil && promoted != nil && promoted.Interval == 16*time.Second:
		s.addOp("monitor-unpromoted-missing", Critical, "monitor interval=17s timeout=20s role="+s.State.UnpromotedRoleName(), "standbys are not monitored, and never get the score with which they could take over", "%s has no monitor of the unpromoted role", s.Resource)
	case unpromoted == nil:
		s.addOp("monitor-unpromoted-missing", Critical, "monitor interval=16s timeout=20s role="+s.State.UnpromotedRoleName(), "standbys are not monitored, and never get the score with which they could take over", "%s has no monitor of the unpromoted role", s.Resource)
	}
	// A command has to repeat all of an operation: each prints it as it is without any fault, or the second would undo the first.
	type fault struct {
		op        *pacemaker.Operation
		id        string
		severity  Severity
		text, why string
	}
	var faults []fault
	add := func(op *pacemaker.Operation, id string, severity Severity, why, format string, args ...any) {
		faults = append(faults, fault{op, id, severity, fmt.Sprintf(format, args...), why})
	}
	if promoted != nil && unpromoted != nil && promoted.Interval == unpromoted.Interval {
		unpromoted.Interval += time.Second
		add(unpromoted, "monitor-intervals-equal", Critical, "Pacemaker tells recurring actions apart by their intervals: only one of the two is run", "both monitors of %s have the interval %s", s.Resource, promoted.Interval)
	}
	for n := range ops {
		o := &ops[n]
		least, known := leastTimeouts[o.Name]
		if !known {
			continue
		}
		why := "the action is killed before it can be done, which is a failure, and of a stop a fencing"
		if took := s.took(o.Name); 3*took > least {
			least = (3 * took).Round(time.Second)
			why = fmt.Sprintf("it took %s here before: there must be room for a worse day", took.Round(time.Millisecond))
		}
		timeout := s.Config.DefaultTimeout()
		if o.HasTimeout {
			timeout = o.Timeout
		}
		if timeout < least {
			o.Timeout, o.HasTimeout = least, true
			add(o, "timeout-"+o.Name, Warning, why, "the time-out of %s is %s, expected at least %s", o.Name, timeout, least)
		}
		was := o.OnFail
		switch {
		case o.Name == "promote" && slices.Contains([]string{"", "restart", "stop", "ignore"}, was):
			o.OnFail = "demote"
			add(o, "promote-on-fail", Warning, promoteFails, "on-fail of promote is %s", or(was, "restart (the default)"))
		case (o.Name == "stop" || o.Name == "demote") && (was == "ignore" || was == "block"):
			o.OnFail = map[string]string{"stop": "fence", "demote": "restart"}[o.Name]
			add(o, "on-fail-"+o.Name, Critical, "what could not be stopped may still be a primary when the next one is promoted", "on-fail of %s is %s", o.Name, was)
		case o.Name == "monitor" && was == "ignore":
			o.OnFail = "restart"
			add(o, "on-fail-monitor", Critical, "no failure is acted upon", "on-fail of a monitor is ignore")
		}
	}
	for _, f := range faults {
		s.changeOp(f.id, f.severity, *f.op, f.why, "%s", f.text)
	}
	for _, name := range []string{"start", "stop", "promote", "demote", "notify"} {
		byDefault := s.Config.DefaultTimeout()
		enough := byDefault >= leastTimeouts[name]
		if byName[name] || enough && name != "promote" {
			continue
		}
		timeout := "60s"
		if name == "demote" {
			timeout = "120s"
		}
		op, id, why := name+" interval=0s timeout="+timeout, "timeout-"+name, fmt.Sprintf("the default of %s is too short", byDefault)
		if name == "promote" {
			op += " on-fail=demote"
			if enough {
				id, why = "promote-on-fail", promoteFails
			}
		}
		s.addOp(id, Warning, op, why, "%s has no operation %s", s.Resource, name)
	}
}

// checkAddress looks at the virtual IP, if there is one: it must follow the primary, come after it and go after it.
func (s *Site) checkAddress() {
	names := s.Config.Names(s.Resource)
	for _, a := range s.Config.Addresses() {
		var near *pacemaker.Colocation
		for _, c := range s.Config.Colocations(a.ID) {
			if slices.Contains(names, c.With) {
				near = &c
			}
		}
		orders := map[string]pacemaker.Order{}
		if near != nil && (near.WithRole == pacemaker.RoleUnpromoted || near.Score < 0) {
			continue // an address for readers
		}
		related := near != nil
		for _, o := range s.Config.Orders() {
			if slices.Contains(names, o.First) && slices.Contains(s.Config.Names(a.ID), o.Then) {
				orders[o.FirstAction+"-"+o.ThenAction] = o
				related = true
			}
		}
		if !related && len(s.Config.Addresses()) > 1 {
			continue // somebody else's
		}
		role := s.State.PromotedRoleName()
		add := fmt.Sprintf("pcs constraint colocation add %s with %s %s INFINITY", a.ID, role, s.Clone)
		addCrm := fmt.Sprintf("crm configure colocation %s-with-primary inf: %s %s:%s", a.ID, a.ID, s.Clone, role)
		switch {
		case near == nil:
			s.find("vip-colocation-missing", Critical, add, addCrm, "clients reach a node that is not the primary", "%s is not bound to the primary", a.ID)
		case near.WithRole != pacemaker.RolePromoted || near.Score < pacemaker.Infinity:
			s.find("vip-colocation", Critical, "pcs constraint delete "+near.ID+" && "+add, "crm configure delete "+near.ID+" && "+addCrm,
				"clients reach a node that may not be the primary", "%s is bound to %s with role %q and score %s, expected Promoted and INFINITY", a.ID, s.Clone, near.WithRole, near.Score)
		}
		for _, want := range [][4]string{
			{"promote", "start", "Mandatory", "the address comes before there is a primary: clients get errors"},
			{"demote", "stop", "Optional", "the address goes before the primary is down: standbys that connect through it miss its last record"},
		} {
			first, then, kind, why := want[0], want[1], want[2], want[3]
			add := fmt.Sprintf("pcs constraint order %s %s then %s %s kind=%s symmetrical=false", first, s.Clone, then, a.ID, kind)
			addCrm := fmt.Sprintf("crm configure order %s-%s-%s %s: %s:%s %s:%s symmetrical=false", s.Clone, first, a.ID, kind, s.Clone, first, a.ID, then)
			o, ok := orders[first+"-"+then]
			mend, mendCrm := "pcs constraint delete "+o.ID+" && "+add, "crm configure delete "+o.ID+" && "+addCrm
			switch {
			case !ok:
				s.find("vip-order-"+first, Critical, add, addCrm, why, "nothing says: %s %s, then %s %s", first, s.Clone, then, a.ID)
			case o.Symmetrical:
				s.find("vip-order-symmetrical", Critical, mend, mendCrm,
					"a symmetrical order is turned round on the way down: the address goes first, and standbys that connect through it miss the last record", "the order %s is symmetrical", o.ID)
			case kind == "Mandatory" && !o.Mandatory:
				s.find("vip-order-kind", Critical, mend, mendCrm, why, "the order %s is not mandatory", o.ID)
			case kind == "Optional" && o.Mandatory:
				// handle_asymmetric_ordering in Pacemaker's lib/pacemaker/pcmk_sched_actions.c
				s.find("vip-order-kind", Warning, mend, mendCrm,
					"if a plan is made anew between the two, and nobody is promoted, Pacemaker never stops the address: that node cannot be shut down", "the order %s is mandatory, expected kind=Optional", o.ID)
			}
		}
	}
}

func (s *Site) checkLeftovers() {
	for _, m := range s.leftMoves() {
		if m.InForce(s.Taken) && !strings.HasPrefix(m.Rule, rulePrefix) {
			s.findings = append(s.findings, Finding{
				ID: "move-left", Severity: Warning, Text: "a constraint of a move or ban is left: " + m.String(),
				Why: "it decides where the primary is, also when you have forgotten it", Do: m.Clear(),
			})
		}
	}
	for _, node := range s.Config.PermanentScores(s.Resource) {
		s.findings = append(s.findings, Finding{
			ID: "permanent-score", Severity: Critical, Node: node, Text: "a promotion score of another agent stands for ever on " + node,
			Why: "a node that has left stays the best candidate", Do: commandText(deletePermanent(node, pacemaker.ScoreAttribute(s.Resource))),
		})
	}
}
