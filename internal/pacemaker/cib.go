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

// InCIB returns a transient attribute of a node as a host's copy of the CIB has it, or as this node's own copy where no
// host is named, and whether there is one. The scheduler, which runs on the DC, reads the CIB and not the attribute
// manager.
//
// Every node applies updates of the CIB in one order, but each in its own time, and the result of an action reaches the
// DC by another way than an attribute does. Only when the DC's own copy shows it is it certain that the DC's controller
// has been told of it before it hears that the action ended.
func InCIB(ctx context.Context, r Runner, host, node, name string) (value string, ok bool, err error) {
	for _, s := range []string{node, name} {
		if s == "" || strings.ContainsAny(s, `'"`) {
			return "", false, fmt.Errorf("read an attribute from the CIB: name %q: expected one without quotes", s)
		}
	}
	where := "--local"
	if host != "" {
		where = "--node=" + host
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	out, err := r.Run(ctx, "cibadmin", "--query", where, "--xpath",
		"/cib/status/node_state[@uname='"+node+"']/transient_attributes//nvpair[@name='"+name+"']")
	if ExitStatus(err) == exitNoSuch {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("read %s of %s from the CIB: %w", name, node, err)
	}
	root, err := parseXML(out)
	if err != nil {
		return "", false, fmt.Errorf("read %s of %s: cibadmin's answer is not XML: %w", name, node, err)
	}
	for nv := range root.all("nvpair") { // the first set in the document wins
		return nv.attr("value"), true, nil
	}
	return "", false, nil
}

// ScoreInCIB is InCIB for the promotion score of a resource.
func ScoreInCIB(ctx context.Context, r Runner, host, node, resource string) (Score, bool, error) {
	value, ok, err := InCIB(ctx, r, host, node, ScoreAttribute(resource))
	if err != nil || !ok {
		return 0, false, err
	}
	s, err := ParseScore(value)
	if err != nil {
		return 0, false, fmt.Errorf("promotion score of %s on %s in the CIB: %w", resource, node, err)
	}
	return s, true, nil
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
			if err == nil {
				err = ctx.Err()
			}
			return fmt.Errorf("permanent attribute %s of %s is not in the CIB of %s, the DC: %w", name, node, dc, err)
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
