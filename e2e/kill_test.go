package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/load"
)

// Limits of what a killed agent may cost.
const (
	killPrimaryLimit = 30 * time.Second // until there is a primary, from the kill on
	killHealLimit    = 60 * time.Second // until every node streams again
	killHitLimit     = 25 * time.Second // until the point is reached
)

// Ensure a handover survives that the agent is killed, process and group, before and after every one of its effects:
// there is a primary again, nothing acknowledged is lost, never two nodes are writable, every node streams and has the
// same rows in the end, with no hand on it, and no node is fenced.
//
// A sample of the points is taken by default, another one every day, so that the test ends within minutes. By
// environment: PGBATON_KILL_ALL=1 takes all, PGBATON_KILL_SEED another sample, PGBATON_KILL_POINTS one of that size,
// PGBATON_KILL those whose name it matches, a regular expression.
//
// Trap 2: an attempt that was cut short is no reason to skip a check in the next one.
func TestKill(t *testing.T) {
	k := newKillTest(t)
	points, named := effectsTable(t)
	plans := killPlans()
	for _, plan := range plans {
		t.Run("trace: "+plan.name, func(t *testing.T) { k.reference(t, plan, points, named) })
	}
	chosen := choosePoints(t, points)
	t.Logf("%d of %d points", len(chosen), len(points))
	for _, p := range chosen {
		plan := plans[slices.IndexFunc(plans, func(pl killPlan) bool { return pl.name == p.plan })]
		t.Run(p.String(), func(t *testing.T) { k.kill(t, plan, p) })
	}
	t.Run("on-fail", k.onFail)
	k.summary(t, chosen)
}

func choosePoints(t *testing.T, points []killPoint) []killPoint {
	if want := os.Getenv("PGBATON_KILL"); want != "" {
		re, err := regexp.Compile(want)
		if err != nil {
			t.Fatalf("PGBATON_KILL: %v", err)
		}
		list := slices.DeleteFunc(slices.Clone(points), func(p killPoint) bool { return !re.MatchString(p.String()) })
		if len(list) == 0 {
			t.Fatalf("PGBATON_KILL=%q: it matches the name of no point", want)
		}
		return list
	}
	if os.Getenv("PGBATON_KILL_ALL") == "1" {
		return points
	}
	seed := uint64(time.Now().Unix() / 86400) // another sample every day, the same one all day
	if s := os.Getenv("PGBATON_KILL_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("PGBATON_KILL_SEED: %v", err)
		}
	}
	t.Logf("seed %d (PGBATON_KILL_SEED)", seed)
	size := 8
	if s := os.Getenv("PGBATON_KILL_POINTS"); s != "" {
		var err error
		if size, err = strconv.Atoi(s); err != nil {
			t.Fatalf("PGBATON_KILL_POINTS: %v", err)
		}
	}
	list := slices.Clone(points)
	rnd := rand.New(rand.NewPCG(seed, seed))
	rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list[:min(size, len(list))]
}

type killTest struct {
	lab  *lab.Lab
	hit  map[killPoint]bool
	cost []killCost
}

type killCost struct {
	point  killPoint
	outage time.Duration
	healed time.Duration
	failed []string
}

func newKillTest(t *testing.T) *killTest {
	t.Helper()
	agent := os.Getenv("PGBATON_KILL_AGENT")
	if agent == "" {
		agent = built(t, buildFaultyAgent)
	}
	l := ownLab(t, "kill", lab.Options{
		AgentBinary: agent,
		AutoReturn:  2 * time.Second,
		Ops: map[string]lab.Op{
			"promote": {OnFail: "demote"},
			// What heals by the next monitor should not make the test long.
			"monitor-promoted":   {Interval: "4s"},
			"monitor-unpromoted": {Interval: "5s"},
		},
	})
	return &killTest{lab: l, hit: map[killPoint]bool{}}
}

// attempt is one change of roles under load.
type attempt struct {
	t      *testing.T
	k      *killTest
	plan   killPlan
	roles  map[killPart]string
	faults map[string]faults
	run    *load.Run
	ctx    context.Context
	fenced []string // before
}

// begin brings the lab to a healthy state and gives out the parts.
func (k *killTest) begin(t *testing.T, plan killPlan) *attempt {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	if err := k.lab.Healthy(ctx); err != nil {
		if err := k.lab.Reset(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := noRefusals(ctx, k.lab); err != nil {
		t.Fatal(err)
	}
	s, err := k.lab.View(ctx)
	if err != nil {
		t.Fatal(err)
	}
	a := &attempt{t: t, k: k, plan: plan, ctx: ctx, faults: map[string]faults{}, fenced: fencings(t, k.lab)}
	names := k.lab.Names
	n := slices.Index(names, s.Promoted()[0])
	a.roles = map[killPart]string{partOld: names[n], partTarget: names[(n+1)%3], partThird: names[(n+2)%3]}
	for _, node := range names {
		f, err := openFaults(k.lab, node)
		if err == nil {
			err = f.clear()
		}
		if err != nil {
			t.Fatal(err)
		}
		a.faults[node] = f
	}
	if a.run, err = load.Start(ctx, k.lab, load.Options{Clients: 2, Every: 10 * time.Millisecond, Appenders: 2}); err != nil {
		t.Fatal(err)
	}
	return a
}

// change starts the change of roles.
func (a *attempt) change() {
	a.t.Helper()
	old := a.faults[a.roles[partOld]]
	if a.plan.pause != "" {
		if err := old.plant("pause", a.plan.pause); err != nil {
			a.t.Fatal(err)
		}
	}
	if a.plan.before != nil {
		if err := a.plan.before(a.ctx, a.k.lab, a.roles); err != nil {
			a.t.Fatal(err)
		}
	}
	a.run.Mark("change of roles")
	if err := a.plan.start(a.ctx, a.k.lab, a.roles); err != nil {
		a.t.Fatal(err)
	}
	if a.plan.pause == "" {
		return
	}
	// An agent that was killed before it came here never pauses.
	paused, cancel := context.WithTimeout(a.ctx, 8*time.Second)
	defer cancel()
	err := lab.Poll(paused, 2*time.Millisecond, func() error {
		for _, f := range a.faults {
			if f.exists("killed") {
				return nil
			}
		}
		if !old.exists("paused") {
			return lab.NotYet("%s on %s was not reached", a.plan.pause, a.roles[partOld])
		}
		return nil
	})
	if err == nil {
		err = a.plan.meanwhile(paused, a.k.lab, a.roles)
	}
	if _, rerr := old.remove("pause"); err == nil {
		err = rerr
	}
	if err != nil {
		a.t.Errorf("pause at %s: %v", a.plan.pause, err)
	}
}

// settle waits until the cluster has healed by itself and checks what must hold.
func (a *attempt) settle(from time.Time) killCost {
	a.t.Helper()
	l := a.k.lab
	var cost killCost
	ctx, cancel := context.WithDeadline(a.ctx, from.Add(killPrimaryLimit))
	defer cancel()
	fail := func(err error) {
		if err != nil {
			a.t.Errorf("%v", err)
		}
	}
	primary, err := l.WaitPromoted(ctx, "")
	if err == nil {
		err = a.run.AwaitAck(ctx)
	}
	if err != nil {
		fail(fmt.Errorf("no primary %s after the kill: %w", killPrimaryLimit, err))
	}
	// The links and the constraint are what the test itself put there.
	fail(l.HealAll(a.ctx))
	fail(a.lift())
	heal, cancel2 := context.WithDeadline(a.ctx, time.Now().Add(killHealLimit))
	defer cancel2()
	for range 2 { // what goes on when streaming was seen may end it again
		if err == nil {
			err = l.WaitAllStreaming(heal)
		}
		if err == nil {
			err = l.WaitIdle(heal)
		}
	}
	fail(err)
	cost.healed = time.Since(from)
	report := a.run.Stop()
	fail(report.Err())
	cost.outage = time.Duration(report.GapAfter("change of roles").Ms) * time.Millisecond
	if err == nil {
		fail(sameRows(heal, l))
	}
	s, serr := l.View(a.ctx)
	fail(serr)
	if serr == nil {
		cost.failed = s.Failed
	}
	a.t.Logf("%s was primary, now %s; outage %d ms, healed after %.1f s; failed actions: %q", a.roles[partOld], primary, cost.outage.Milliseconds(), cost.healed.Seconds(), cost.failed)
	if now := fencings(a.t, l); !slices.Equal(now, a.fenced) && !a.mayFence() {
		a.t.Errorf("fenced: %q, before: %q", now, a.fenced)
	}
	if a.t.Failed() {
		a.dump()
	}
	return cost
}

func (a *attempt) mayFence() bool { return a.plan.fences != "" }

// lift takes away what made the role move.
func (a *attempt) lift() error {
	if _, err := a.k.lab.Run(a.ctx, a.roles[partThird], "crm_resource", "--clear", "-r", lab.Clone); err != nil {
		return err
	}
	_, err := a.k.lab.Run(a.ctx, a.roles[partThird], "crm_attribute", "-N", a.roles[partOld], "-n", "standby", "-D")
	return err
}

// dump shows what explains a failure.
func (a *attempt) dump() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	a.k.lab.Dump(ctx, a.t.Output())
}

// kill kills the agent at one point and sees what becomes of it.
func (k *killTest) kill(t *testing.T, plan killPlan, p killPoint) {
	tries := 1
	if !p.always {
		tries = 2
	}
	for range tries {
		a := k.begin(t, plan)
		f := a.faults[a.roles[p.part]]
		if err := f.plant("kill", p.effect+" "+p.when); err != nil {
			t.Fatal(err)
		}
		a.change()
		hit, cancel := context.WithTimeout(a.ctx, killHitLimit)
		err := lab.Poll(hit, 5*time.Millisecond, func() error {
			if !f.exists("killed") {
				return lab.NotYet("%s on %s was not reached", p, a.roles[p.part])
			}
			return nil
		})
		cancel()
		f.remove("kill")
		if err != nil && p.always {
			t.Error(err)
		}
		cost := a.settle(time.Now())
		if err == nil {
			k.hit[p] = true
			cost.point = p
			k.cost = append(k.cost, cost)
			return
		}
	}
}

// reference traces a change without a kill and holds it against the table.
func (k *killTest) reference(t *testing.T, plan killPlan, points []killPoint, named map[string]bool) {
	a := k.begin(t, plan)
	a.change()
	complete, cancel := context.WithTimeout(a.ctx, killHitLimit)
	lab.Poll(complete, 100*time.Millisecond, func() error { // what is missing is said below
		for _, p := range points {
			if p.plan != plan.name || !p.always {
				continue
			}
			seen, err := a.faults[a.roles[p.part]].trace()
			if err != nil {
				return err
			}
			if !slices.Contains(seen, p.effect) {
				return lab.NotYet("%s", p)
			}
		}
		return nil
	})
	cancel()
	cost := a.settle(time.Now())
	if len(cost.failed) > 0 {
		t.Errorf("failed actions without a kill: %q", cost.failed)
	}
	for part, node := range a.roles {
		seen, err := a.faults[node].trace()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s, %s: %s", part, node, strings.Join(seen, " "))
		for _, effect := range seen {
			if !named[effect] {
				t.Errorf("the %s does %s, which docs/effects.md does not name", part, effect)
			}
		}
		for _, p := range points {
			if p.when == "before" && p.plan == plan.name && p.part == part && p.always && !slices.Contains(seen, p.effect) {
				t.Errorf("docs/effects.md says that the %s does %s, in the section %q: it was not seen", part, p.effect, plan.name)
			}
		}
	}
}

// summary says what the kills cost, and which points were not hit.
func (k *killTest) summary(t *testing.T, chosen []killPoint) {
	var missed []string
	for _, p := range chosen {
		if !k.hit[p] && !p.always {
			missed = append(missed, p.String())
		}
	}
	slices.SortFunc(k.cost, func(a, b killCost) int { return int(b.outage - a.outage) })
	t.Logf("%d of %d points were hit; not reached, a matter of timing: %q", len(k.hit), len(chosen), missed)
	for _, c := range k.cost {
		t.Logf("outage %6d ms, healed after %4.1f s, %d failed actions: %s", c.outage.Milliseconds(), c.healed.Seconds(), len(c.failed), c.point)
	}
}
