package pacemaker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
)

// PlannedAction is what the scheduler would have done.
type PlannedAction struct {
	Name, Resource, Node string // Resource is empty for what is done to a node
}

func (p PlannedAction) String() string {
	if p.Resource == "" {
		return fmt.Sprintf("%s %s", p.Name, p.Node)
	}
	return fmt.Sprintf("%s %s on %s", p.Name, p.Resource, p.Node)
}

// Alters tells whether an action does more than look.
func (p PlannedAction) Alters() bool {
	return !slices.Contains([]string{"monitor", "cancel", "notify", "notified", "clear_failcount"}, p.Name)
}

// maintenanceMode matches the cluster property in either order of its attributes.
var maintenanceMode = regexp.MustCompile(`<nvpair\b[^>]*\bname="maintenance-mode"[^>]*/>`)

// ErrNotPaused says that there is no maintenance mode that could end.
var ErrNotPaused = errors.New("the CIB has no property maintenance-mode: somebody has ended the maintenance meanwhile")

// SimulateResume asks the scheduler what it would do if the maintenance mode of the cluster ended now. It is the
// scheduler's own code, run on a copy of the CIB: nothing is changed.
func SimulateResume(ctx context.Context, r Runner) ([]PlannedAction, error) {
	cib, err := r.Run(ctx, "cibadmin", "--query")
	if err != nil {
		return nil, fmt.Errorf("read the CIB: %w", err)
	}
	if !maintenanceMode.Match(cib) {
		return nil, ErrNotPaused
	}
	dir, err := os.MkdirTemp("", "pgbaton-simulate-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	in, graph := filepath.Join(dir, "cib.xml"), filepath.Join(dir, "graph.xml")
	if err := os.WriteFile(in, maintenanceMode.ReplaceAll(cib, nil), 0o600); err != nil {
		return nil, err
	}
	if _, err := r.Run(ctx, "crm_simulate", "--xml-file", in, "--simulate", "--save-graph", graph); err != nil {
		return nil, fmt.Errorf("ask the scheduler what it would do: %w", err)
	}
	text, err := os.ReadFile(graph)
	if err != nil {
		return nil, fmt.Errorf("ask the scheduler what it would do: crm_simulate wrote no graph: %w", err)
	}
	return parseGraph(text)
}

func parseGraph(text []byte) ([]PlannedAction, error) {
	root, err := parseXML(text)
	if err != nil {
		return nil, fmt.Errorf("crm_simulate's graph is not XML: %w", err)
	}
	if root.name() != "transition_graph" {
		return nil, fmt.Errorf("crm_simulate's graph is <%s>: expected <transition_graph>", root.name())
	}
	var list []PlannedAction
	for set := range root.all("action_set") {
		for _, e := range set.Children {
			switch e.name() {
			case "rsc_op", "crm_event":
				list = append(list, PlannedAction{e.attr("operation"), e.child("primitive").attr("id"), e.attr("on_node")})
			}
		}
	}
	return list, nil
}
