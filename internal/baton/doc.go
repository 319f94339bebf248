// Package baton holds the rules by which the primary role of a PostgreSQL cluster passes from node to node.
//
// It is pure: no I/O, no clock, no goroutine. The caller (internal/agent) gathers facts, hands them in, gets a
// decision back and carries it out. Everything that decides whether an instance may become primary stands here, so
// that it can be read, tested and attacked in one place.
//
// The words are those of docs/protocol.md: a [Note] is what a primary leaves when nothing of it runs any more, a
// [Claim] is what a node makes known before it starts a new timeline, a [Bulletin] is what one node publishes for the
// others, and [Decide] says whether a candidate may be promoted.
package baton
