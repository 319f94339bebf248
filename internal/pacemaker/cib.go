package pacemaker

import (
	"context"
	"fmt"
	"strings"
)

// ScoreInCIB returns the transient promotion score of a resource on a node as this
// node's copy of the CIB shows it, and whether there is one. The scheduler, which
// runs on the DC, reads the CIB and not the attribute manager.
func ScoreInCIB(ctx context.Context, r Runner, node, resource string) (Score, bool, error) {
	return scoreInCIB(ctx, r, node, resource, "--local")
}

// ScoreInCIBOf is ScoreInCIB for the copy of another node.
//
// Every node applies updates of the CIB in one order, but each in its own time, and
// the result of a notification reaches the DC by another way than the CIB does. Only
// when the DC's own copy shows a score is it certain that the DC's controller has
// been told of it before it hears that the notification ended.
func ScoreInCIBOf(ctx context.Context, r Runner, host, node, resource string) (Score, bool, error) {
	return scoreInCIB(ctx, r, node, resource, "--node="+host)
}

func scoreInCIB(ctx context.Context, r Runner, node, resource, where string) (Score, bool, error) {
	name := ScoreAttribute(resource)
	for _, s := range []string{node, name} {
		if s == "" || strings.ContainsAny(s, `'"`) {
			return 0, false, fmt.Errorf("read promotion score from the CIB: name %q: expected one without quotes", s)
		}
	}
	out, err := r.Run(ctx, "cibadmin", "--query", where, "--xpath",
		"/cib/status/node_state[@uname='"+node+"']/transient_attributes//nvpair[@name='"+name+"']")
	if ExitStatus(err) == exitNoSuch {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("read the promotion score of %s on %s from the CIB: %w", resource, node, err)
	}
	root, err := parseXML(out)
	if err != nil {
		return 0, false, fmt.Errorf("read the promotion score of %s on %s: cibadmin's answer is not XML: %w", resource, node, err)
	}
	for nv := range root.all("nvpair") { // the first set in the document wins
		s, err := ParseScore(nv.attr("value"))
		if err != nil {
			return 0, false, fmt.Errorf("promotion score of %s on %s in the CIB: %w", resource, node, err)
		}
		return s, true, nil
	}
	return 0, false, nil
}

// LocalNode returns the name of this node, for actions that are not told it by
// Pacemaker.
func LocalNode(ctx context.Context, r Runner) (string, error) {
	out, err := r.Run(ctx, "crm_node", "--name")
	if err != nil {
		return "", fmt.Errorf("ask for the name of this node: %w", err)
	}
	name := strings.TrimSpace(string(out))
	if name == "" || strings.ContainsAny(name, " \n") {
		return "", fmt.Errorf("ask for the name of this node: crm_node answered %q: expected one name", out)
	}
	return name, nil
}
