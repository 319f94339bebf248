// Package console is what the operator's command tells a person: text in 80 columns, from what the agents wrote down and
// what Pacemaker says.
package console

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/pgbaton/pgbaton/internal/journal"
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

// shown are the details of an event in the order in which a person wants them; the others only stand in the JSON.
var shown = []struct{ key, label string }{
	{"note", ""},
	{"proof", "proof "},
	{"answer", "answered "},
	{"switch_point", "switch point "},
	{"result", ""},
	{"missing_bytes", "bytes known to be missing: "},
	{"unarchived", "kept for the archive: "},
}

// History writes events, oldest first, one paragraph a change of roles.
func History(w io.Writer, events []journal.Event) {
	if len(events) == 0 {
		fmt.Fprintln(w, "no change of roles is recorded on this node")
		return
	}
	change := ""
	for _, e := range events {
		if e.Change != change || change == "" {
			change = e.Change
			fmt.Fprintf(w, "%s  %s\n", e.Time.Local().Format("2006-01-02"), change)
		}
		fmt.Fprintf(w, "  %s  %-4s %-13s %-10s %7.0f ms\n", e.Time.Local().Format("15:04:05.000"), e.Node, e.Action, e.Outcome, e.Duration)
		lines := []string{}
		if e.Reason != "" {
			lines = append(lines, e.Reason)
		}
		for _, d := range shown {
			if v := e.Details[d.key]; v != "" && !strings.Contains(e.Reason, v) {
				lines = append(lines, d.label+v)
			}
		}
		for _, l := range lines {
			for _, part := range wrap(l, 60) {
				fmt.Fprintf(w, "                %s\n", part)
			}
		}
	}
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
