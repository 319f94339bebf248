package baton_test

import (
	"flag"
	"fmt"
	"slices"
	"testing"

	"github.com/pgbaton/pgbaton/internal/baton"

	"pgregory.net/rapid"
)

// Ensure that the rules hold in a world where anything may go wrong between any two steps: agents are killed, nodes lose
// power, some do not answer, are cut off or lag behind. What must hold stands in [world.judge], [world.becomePrimary]
// and [world.noteStillTrue].
//
// A life is cheap, and what is wrong shows once in thousands: go test -run World -rapid.checks=20000 -rapid.steps=60.
func TestRules_InAWorldOfTrouble(t *testing.T) {
	if checks := flag.Lookup("rapid.checks"); checks.Value.String() == checks.DefValue {
		flag.Set("rapid.checks", "1000")
		defer flag.Set("rapid.checks", checks.DefValue)
	}
	for _, size := range [][2]int{{3, 0}, {4, 0}, {5, 0}, {2, 1}, {3, 2}} {
		t.Run(fmt.Sprintf("%d nodes %d witnesses", size[0], size[1]), func(t *testing.T) {
			seen := map[string]int{}
			rapid.Check(t, func(rt *rapid.T) { live(rt, size[0], size[1], seen) })
			if t.Failed() || flag.Lookup("rapid.failfile").Value.String() != "" {
				return // of one life alone
			}
			t.Log(seen)
			for what, n := range seen {
				if n == 0 {
					t.Errorf("in all lives there was no %q: this shows nothing about it", what)
				}
			}
		})
	}
}

// live lets a cluster live through a random life, and counts what happened in it: a step that the rules of the world do not
// allow just then skips itself.
func live(t *rapid.T, size, witnesses int, seen map[string]int) {
	var names []string
	for i := range size {
		names = append(names, fmt.Sprintf("n%d", i+1))
	}
	w := newWorld(names...)
	w.witnesses = witnesses
	for _, n := range w.nodes {
		n.publish(nil, nil)
	}
	// The first primary is the one that was a primary before there was a cluster.
	first := w.nodes[0]
	first.running, first.ctl = false, shutDown
	first.log[0].shutdown, w.truth[0].shutdown = true, true
	for _, n := range w.nodes {
		n.log[0].shutdown = true
	}
	w.startAsStandby(first)
	first.publish(nil, nil)
	l := &life{T: t, world: w}
	if !l.attempt(first, names, names, true) {
		t.Fatalf("the first primary of a fresh cluster is not promoted: %s", l.verdict.Reason)
	}
	w.trouble = func() bool { return rapid.IntRange(0, 9).Draw(t, "killed") == 9 }
	w.slow = func() bool { return rapid.IntRange(0, 9).Draw(t, "slow") == 9 }

	t.Repeat(map[string]func(*rapid.T){
		"":     func(t *rapid.T) { l.check() },
		"step": func(t *rapid.T) { l.step(t, seen) },
	})
	l.someoneCan()
}

// step lets one thing happen that can. What makes a life go on is more frequent than what brings it to a stand, or most of it
// would pass without a primary.
func (l *life) step(t *rapid.T, seen map[string]int) {
	some := func(ok func(*sim) bool) bool { return slices.ContainsFunc(l.nodes, ok) }
	primary := some(func(n *sim) bool { return n.writable })
	standby := some(func(n *sim) bool { return n.on && n.running && !n.writable })
	on := some(func(n *sim) bool { return n.on })
	off := some(func(n *sim) bool { return !n.on })
	stopped := some(func(n *sim) bool { return n.on && !n.running && n.ctl == inRecovery })
	steps := []struct {
		name   string
		weight int
		can    bool
		do     func(*rapid.T)
	}{
		{"write", 10, primary && l.quorum(), l.write}, // without a quorum Pacemaker stops it
		{"stream", 10, primary && standby, l.stream},
		{"handover", 8, primary && standby, l.handover},
		{"rejoin", 8, primary && standby, l.rejoin},
		{"takeover", 3, primary && standby, l.takeover},
		{"retry", 10, !primary && standby, l.retry},
		{"monitor", 3, primary || standby, l.monitor},
		{"stop", 2, standby, l.stop},
		{"start", 8, stopped, l.start},
		{"long gone", 2, primary && standby, l.longGone},
		{"power on", 10, off, l.powerOn},
		{"power off", 1, on, l.powerOff},
		{"blackout", 1, on, l.blackout},
	}
	total := 0
	for i, s := range steps {
		seen[s.name] += 0
		if !s.can {
			steps[i].weight = 0
		}
		total += steps[i].weight
	}
	at := rapid.IntRange(0, total-1).Draw(t, "step")
	for _, s := range steps {
		if at -= s.weight; at < 0 {
			s.do(t)
			seen[s.name]++ // it did not skip itself
			return
		}
	}
}

// someoneCan ensures that with all nodes back and answering somebody is promoted without a person.
func (l *life) someoneCan() {
	l.trouble, l.slow = nil, nil
	if slices.ContainsFunc(l.nodes, func(n *sim) bool { return n.writable }) {
		return
	}
	l.tell("everybody comes back")
	for _, n := range l.nodes {
		switch {
		case !n.on:
			l.world.powerOn(n)
		case n.ctl == inProduction:
			l.demote(n)
			l.startAsStandby(n)
		case !n.running:
			l.startAsStandby(n)
		}
		n.publish(nil, nil)
	}
	for range 2 {
		for _, n := range l.nodes {
			if l.attempt(n, l.names(), l.names(), true) {
				l.check()
				return
			}
		}
	}
	l.violated("all nodes are there and nobody can be promoted")
	l.check()
}

// life is a world and what happens to it.
type life struct {
	*rapid.T
	*world
	verdict baton.Verdict
}

func (l *life) check() {
	l.noteStillTrue()
	if len(l.wrong) > 0 {
		for _, s := range l.story {
			l.Log(s)
		}
		for _, n := range l.nodes {
			l.Log(n)
		}
	}
	for _, v := range l.wrong {
		l.Errorf("%s", v)
	}
	if len(l.wrong) > 0 {
		l.FailNow()
	}
}

// some draws a set of nodes that are on; always is in it.
func (l *life) some(what string, from []string, always *sim) []string {
	var names []string
	for _, n := range l.nodes {
		if n == always || (n.on && slices.Contains(from, n.name) && rapid.IntRange(0, 3).Draw(l.T, what+" "+n.name) > 0) {
			names = append(names, n.name)
		}
	}
	return names
}

func (l *life) one(what string, ok func(*sim) bool) *sim {
	var list []*sim
	for _, n := range l.nodes {
		if ok(n) {
			list = append(list, n)
		}
	}
	if len(list) == 0 {
		l.Skip("no node for it")
	}
	return list[rapid.IntRange(0, len(list)-1).Draw(l.T, what)]
}

func (l *life) write(*rapid.T) {
	n := l.one("primary", func(n *sim) bool { return n.writable })
	for range rapid.IntRange(1, 3).Draw(l.T, "records") {
		l.commit(n)
	}
}

func (l *life) stream(*rapid.T) {
	from := l.one("source", func(n *sim) bool { return n.on && (n.writable || n.lingers) })
	to := l.one("standby", func(n *sim) bool { return n.on && n.running && !n.writable })
	if !l.world.stream(to, from, rapid.IntRange(0, 3).Draw(l.T, "records"), rapid.Bool().Draw(l.T, "flushed")) {
		l.Skip("cannot stream")
	}
}

// quorum reports whether most of the nodes are members of the cluster, with or without an instance.
func (l *life) quorum() bool { return l.members() >= l.votes().Quorum }

// stop ends a standby in good order, or what is left of one: its node stays a member.
func (l *life) stop(*rapid.T) {
	n := l.one("standby", func(n *sim) bool { return n.on && n.running && !n.writable })
	l.leave(n)
	l.tell("stop %s: %+v", n.name, n.left)
}

func (l *life) start(*rapid.T) {
	n := l.one("stopped", func(n *sim) bool { return n.on && !n.running && n.ctl == inRecovery })
	l.tell("start %s", n.name)
	l.startAsStandby(n)
	n.publish(nil, nil)
}

// longGone has the primary go on while the others are stopped or without power, and be lost itself before some of them are
// back: who knows how it ended?
func (l *life) longGone(*rapid.T) {
	old := l.one("primary", func(n *sim) bool { return n.writable })
	others := slices.DeleteFunc(slices.Clone(l.nodes), func(n *sim) bool { return n == old || !n.on || !n.running })
	for _, n := range others {
		switch rapid.IntRange(0, 2).Draw(l.T, "goes "+n.name) {
		case 1:
			l.leave(n)
			l.tell("stop %s: %+v", n.name, n.left)
		case 2:
			l.world.powerOff(n)
		}
	}
	if l.quorum() {
		l.commit(old)
		for _, n := range others {
			l.world.stream(n, old, 0, true)
		}
		l.commit(old)
	}
	l.world.powerOff(old)
	for _, n := range others {
		if rapid.IntRange(0, 2).Draw(l.T, "back "+n.name) == 0 {
			continue
		}
		if !n.on {
			l.world.powerOn(n)
		} else if !n.running {
			l.startAsStandby(n)
			n.publish(nil, nil)
		}
	}
	l.retry(l.T)
}

// handover is what Pacemaker does for a move or when the primary's node leaves.
func (l *life) handover(*rapid.T) {
	old := l.one("primary", func(n *sim) bool { return n.writable })
	sight := l.sight(old)
	for _, n := range l.nodes {
		if slices.Contains(sight, n.name) && n.running {
			n.live = true // pre-demote
		}
	}
	if rapid.Bool().Draw(l.T, "all stream") {
		for _, n := range l.nodes {
			l.world.stream(n, old, 0, true)
		}
	}
	leaves := rapid.Bool().Draw(l.T, "leaves")
	if rapid.IntRange(0, 4).Draw(l.T, "crashed") == 4 {
		l.crash(old)
	}
	l.demote(old)
	if rapid.Bool().Draw(l.T, "the last record goes out") {
		for _, n := range l.nodes {
			l.world.stream(n, old, 0, rapid.Bool().Draw(l.T, "flushed"))
		}
	}
	for _, name := range l.some("post-demote on", sight, nil) {
		if n := l.node(name); n != old && n.running {
			l.postDemote(n, sight)
		}
	}
	if leaves {
		old.running, old.on, old.lingers, old.board, old.live, old.informed, old.challenge = false, false, false, nil, false, false, ""
	} else {
		old.lingers = rapid.Bool().Draw(l.T, "lingers")
		l.startAsStandby(old)
		old.publish(nil, nil)
	}
	target := l.one("target", func(n *sim) bool { return n.on && n.running && n != old && slices.Contains(sight, n.name) })
	l.attempt(target, sight, l.some("answer of", sight, target), rapid.Bool().Draw(l.T, "settled"))
}

// sight draws a majority of the nodes with one in it; a partition with quorum. Who is outside and might write is fenced.
func (l *life) sight(with *sim) []string {
	sight := l.some("in sight", l.names(), with)
	if len(sight)+l.witnesses < l.votes().Quorum {
		l.Skip("no quorum")
	}
	for _, n := range l.nodes {
		if len(l.nodes) == 2 && n.on && !slices.Contains(sight, n.name) {
			l.world.powerOff(n) // fenced: of two nodes one goes on only because the other cannot
		}
	}
	return sight
}

func (l *life) fenceWriters(sight []string) {
	for _, n := range l.nodes {
		if n.writable || (n.ctl == inProduction && n.on && !n.running) {
			l.world.powerOff(n)
		}
	}
}

// takeover: the primary is fenced, or has crashed and left a note.
func (l *life) takeover(*rapid.T) {
	old := l.one("primary", func(n *sim) bool { return n.writable })
	if rapid.Bool().Draw(l.T, "only the server died") {
		l.crash(old)
		l.demote(old)
		l.startAsStandby(old)
		old.publish(nil, nil)
	} else {
		l.world.powerOff(old)
	}
	l.retry(l.T)
}

// retry is any plan that promotes any node, with no primary.
func (l *life) retry(*rapid.T) {
	target := l.one("target", func(n *sim) bool { return n.on && n.running && !n.writable })
	sight := l.sight(target)
	l.fenceWriters(sight)
	l.attempt(target, sight, l.some("answer of", sight, target), rapid.Bool().Draw(l.T, "settled"))
}

// attempt is pre-promote and promote, and what Pacemaker does when they fail.
func (l *life) attempt(target *sim, sight, answering []string, settled bool) bool {
	c := l.ask(target, sight)
	if c.Nonce == "" {
		return false // pre-promote was killed, promote finds no challenge
	}
	for _, name := range answering {
		n := l.node(name)
		if n != target && n.on && n.running {
			l.reply(n, c, sight)
		}
	}
	q := l.question(target, c, sight, settled)
	l.verdict = baton.Decide(q)
	if l.verdict.Unreachable && rapid.Bool().Draw(l.T, "recorded") {
		recorded := l.record(c, sight)
		q = l.question(target, c, sight, settled)
		q.Recorded = recorded
		l.verdict = baton.Decide(q)
	}
	l.tell("%s: %s", l.verdict.Outcome, l.verdict.Reason)
	if l.verdict.Outcome != baton.Promote {
		if !l.killed() {
			target.refuse()
			target.publish(nil, nil)
		}
		if !l.killed() {
			return false
		}
		// The score was not seen in time: promote is called all the same, and more has arrived meanwhile.
		for _, n := range l.nodes {
			l.world.stream(target, n, 0, true)
		}
		q = l.question(target, c, sight, true)
		if l.verdict = baton.Decide(q); l.verdict.Outcome != baton.Promote {
			return false
		}
	}
	if l.killed() {
		return false
	}
	done := l.promote(target, q, l.verdict)
	for _, n := range l.nodes {
		n.lingers = false
	}
	if !done {
		// Pacemaker demotes what failed to be promoted, unless somebody cleans the failure of a primary up.
		switch power := rapid.IntRange(0, 2).Draw(l.T, "after the failure"); {
		case power == 0:
			l.world.powerOff(target)
		case power == 1 || !target.writable:
			l.demote(target)
			if !target.running {
				l.startAsStandby(target)
			}
			target.publish(nil, nil)
		}
	}
	return done
}

func (l *life) powerOff(*rapid.T) {
	l.world.powerOff(l.one("node", func(n *sim) bool { return n.on }))
	for _, o := range l.nodes {
		if o.on && o.running && !o.writable && !l.quorate() && rapid.IntRange(0, 3).Draw(l.T, "stopped "+o.name) > 0 {
			l.leave(o) // by Pacemaker, unless the power goes first
			l.tell("%s is stopped for want of a quorum: %+v", o.name, o.left)
		}
	}
}

func (l *life) powerOn(*rapid.T) {
	l.world.powerOn(l.one("node", func(n *sim) bool { return !n.on }))
}

// blackout takes the power from all, and gives it back to some.
func (l *life) blackout(*rapid.T) {
	for _, n := range l.nodes {
		if n.on {
			l.world.powerOff(n)
		}
	}
	for _, n := range l.nodes {
		if rapid.IntRange(0, 3).Draw(l.T, "back "+n.name) > 0 {
			l.world.powerOn(n)
		}
	}
}

// rejoin makes a node that cannot follow the primary follow it again.
func (l *life) rejoin(*rapid.T) {
	from := l.one("primary", func(n *sim) bool { return n.writable })
	n := l.one("node", func(n *sim) bool { return n.on && !n.writable })
	l.clone(n, from)
	n.live = true
}

// monitor asks how the attempts of others ended.
func (l *life) monitor(*rapid.T) {
	n := l.one("node", func(n *sim) bool { return n.on && n.running })
	n.learn(l.others(n, l.names()))
	if n.writable {
		n.publish(nil, nil)
	}
}
