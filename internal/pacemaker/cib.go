package pacemaker

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// askLimit bounds a question to one node's copy of the CIB: the node may lose its power before it answers. The caller asks
// again.
const askLimit = 3 * time.Second

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
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
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

// SetPermanent sets a permanent attribute of a node in the CIB, and so on the disk of every node that is online. Like every
// change of the configuration it aborts a transition that is under way. It returns once the DC's copy shows the value.
func SetPermanent(ctx context.Context, r Runner, dc, node, name, value string) error {
	if err := checkAttribute(name, value); err != nil {
		return err
	}
	if _, err := r.Run(ctx, "crm_attribute", "--node="+node, "--name="+name, "--update="+value, "--lifetime=forever"); err != nil {
		return wrap(err, "set permanent attribute %s of %s", name, node)
	}
	for {
		values, err := permanent(ctx, r, name, "--node="+dc)
		if err == nil && values[node] == value {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("permanent attribute %s of %s is not in the CIB of %s, the DC: %w (%v)", name, node, dc, ctx.Err(), err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// DeletePermanent removes a permanent attribute of a node. That it is not there is no error.
func DeletePermanent(ctx context.Context, r Runner, node, name string) error {
	if err := checkAttribute(name, "-"); err != nil {
		return err
	}
	_, err := r.Run(ctx, "crm_attribute", "--node="+node, "--name="+name, "--delete", "--lifetime=forever")
	if ExitStatus(err) == exitNoSuch {
		return nil
	}
	return wrap(err, "delete permanent attribute %s of %s", name, node)
}

// Permanent returns the values of a permanent attribute by node name, as this node's copy of the CIB has them.
func Permanent(ctx context.Context, r Runner, name string) (map[string]string, error) {
	return permanent(ctx, r, name, "--local")
}

func permanent(ctx context.Context, r Runner, name, where string) (map[string]string, error) {
	if err := checkAttribute(name, "-"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	out, err := r.Run(ctx, "cibadmin", "--query", where, "--scope=nodes")
	if err != nil {
		return nil, wrap(err, "read permanent attribute %s", name)
	}
	root, err := parseXML(out)
	if err != nil {
		return nil, fmt.Errorf("read permanent attribute %s: cibadmin's answer is not XML: %w", name, err)
	}
	values := map[string]string{}
	for n := range root.all("node") {
		for nv := range n.all("nvpair") {
			if nv.attr("name") == name && nv.attr("value") != "" {
				values[n.attr("uname")] = nv.attr("value")
			}
		}
	}
	return values, nil
}
