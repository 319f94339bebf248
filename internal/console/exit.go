package console

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// ExitCode is how a command ended, for scripts. docs/command.md has them all.
type ExitCode int

// The exit codes. With Usage, Refused and NoCluster nothing was changed.
const (
	Done       ExitCode = 0
	Attention  ExitCode = 1 // something needs a person
	Usage      ExitCode = 2 // the command line is wrong
	Refused    ExitCode = 3 // what was asked for is not possible now
	RolledBack ExitCode = 4 // the role is, or went back to, where it was
	Unknown    ExitCode = 5 // how it ended is not known
	NoCluster  ExitCode = 6 // Pacemaker does not answer, or not as expected
)

// Error is an error with an exit code.
type Error struct {
	Code ExitCode
	Text string
	Err  error // the cause, for a person who looks closer; may be nil
}

func (e *Error) Error() string { return e.Text }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func fail(code ExitCode, format string, args ...any) error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...)}
}

// CodeOf returns the exit code for an error.
func CodeOf(err error) ExitCode {
	var e *Error
	switch {
	case err == nil:
		return Done
	case errors.As(err, &e):
		return e.Code
	}
	return Attention
}

var errHangs = errors.New("no answer in time")

// Exit statuses of Pacemaker's commands (crm_exit_t).
const (
	crmNoPrivilege  = 4
	crmDisconnected = 102
)

// explain turns what a command of Pacemaker's failed with into a sentence for a person.
func explain(err error) error {
	var run *pacemaker.RunError
	if !errors.As(err, &run) {
		return &Error{Code: NoCluster, Text: "Pacemaker's answer is not understood: " + err.Error() + ": is this a version from 2.0.3 to 3.0?", Err: err}
	}
	name := "Pacemaker"
	if len(run.Argv) > 0 {
		name = run.Argv[0]
	}
	text := ""
	// Several were asked at the same time: what is true of one is true of all.
	switch all := statuses(err); {
	case all[crmNoPrivilege] || all[crmDisconnected] && strings.Contains(err.Error(), "Permission denied"):
		text = "no permission to ask Pacemaker: run this as root, or as a member of the group haclient"
	case all[crmDisconnected]:
		text = "the cluster does not run on this node: start it (systemctl start pacemaker), or run this on a node where it runs"
	case errors.Is(err, errHangs), errors.Is(err, context.DeadlineExceeded):
		text = fmt.Sprintf("%s did not answer within %s: the cluster software of this node hangs or is overloaded; run this on another node", name, askLimit)
	case run.Status < 0:
		text = run.Error()
	default:
		text = fmt.Sprintf("%s failed: %s", name, run.Error())
	}
	return &Error{Code: NoCluster, Text: text, Err: err}
}

// statuses are the exit statuses of all commands behind a joined error.
func statuses(err error) map[int]bool {
	all := map[int]bool{}
	var walk func(error)
	walk = func(err error) {
		switch e := err.(type) {
		case *pacemaker.RunError:
			all[e.Status] = true
		case interface{ Unwrap() []error }:
			for _, sub := range e.Unwrap() {
				walk(sub)
			}
		case interface{ Unwrap() error }:
			walk(e.Unwrap())
		}
	}
	walk(err)
	return all
}

// didYouMean proposes the name that is nearest to what was typed, if one is near.
func didYouMean(typed string, names []string) string {
	best, at := "", 3 // more than two slips of the finger are another word
	for _, n := range names {
		if d := distance(strings.ToLower(typed), strings.ToLower(n)); n != "" && d < at {
			best, at = n, d
		}
	}
	if best == "" {
		return ""
	}
	return ", did you mean " + best + "?"
}

// distance is Levenshtein's: insertions, deletions and replacements.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
