package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/load"
)

// phase is one phase of a handover, on all nodes together, as Pacemaker's log has it: from the first request of a node's
// controller to the last result. The same for every agent.
type phase struct {
	name  string
	begin float64 // ms after the last acknowledged row; negative: before the outage
	end   float64
}

var phaseNames = []string{"pre-demote", "demote", "post-demote", "pre-promote", "promote", "post-promote", "VIP start", "clients write"}

// operation is one run of an action on one node.
type operation struct {
	node, action, resource string
	begin, end             time.Time
}

var (
	requested = regexp.MustCompile(`Requesting local execution of (\S+) operation for (\S+) on \S+`)
	finished  = regexp.MustCompile(`Result of (\S+) operation for (\S+) on \S+: `)
)

const pacemakerTime = "Jan _2 15:04:05.000"

// operations reads from Pacemaker's log what a node did between two moments, in order.
func operations(l *lab.Lab, node string, from, to time.Time) []operation {
	f, err := os.Open(filepath.Join(l.Dir, "nodes", node, "log", "pacemaker", "pacemaker.log"))
	if err != nil {
		return nil
	}
	defer f.Close()
	var list []operation
	open := map[string]int{}
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		text := sc.Text()
		if len(text) < len(pacemakerTime) || !strings.Contains(text, " operation for ") {
			continue
		}
		at, err := time.ParseInLocation(pacemakerTime, text[:len(pacemakerTime)], time.Local)
		if err != nil {
			continue
		}
		at = at.AddDate(from.Year(), 0, 0) // it has no year
		if at.Before(from.Add(-time.Millisecond)) || at.After(to) {
			continue
		}
		if m := requested.FindStringSubmatch(text); m != nil {
			open[m[1]+" "+m[2]] = len(list)
			list = append(list, operation{node: node, action: m[1], resource: m[2], begin: at})
		} else if m := finished.FindStringSubmatch(text); m != nil {
			if n, ok := open[m[1]+" "+m[2]]; ok {
				list[n].end = at
				delete(open, m[1]+" "+m[2])
			}
		}
	}
	return list
}

// phases puts the nodes' operations together. Notifications do not say in the log what they are for; between demote and
// promote a node has two, in the order of phases.
func phases(l *lab.Lab, from, to time.Time, gap load.Gap) []phase {
	var all []operation
	for _, n := range l.Names {
		all = append(all, operations(l, n, from, to)...)
	}
	var demoted, promoted time.Time // ends
	for _, o := range all {
		if o.resource != lab.Resource {
			continue
		}
		switch o.action {
		case "demote":
			demoted = o.end
		case "promote":
			promoted = o.end
		}
	}
	if demoted.IsZero() || promoted.IsZero() {
		return nil
	}
	byName := map[string]*phase{}
	between := map[string]int{}
	add := func(name string, o operation) {
		begin, end := ms(o.begin.Sub(gap.Start)), ms(o.end.Sub(gap.Start))
		p, ok := byName[name]
		if !ok {
			byName[name] = &phase{name, begin, end}
			return
		}
		p.begin, p.end = min(p.begin, begin), max(p.end, end)
	}
	for _, o := range all {
		if o.end.IsZero() {
			continue
		}
		switch {
		case o.resource == lab.VIPResource && o.action == "start":
			add("VIP start", o)
		case o.resource != lab.Resource:
		case o.action == "demote" || o.action == "promote":
			add(o.action, o)
		case o.action != "notify":
		case o.begin.Before(demoted):
			add("pre-demote", o)
		case !o.begin.Before(promoted):
			add("post-promote", o)
		default:
			between[o.node]++
			if between[o.node] == 1 {
				add("post-demote", o)
			} else {
				add("pre-promote", o)
			}
		}
	}
	byName["clients write"] = &phase{"clients write", gap.Ms, gap.Ms}
	var list []phase
	for _, n := range phaseNames {
		if p := byName[n]; p != nil {
			list = append(list, *p)
		}
	}
	return list
}

// printPhases prints the medians.
func (x *contender) printPhases() {
	begin, last, wait := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	n := 0
	for _, h := range x.runs {
		if len(h.phases) == 0 {
			continue
		}
		n++
		for i, p := range h.phases {
			begin[p.name] = append(begin[p.name], p.begin)
			last[p.name] = append(last[p.name], p.end-p.begin)
			if i+1 < len(h.phases) {
				wait[p.name] = append(wait[p.name], h.phases[i+1].begin-p.end)
			}
		}
	}
	if n == 0 {
		return
	}
	fmt.Printf("where the time of a handover with %s goes: ms, medians of %d,\n", x.Agent, n)
	fmt.Println("from the last row that was acknowledged before it")
	fmt.Println("phase            begins    lasts  then until the next")
	for _, name := range phaseNames {
		if len(begin[name]) == 0 {
			continue
		}
		if name == "clients write" {
			fmt.Printf("%-14s %8.0f\n", name, lab.Median(begin[name]))
			continue
		}
		fmt.Printf("%-14s %8.0f %8.0f %8.0f\n", name, lab.Median(begin[name]), lab.Median(last[name]), lab.Median(wait[name]))
	}
	fmt.Println()
}
