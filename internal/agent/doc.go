// Package agent is the resource agent's actions, one file each. An action gathers facts, asks the rules in
// internal/baton, and carries out what they say through small effects: a signal, a file, an attribute, a query. Order,
// loops and deadlines stand here; one goroutine, no globals.
//
// What changes something outside this process goes through [Agent.do] under a name of its own. The list of
// names is the table of effects in docs/effects.md, and what the tests kill the agent before and after.
package agent
