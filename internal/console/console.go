// Package console is what the operator's command tells a person: text in 80 columns, from what the agents wrote down and
// what Pacemaker says.
package console

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// Resource is the name of the resource that a command is about: the one asked for, or else the only one that has state
// below root on this node. The error lists what there is.
func Resource(root, asked string) (string, error) {
	var have []string
	entries, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for _, e := range entries {
		if e.IsDir() {
			have = append(have, e.Name())
		}
	}
	switch {
	case len(have) == 0:
		return "", fmt.Errorf("no resource has state below %s on this node: is this a node of the cluster, and has the agent run here?", root)
	case asked != "" && !slices.Contains(have, asked):
		return "", fmt.Errorf("%q has no state below %s on this node: expected one of %s", asked, root, strings.Join(have, ", "))
	case asked != "":
		return asked, nil
	case len(have) > 1:
		return "", fmt.Errorf("several resources have state below %s: name one with --resource: %s", root, strings.Join(have, ", "))
	}
	return have[0], nil
}

// wrap breaks a line at spaces, at most width characters each where the words allow it.
func wrap(s string, width int) []string {
	var out []string
	line := ""
	for _, word := range strings.Fields(s) {
		if line != "" && len(line)+1+len(word) > width {
			out, line = append(out, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	if line != "" {
		out = append(out, line)
	}
	return out
}
