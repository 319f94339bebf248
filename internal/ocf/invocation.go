package ocf

import (
	"strconv"
	"strings"
	"time"
)

// Env is the environment an action was called with.
type Env map[string]string

// EnvFromOS makes an Env of os.Environ's "NAME=VALUE" strings. The first of two
// equal names wins, as for getenv(3).
func EnvFromOS(environ []string) Env {
	env := make(Env, len(environ))
	for _, kv := range environ {
		name, value, ok := strings.Cut(kv, "=")
		if !ok {
			continue
		}
		if _, dup := env[name]; !dup {
			env[name] = value
		}
	}
	return env
}

// meta returns the meta attribute NAME of the action, in the form that Pacemaker
// gives it: OCF_RESKEY_CRM_meta_NAME.
func (e Env) meta(name string) string { return e["OCF_RESKEY_CRM_meta_"+name] }

// The actions of the agent.
const (
	ActionStart       = "start"
	ActionStop        = "stop"
	ActionMonitor     = "monitor"
	ActionPromote     = "promote"
	ActionDemote      = "demote"
	ActionNotify      = "notify"
	ActionReloadAgent = "reload-agent"
	ActionValidateAll = "validate-all"
	ActionMetaData    = "meta-data"
)

var actions = []string{
	ActionStart, ActionStop, ActionMonitor, ActionPromote, ActionDemote,
	ActionNotify, ActionReloadAgent, ActionValidateAll, ActionMetaData,
}

// Invocation is one call of the agent.
type Invocation struct {
	Action string // one of the Action constants

	// Resource is the resource's name without the ":N" of a clone's instance:
	// what scores and attributes are named after.
	Resource string

	// Node is the name of this node, exactly as Pacemaker writes it. Empty when
	// the agent is not called by Pacemaker's own scheduler (ocf-tester, by hand).
	Node string

	Timeout  time.Duration // when Pacemaker will kill the action; 0: not said
	Interval time.Duration // of a recurring monitor; 0 otherwise
	Role     string        // of a recurring monitor: "Promoted" or "Unpromoted"; empty if not said

	// Probe: a monitor that asks whether the resource happens to run here. The
	// answer NotRunning is not a failure.
	Probe bool

	// NotifyEnabled is the clone's notify=true, without which there is no
	// handover. False when not called by Pacemaker.
	NotifyEnabled bool

	Clone       bool   // called as an instance of a clone
	PromotedMax int    // 0: not said (no promotable clone, ocf-tester, by hand)
	CloneMax    int    // 0: not said
	FeatureSet  string // of the CIB, such as "3.16.1"; empty when not called by Pacemaker
	CheckLevel  int    // OCF_CHECK_LEVEL, 0 by default
}

// ParseInvocation reads how the agent was called: args are the arguments without
// the program's name. The error is an *Error with ErrArgs when there is not
// exactly one argument, or ErrUnimplemented for an action that the agent does not
// have. Unreadable numbers in the environment count as not said: a probe or a
// stop must not fail for them.
func ParseInvocation(args []string, env Env) (Invocation, error) {
	inv := Invocation{
		Resource:      instanceName(env["OCF_RESOURCE_INSTANCE"]),
		Node:          env.meta("on_node"),
		Timeout:       milliseconds(env.meta("timeout")),
		Interval:      milliseconds(env.meta("interval")),
		Role:          roleName(env.meta("role")),
		NotifyEnabled: isTrue(env.meta("notify")),
		PromotedMax:   count(env.meta("promoted_max"), env.meta("master_max")),
		CloneMax:      count(env.meta("clone_max")),
		FeatureSet:    env["OCF_RESKEY_crm_feature_set"],
		CheckLevel:    count(env["OCF_CHECK_LEVEL"]),
	}
	_, inv.Clone = env["OCF_RESKEY_CRM_meta_clone"]
	if len(args) != 1 {
		return inv, Errorf(ErrArgs, "expected one action (%s), got %d arguments", strings.Join(actions, ", "), len(args))
	}
	inv.Action = args[0]
	inv.Probe = inv.Action == ActionMonitor && inv.Interval == 0
	for _, a := range actions {
		if a == inv.Action {
			return inv, nil
		}
	}
	return inv, Errorf(ErrUnimplemented, "unknown action %q: expected one of %s", inv.Action, strings.Join(actions, ", "))
}

// instanceName cuts the number of a clone's instance off: "pgsqld:1" is "pgsqld".
// Only globally unique clones and ocf-tester show it, but it costs nothing.
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

// milliseconds reads a time of Pacemaker's, which are all in ms when they arrive
// here, whatever unit the person wrote.
func milliseconds(s string) time.Duration {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > int64(1<<62)/int64(time.Millisecond) {
		return 0
	}
	return time.Duration(n) * time.Millisecond
}

// roleName translates the names of Pacemaker before 2.1.
func roleName(s string) string {
	switch s {
	case "Master", "Promoted":
		return "Promoted"
	case "Slave", "Unpromoted":
		return "Unpromoted"
	}
	return s
}

// count returns the first of values that is a number not below zero, else 0.
func count(values ...string) int {
	for _, v := range values {
		if n, err := strconv.Atoi(v); err == nil && n >= 0 {
			return n
		}
	}
	return 0
}

// isTrue knows the words for true of Pacemaker's crm_is_true.
func isTrue(s string) bool {
	switch strings.ToLower(s) {
	case "true", "on", "yes", "y", "1":
		return true
	}
	return false
}
