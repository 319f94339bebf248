// Package envtest hands tests the environments of actions that a real Pacemaker
// ran, as they stand in internal/pacemaker/testdata/env; its README says what
// happened in each scenario.
package envtest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Action is one recorded call of an agent.
type Action struct {
	Scenario  string // the folder, such as "handover-by-move"
	Seq       int    // its place in the scenario, from 1; the order of the calls
	Node      string
	Action    string // "start", "notify" and so on
	Phase     string // of a notification: "pre" or "post"; else empty
	Operation string // of a notification: "start", "stop", "promote" or "demote"; else empty
	File      string // path below the folder of all scenarios, for messages
	Env       map[string]string
}

var fileName = regexp.MustCompile(`^([0-9]+)-([^-]+)-(?:notify-(pre|post)-(start|stop|promote|demote)|(start|stop|promote|demote|monitor))\.env$`)

// Dir returns the absolute path of the folder with all scenarios. It looks for the
// root of the module above the working directory, which is that of a test.
func Dir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "internal", "pacemaker", "testdata", "env"), nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("no go.mod above the working directory")
		}
		dir = parent
	}
}

// All returns every recorded action, by scenario and then in the order of the
// calls. A file that does not fit the naming is an error, so that none is left
// unread by accident.
func All() ([]Action, error) {
	dir, err := Dir()
	if err != nil {
		return nil, err
	}
	scenarios, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []Action
	for _, s := range scenarios {
		if !s.IsDir() {
			if s.Name() != "README.md" {
				return nil, fmt.Errorf("%s: expected only folders and README.md", filepath.Join(dir, s.Name()))
			}
			continue
		}
		files, err := os.ReadDir(filepath.Join(dir, s.Name()))
		if err != nil {
			return nil, err
		}
		var actions []Action
		for _, f := range files {
			a, err := read(dir, filepath.Join(s.Name(), f.Name()))
			if err != nil {
				return nil, err
			}
			actions = append(actions, a)
		}
		slices.SortFunc(actions, func(a, b Action) int { return a.Seq - b.Seq })
		for i := 1; i < len(actions); i++ {
			if actions[i].Seq == actions[i-1].Seq {
				return nil, fmt.Errorf("%s and %s have the same number", actions[i-1].File, actions[i].File)
			}
		}
		all = append(all, actions...)
	}
	return all, nil
}

func read(dir, file string) (Action, error) {
	m := fileName.FindStringSubmatch(filepath.Base(file))
	if m == nil {
		return Action{}, fmt.Errorf("%s: expected SEQ-NODE-ACTION.env or SEQ-NODE-notify-TYPE-OPERATION.env", file)
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return Action{}, err
	}
	a := Action{
		Scenario: filepath.Dir(file), Node: m[2], Action: m[5], Phase: m[3], Operation: m[4],
		File: file, Env: map[string]string{},
	}
	a.Seq, _ = strconv.Atoi(m[1])
	if a.Action == "" {
		a.Action = "notify"
	}
	for line := range strings.Lines(string(b)) {
		// The line break ends the value; a space at its end belongs to it.
		name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if !ok {
			return a, fmt.Errorf("%s: line %q: expected NAME=VALUE", file, line)
		}
		a.Env[name] = value
	}
	return a, nil
}
