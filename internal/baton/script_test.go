package baton_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/golden"
)

// Ensure that the rules decide as the stories in testdata tell: blocks of commands, a line ----, and what came of them.
// Write the outcome anew with -update, and read the difference. Whatever a story does, the truth must hold: see world.
//
//	cluster NODE...             a fresh cluster; the first node was its primary, and the others have the same WAL
//	write NODE [RECORDS]        commits
//	stream NODE from NODE [RECORDS]
//	crash NODE                  its server dies
//	dead NODE                   and does not start again
//	demote NODE                 ends the primary, or what is left of it, and leaves a note
//	start NODE                  as a standby
//	post-demote NODE...         copy what is published
//	ask NODE [sees NODE,...] [answers NODE,...] [settled] [recorded] [maxlag BYTES]
//	                            pre-promote; who is seen are all nodes that are on if not given, who answers those of them
//	                            that were not stopped; recorded: with the claim in the cluster's configuration
//	promote NODE [killed POINT] as asked: agent killed before-claim, before-request, before-effective, before-publishing
//	leave NODE                  its standby is stopped in good order
//	refuse NODE                 what it asked for
//	power off|on NODE
//	clone NODE from NODE
//	monitor NODE                learns how others' attempts ended
//	usable NODE...              whether the note can be used by what these nodes have on disk
//	state NODE...
//	bulletin NODE               what it published, encoded
//	lone NODE                   promoted by hand, without a plan
//	quorum N...
func TestStories(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories in testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { tellStory(t, file) })
	}
}

func tellStory(t *testing.T, file string) {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	p := &play{}
	blocks := strings.Split(strings.TrimRight(string(data), "\n"), "\n\n")
	for _, block := range blocks {
		commands, _, ok := strings.Cut(block+"\n", "----\n")
		if !ok {
			t.Fatalf("%s: block without ----:\n%s", file, block)
		}
		for line := range strings.Lines(commands) {
			line, _, _ = strings.Cut(line, "#")
			if f := strings.Fields(line); len(f) > 0 {
				if err := p.run(f); err != nil {
					t.Fatalf("%s: %s: %v", file, strings.TrimSpace(line), err)
				}
			}
		}
		if out.Len() > 0 {
			out.WriteString("\n")
		}
		out.WriteString(commands + "----\n")
		for _, s := range p.story {
			out.WriteString(s + "\n")
		}
		for _, s := range p.wrong {
			out.WriteString("WRONG: " + s + "\n")
			t.Errorf("%s: %s", file, s)
		}
		p.story, p.wrong = nil, nil
	}
	golden.Compare(t, file, out.String())
}

// play is a world and what its nodes asked for last.
type play struct {
	*world
	asked map[string]asked
}

type asked struct {
	challenge baton.Challenge
	sight     []string
	settled   bool
	recorded  []string
	maxLag    int64
}

func (p *play) run(f []string) (err error) {
	if f[0] == "cluster" {
		p.world, p.asked = newWorld(f[1:]...), map[string]asked{}
		first := p.nodes[0]
		first.ctl = shutDown
		for _, n := range p.nodes {
			n.log[0].shutdown, p.truth[0].shutdown = true, true
			n.publish(nil, nil)
		}
		p.startAsStandby(first)
		first.publish(nil, nil)
		return nil
	}
	if f[0] == "quorum" {
		for _, s := range f[1:] {
			n, err := strconv.Atoi(s)
			if err != nil {
				return err
			}
			p.tell("of %d: %d", n, baton.Quorum(n))
		}
		return nil
	}
	if f[0] == "witnesses" {
		p.witnesses, _ = strconv.Atoi(f[1])
		return nil
	}
	if f[0] == "power" {
		f = append([]string{f[0] + " " + f[1]}, f[2:]...)
	}
	names := slices.DeleteFunc(slices.Clone(f[1:]), func(s string) bool { return p.node(s) == nil })
	if len(names) == 0 {
		return fmt.Errorf("names no node")
	}
	n := p.node(f[1])
	if n == nil {
		return fmt.Errorf("%q is no node", f[1])
	}
	number := func() int {
		v, _ := strconv.Atoi(f[len(f)-1])
		return v
	}
	switch f[0] {
	case "write":
		for range max(1, number()) {
			p.commit(n)
		}
	case "stream":
		if !p.stream(n, p.node(names[1]), number(), true) {
			p.tell("%s cannot stream from %s", n.name, names[1])
		}
	case "crash":
		p.crash(n)
	case "leave":
		p.leave(n)
		p.tell("%s leaves: %+v", n.name, n.left)
	case "dead":
		n.dead = true
	case "demote":
		p.demote(n)
		if n.note != nil && n.note.Node == n.name {
			p.tell("%s leaves the note %s: %s", n.name, n.note.Nonce, n.note)
		}
	case "start":
		p.startAsStandby(n)
		n.publish(nil, nil)
	case "post-demote":
		for _, name := range names {
			p.node(name).live = true
			p.postDemote(p.node(name), p.names())
		}
	case "ask":
		return p.ask(n, f[2:])
	case "promote":
		return p.promote(n, f[2:])
	case "refuse":
		n.refuse()
		n.publish(nil, nil)
	case "power off":
		p.powerOff(n)
	case "power on":
		p.powerOn(n)
	case "clone":
		p.clone(n, p.node(names[1]))
	case "monitor":
		n.learn(p.others(n, p.names()))
		n.publish(nil, nil)
	case "usable":
		var l []baton.Bulletin
		for _, name := range names {
			o := p.node(name)
			l = append(l, baton.Bulletin{Node: name, Note: o.note, Claims: o.claims})
		}
		if note, err := baton.Gather(l, "").Usable(""); err != nil {
			p.tell("no: %v", err)
		} else {
			p.tell("yes: %s", note)
		}
	case "state":
		for _, name := range names {
			p.tell("%s", p.node(name))
		}
	case "bulletin":
		p.tell("%s", n.board.Encode())
	case "lone":
		p.lone(n)
	default:
		return fmt.Errorf("unknown command")
	}
	return nil
}

func (p *play) on() []string {
	var l []string
	for _, n := range p.nodes {
		if n.on {
			l = append(l, n.name)
		}
	}
	return l
}

func (p *play) ask(n *sim, options []string) error {
	a := asked{sight: p.on()}
	answers := p.on()
	recorded, slow := false, []string(nil)
	for i := 0; i < len(options); i++ {
		switch options[i] {
		case "sees":
			i++
			a.sight = strings.Split(options[i], ",")
		case "answers":
			i++
			answers = strings.Split(options[i], ",")
		case "settled":
			a.settled = true
		case "recorded":
			recorded = true
		case "slow":
			i++
			slow = strings.Split(options[i], ",")
		case "maxlag":
			i++
			a.maxLag, _ = strconv.ParseInt(options[i], 10, 64)
		default:
			return fmt.Errorf("unknown option %q", options[i])
		}
	}
	if !slices.Contains(a.sight, n.name) {
		a.sight = append(a.sight, n.name)
	}
	a.challenge = p.world.ask(n, a.sight)
	for _, name := range answers {
		if o := p.node(name); o != nil && o != n && o.on && !o.stopped && slices.Contains(a.sight, name) {
			p.slow = func() bool { return slices.Contains(slow, name) }
			p.reply(o, a.challenge, a.sight)
		}
	}
	if recorded {
		a.recorded = p.record(a.challenge, a.sight)
	}
	p.asked[n.name] = a
	_, v := p.decide(n, a)
	p.say(n, v)
	return nil
}

func (p *play) decide(n *sim, a asked) (baton.Question, baton.Verdict) {
	q := p.question(n, a.challenge, a.sight, a.settled)
	q.MaxLag, q.Recorded = a.maxLag, a.recorded
	return q, baton.Decide(q)
}

func (p *play) say(n *sim, v baton.Verdict) {
	s := fmt.Sprintf("%s: %s: %s", n.name, v.Outcome, v.Reason)
	if v.Missing > 0 {
		s += fmt.Sprintf("; lacks %d bytes", v.Missing)
	}
	for _, c := range v.Avoid {
		s += fmt.Sprintf("; passes over timeline %d (%s of %s)", c.Timeline, c.State, c.Node)
	}
	p.tell("%s", s)
}

func (p *play) promote(n *sim, options []string) error {
	a, ok := p.asked[n.name]
	if !ok {
		return fmt.Errorf("%s has not asked", n.name)
	}
	q, v := p.decide(n, a)
	if v.Outcome != baton.Promote {
		p.say(n, v)
		return nil
	}
	points := []string{"before-claim", "before-request", "before-effective", "before-publishing"}
	at, seen := -1, -1
	if len(options) == 2 {
		at = slices.Index(points, options[1])
	}
	if len(options) > 0 && at < 0 {
		return fmt.Errorf("expected killed and one of %s", strings.Join(points, ", "))
	}
	p.trouble = func() bool { seen++; return seen == at }
	p.world.promote(n, q, v)
	p.trouble = nil
	return nil
}

// lone mirrors a promotion without a plan up to its verdict.
func (p *play) lone(n *sim) {
	list := p.others(n, p.on())
	know := baton.Gather(list, "")
	note, _ := know.Usable("")
	p.say(n, baton.Decide(baton.Question{
		Self: n.candidate(), Bulletins: list, Challenge: baton.Challenge{Claim: p.newClaim(n, know, note)},
		Participants: p.names(), Available: p.on(), Settled: true, Lone: true,
	}))
}
