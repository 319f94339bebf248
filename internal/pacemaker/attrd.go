package pacemaker

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
)

// Attrd speaks to this node's attribute manager (pacemaker-attrd), through
// attrd_updater. What one node's sets, all others see a little later; nothing here
// waits for that.
type Attrd struct {
	run Runner
	// textOnly: this attrd_updater has no --output-as, which came with 2.1.3.
	textOnly bool
}

// NewAttrd returns an Attrd that runs attrd_updater by r.
func NewAttrd(r Runner) *Attrd { return &Attrd{run: r} }

// SetPrivate sets a private attribute of this node. It is never written to the
// CIB, so it never disturbs a transition; it lives in the memory of the attribute
// managers, and is gone when this node leaves the cluster or its attribute manager
// is restarted.
//
// An attribute is private by its creation: a name that somebody has used without
// -p before stays public.
func (a *Attrd) SetPrivate(ctx context.Context, name, value string) error {
	if err := checkAttribute(name, value); err != nil {
		return err
	}
	_, err := a.run.Run(ctx, "attrd_updater", "--private", "--name="+name, "--update="+value)
	return wrap(err, "set private attribute %s", name)
}

// Delete empties an attribute of this node, which stays private if it was.
// Deleting what is not there is not an error.
func (a *Attrd) Delete(ctx context.Context, name string) error {
	if err := checkAttribute(name, "-"); err != nil {
		return err
	}
	_, err := a.run.Run(ctx, "attrd_updater", "--name="+name, "--delete")
	return wrap(err, "delete attribute %s", name)
}

// QueryAll returns the values of an attribute on all nodes, by node name, as this
// node's attribute manager knows them. Nodes without the attribute are not in the
// map; it is empty, not nil, if no node has it.
func (a *Attrd) QueryAll(ctx context.Context, name string) (map[string]string, error) {
	if err := checkAttribute(name, "-"); err != nil {
		return nil, err
	}
	args := []string{"attrd_updater", "--name=" + name, "--query", "--all"}
	if !a.textOnly {
		out, err := a.run.Run(ctx, append(args, "--output-as=xml")...)
		if ExitStatus(err) != exitUsage {
			values, err := queryResult(out, err, parseQueryXML)
			return values, wrap(err, "query attribute %s", name)
		}
		a.textOnly = true
	}
	out, err := a.run.Run(ctx, args...)
	values, err := queryResult(out, err, func(b []byte) (map[string]string, error) { return parseQueryText(b, name) })
	return values, wrap(err, "query attribute %s", name)
}

// queryResult tells "no such attribute" from a failure. It is exit status 105 in
// 2.0 and 78 in 2.1 and later; a node that has emptied the attribute is reported
// with an empty value.
func queryResult(out []byte, err error, parse func([]byte) (map[string]string, error)) (map[string]string, error) {
	switch ExitStatus(err) {
	case exitNoSuch, exitConfig:
		return map[string]string{}, nil
	}
	if err != nil {
		return nil, err
	}
	return parse(out)
}

func parseQueryXML(out []byte) (map[string]string, error) {
	var result struct {
		Attributes []struct {
			Host  string `xml:"host,attr"`
			Value string `xml:"value,attr"`
		} `xml:"attribute"`
	}
	if err := xml.Unmarshal(out, &result); err != nil {
		return nil, fmt.Errorf("attrd_updater's answer is not XML: %w", err)
	}
	values := make(map[string]string, len(result.Attributes))
	for _, at := range result.Attributes {
		if at.Host != "" && at.Value != "" {
			values[at.Host] = at.Value
		}
	}
	return values, nil
}

// parseQueryText reads the only form that there was before 2.1.3, one line a node:
//
//	name="NAME" host="NODE" value="VALUE"
//
// Nothing is escaped in it, so the value ends at the last quote of its line.
func parseQueryText(out []byte, name string) (map[string]string, error) {
	values := map[string]string{}
	for line := range strings.Lines(string(out)) {
		line = strings.TrimRight(line, "\n")
		if line == "" {
			continue
		}
		rest, ok := strings.CutPrefix(line, `name="`+name+`" host="`)
		host, value, ok2 := strings.Cut(rest, `" value="`)
		value, ok3 := strings.CutSuffix(value, `"`)
		if !ok || !ok2 || !ok3 {
			return nil, fmt.Errorf("attrd_updater's answer %q: expected name=\"%s\" host=\"...\" value=\"...\"", line, name)
		}
		if value != "" {
			values[host] = value
		}
	}
	return values, nil
}

// checkAttribute refuses what would not arrive as it was sent.
func checkAttribute(name, value string) error {
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`"'<>&`, r) }) {
		return fmt.Errorf("attribute name %q: expected printable ASCII without spaces, quotes, <, > and &", name)
	}
	if value == "" {
		return fmt.Errorf("attribute %s: empty value: delete it instead", name)
	}
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
		return fmt.Errorf("attribute %s: value %q: expected printable ASCII", name, value)
	}
	// Of 'value++' and 'value+=5' attrd looks only at the plus signs behind the
	// fifth character, and would add to the old value (attrd_value_needs_expansion).
	if len(value) >= 7 && (value[5:7] == "++" || value[5:7] == "+=") {
		return fmt.Errorf("attribute %s: value %q: attrd takes %q at this place for an addition", name, value, value[5:7])
	}
	return nil
}

// SetScore sets the transient promotion score of a resource, on this node if node
// is empty. It reaches the CIB, which aborts a transition that is under way.
func (a *Attrd) SetScore(ctx context.Context, node, resource string, s Score) error {
	argv := []string{"attrd_updater", "--name=" + ScoreAttribute(resource), "--update=" + s.String()}
	if node != "" {
		argv = append(argv, "--node="+node)
	}
	_, err := a.run.Run(ctx, argv...)
	return wrap(err, "set the promotion score of %s on %s to %s", resource, nodeOrThis(node), s)
}

// DeleteScore removes the transient promotion score of a resource, on this node if
// node is empty. No score counts as -1: enough to keep the role away, but any
// constraint that favours the node lifts it. What must not be promoted needs
// NegInfinity.
func (a *Attrd) DeleteScore(ctx context.Context, node, resource string) error {
	argv := []string{"attrd_updater", "--name=" + ScoreAttribute(resource), "--delete"}
	if node != "" {
		argv = append(argv, "--node="+node)
	}
	_, err := a.run.Run(ctx, argv...)
	return wrap(err, "delete the promotion score of %s on %s", resource, nodeOrThis(node))
}

// Scores returns the transient promotion scores of a resource by node name, as
// this node's attribute manager knows them: the CIB may lag behind.
func (a *Attrd) Scores(ctx context.Context, resource string) (map[string]Score, error) {
	values, err := a.QueryAll(ctx, ScoreAttribute(resource))
	if err != nil {
		return nil, err
	}
	scores := make(map[string]Score, len(values))
	var errs []error
	for node, v := range values {
		s, err := ParseScore(v)
		if err != nil {
			errs = append(errs, fmt.Errorf("promotion score of %s on %s: %w", resource, node, err))
			continue
		}
		scores[node] = s
	}
	return scores, errors.Join(errs...)
}

func nodeOrThis(node string) string {
	if node == "" {
		return "this node"
	}
	return node
}

func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}
