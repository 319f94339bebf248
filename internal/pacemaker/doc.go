// Package pacemaker is what Pacemaker says and is told: the plan in the
// environment of an action, node attributes and promotion scores, constraints,
// and the state of the cluster.
//
// Pacemaker's IPC is private to it. Everything but [ParsePlan] therefore runs one
// of its commands, at the price of 10 to 20 ms each, and reads XML where the
// command speaks it. Versions 2.0.3 to 3.0 are understood; where they differ, the
// comment says how.
package pacemaker
