package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/load"
)

type benchCmd struct {
	Handovers int           `short:"k" default:"10" help:"Handovers of each agent."`
	Clients   int           `short:"c" default:"4" help:"Writing clients."`
	Agents    []string      `default:"pgbaton,pgsqlms" enum:"pgbaton,pgsqlms" help:"Which agents, in this order in turn."`
	Settle    time.Duration `default:"17s" help:"Time between two handovers of a cluster: the Perl agent sets the standbys' scores in the primary's monitor, every 15 s."`
	Monitors  int           `default:"20" help:"Runs of each agent's monitor; 0: none."`
	Floor     int           `default:"5" help:"Handovers by hand, without a cluster manager; 0: none."`
}

// Help is shown by --help.
func (benchCmd) Help() string {
	return `One cluster for each agent, with the same settings, time-outs (those of the Perl agent's
manual) and clients; handovers by crm_resource --move, in turn A B A B. Outage: the
longest gap between two acknowledged commits of the clients, which write through the
virtual IP. Runs that fail are counted in. Only the cluster that is measured is under
load; the other one is idle. Results depend on the machine: compare only within one run.`
}

// contender is one agent and what was measured of it.
type contender struct {
	*lab.Lab
	primary string
	since   time.Time // when the last handover ended
	runs    []handover
}

// handover is one measured handover.
type handover struct {
	from, to string
	outage   time.Duration
	lost     int
	failed   string // why it counts as failed, empty: it worked
	phases   []phase
	starved  float64 // ms that a sleep of 10 ms overshot, p99
}

func (c benchCmd) Run(ctx context.Context, common *common) error {
	if c.Handovers < 1 {
		return fmt.Errorf("%d handovers: expected 1 at least", c.Handovers)
	}
	limit := 5*time.Minute + time.Duration(c.Handovers*len(c.Agents))*time.Minute
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var all []*contender
	for _, agent := range c.Agents {
		fmt.Printf("starting a cluster with %s\n", agent)
		up, cancel := context.WithTimeout(ctx, 2*time.Minute)
		l, err := lab.Up(up, lab.Options{Name: "bench-" + agent, Agent: agent, Replace: true, Lifeline: true})
		cancel()
		if l != nil {
			defer func() { _ = l.Down(context.WithoutCancel(ctx)) }()
		}
		if err != nil {
			return err
		}
		p, err := l.WaitPromoted(ctx, "")
		if err != nil {
			return err
		}
		all = append(all, &contender{Lab: l, primary: p, since: time.Now()})
	}
	fmt.Printf("%d handovers of each, in turn, %d clients; load average %s\n", c.Handovers, c.Clients, loadAverage())
	for i := range c.Handovers {
		for _, x := range all {
			h, err := x.handover(ctx, c)
			if err != nil {
				return err
			}
			x.runs = append(x.runs, h)
			text := fmt.Sprintf("%2d  %-8s  %s to %s  %7.0f ms", i+1, x.Agent, h.from, h.to, ms(h.outage))
			if h.failed != "" {
				text += "  FAILED: " + h.failed
			}
			fmt.Println(text)
		}
	}
	fmt.Println()
	outages(all)
	for _, x := range all {
		x.printPhases()
	}
	if c.Monitors > 0 {
		if err := monitors(ctx, all, c.Monitors); err != nil {
			return err
		}
	}
	if c.Floor > 0 {
		if err := floor(ctx, all[0].Lab, c.Floor, c.Clients); err != nil {
			return fmt.Errorf("the floor: %w", err)
		}
	}
	lost := 0
	for _, x := range all {
		if x.Agent != "pgbaton" {
			continue // what others lose is theirs
		}
		for _, h := range x.runs {
			lost += h.lost
			if h.failed != "" {
				lost++
			}
		}
	}
	if lost > 0 {
		return errors.New("handovers of pgbaton failed, or rows are lost: see above")
	}
	return nil
}

// handover makes one and measures it. The error is about the lab; a handover that fails is a result.
func (x *contender) handover(ctx context.Context, c benchCmd) (handover, error) {
	if err := x.settle(ctx, c.Settle); err != nil {
		return handover{}, err
	}
	to := x.Names[(slices.Index(x.Names, x.primary)+1)%len(x.Names)]
	h := handover{from: x.primary, to: to}
	begin, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	run, err := load.Start(begin, x.Lab, load.Options{Clients: c.Clients})
	if err != nil {
		return h, err
	}
	sleep(ctx, time.Second)
	start := time.Now()
	h.failed = said(x.move(ctx, run, to))
	sleep(ctx, 500*time.Millisecond)
	end := time.Now()
	report := run.Stop()
	gap := report.LongestGap(start, end)
	h.outage, h.lost, h.starved = gap.Duration(), report.Lost, report.OvershootP99
	if h.failed == "" {
		h.failed = said(report.Err())
	}
	if h.failed == "" {
		h.phases = phases(x.Lab, start, end, gap)
		h.failed = said(x.release(ctx, to))
	}
	x.primary = to
	if h.failed != "" {
		if path, err := keepDump(ctx, x.Lab); err == nil {
			fmt.Println("all logs and states at that moment are in " + path)
		}
		heal, cancel := context.WithTimeout(ctx, 3*time.Minute)
		defer cancel()
		if err := x.Reset(heal); err != nil {
			return h, fmt.Errorf("after a failed handover (%s): %w", h.failed, err)
		}
		if x.primary, err = x.WaitPromoted(heal, ""); err != nil {
			return h, err
		}
	}
	x.since = time.Now()
	return h, nil
}

// move has the role moved and waits until it is there.
func (x *contender) move(ctx context.Context, run *load.Run, to string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := x.Run(ctx, x.primary, moveCommand(to)...); err != nil {
		return err
	}
	if _, err := x.WaitPromoted(ctx, to); err != nil {
		return err
	}
	return run.AwaitAck(ctx)
}

// release removes the move's constraint, and checks that the handover left everything well.
func (x *contender) release(ctx context.Context, primary string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := x.WaitAllStreaming(ctx); err != nil {
		return err
	}
	if err := highest(ctx, x.Lab, primary); err != nil {
		return err
	}
	if _, err := x.Run(ctx, primary, "crm_resource", "--clear", "-r", lab.Clone); err != nil {
		return err
	}
	if err := x.WaitIdle(ctx); err != nil {
		return err
	}
	return x.Healthy(ctx)
}

// settle waits until the cluster is as it is on a quiet day.
func (x *contender) settle(ctx context.Context, after time.Duration) error {
	sleep(ctx, time.Until(x.since.Add(after)))
	return allowed(ctx, x.Lab, x.Names...)
}

// allowed waits until none of these nodes refuses any more.
func allowed(ctx context.Context, l *lab.Lab, nodes ...string) error {
	return scored(ctx, l, 0, nodes...)
}

// scored waits until each of these nodes has at least that promotion score.
func scored(ctx context.Context, l *lab.Lab, least int, nodes ...string) error {
	ctx, cancel := context.WithTimeout(ctx, lab.DefaultWait)
	defer cancel()
	return lab.Poll(ctx, 200*time.Millisecond, func() error {
		s, err := l.View(ctx)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if own := s.Node(n).Score; score(own) < least {
				return lab.NotYet("the promotion score of %s, which %s runs, is %q, expected at least %d", n, l.Agent, own, least)
			}
		}
		return nil
	})
}

// highest waits until the primary's promotion score is above all others, so that it stays primary without a constraint.
func highest(ctx context.Context, l *lab.Lab, primary string) error {
	ctx, cancel := context.WithTimeout(ctx, lab.DefaultWait)
	defer cancel()
	return lab.Poll(ctx, 100*time.Millisecond, func() error {
		s, err := l.View(ctx)
		if err != nil {
			return err
		}
		own := s.Node(primary).Score
		for _, n := range s.Nodes {
			if n.Name != primary && score(n.Score) >= score(own) {
				return lab.NotYet("the promotion score of %s, the primary, is %q, and that of %s %q", primary, own, n.Name, n.Score)
			}
		}
		return nil
	})
}

func outages(all []*contender) {
	fmt.Println("outage in ms       median      min      max   n  failed  rows lost")
	var medians []float64
	for _, x := range all {
		var list []float64
		failed, lost := 0, 0
		starved := 0.0
		for _, h := range x.runs {
			list = append(list, ms(h.outage))
			lost += h.lost
			starved = max(starved, h.starved)
			if h.failed != "" {
				failed++
			}
		}
		medians = append(medians, lab.Median(list))
		fmt.Printf("%-15s  %8.0f %8.0f %8.0f  %2d  %6d  %9d\n", x.Agent, lab.Median(list), slices.Min(list), slices.Max(list), len(list), failed, lost)
		fmt.Printf("%15s  a sleep of 10 ms overshot by up to %.0f ms (p99 of the worst run)\n", "", starved)
	}
	if len(medians) == 2 && medians[1] > 0 {
		fmt.Printf("%s takes %.2f of the time of %s\n", all[0].Agent, medians[0]/medians[1], all[1].Agent)
	}
	fmt.Println()
}

func said(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}
