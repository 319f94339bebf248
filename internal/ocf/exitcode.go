package ocf

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ExitCode is what an action tells Pacemaker when it ends.
// Source: OCF resource agent API 1.1, "Exit status codes".
type ExitCode int

// The exit codes of an action, and what Pacemaker makes of them.
const (
	Success          ExitCode = 0 // done; from monitor: running, not promoted
	ErrGeneric       ExitCode = 1 // soft: recovered on this node until its fail count is too high
	ErrArgs          ExitCode = 2 // hard: this resource does not run on this node until a cleanup
	ErrUnimplemented ExitCode = 3 // hard
	ErrPerm          ExitCode = 4 // hard
	ErrInstalled     ExitCode = 5 // hard: software or files are missing on this node
	// ErrConfigured is fatal: Pacemaker stops every instance of the clone on
	// every node and starts none until a person cleans up. One broken node must
	// never take the others with it, so no action returns it at run time; what
	// is wrong on one node is ErrInstalled, ErrArgs or ErrPerm.
	ErrConfigured    ExitCode = 6
	NotRunning       ExitCode = 7   // from monitor: cleanly stopped; a failure only if it should run
	RunningPromoted  ExitCode = 8   // from monitor: running as primary
	FailedPromoted   ExitCode = 9   // from monitor: was primary, is broken: demote, stop, start, promote
	Degraded         ExitCode = 190 // from monitor: runs as standby, but not well; counts as running
	DegradedPromoted ExitCode = 191 // from monitor: runs as primary, but not well; counts as promoted
)

var exitCodeNames = map[ExitCode]string{
	Success:          "ok",
	ErrGeneric:       "error",
	ErrArgs:          "invalid parameter",
	ErrUnimplemented: "unimplemented feature",
	ErrPerm:          "insufficient privileges",
	ErrInstalled:     "not installed",
	ErrConfigured:    "not configured",
	NotRunning:       "not running",
	RunningPromoted:  "promoted",
	FailedPromoted:   "promoted (failed)",
	Degraded:         "OK (degraded)",
	DegradedPromoted: "promoted (degraded)",
}

// String returns the code's name as crm_mon prints it, and the number.
func (c ExitCode) String() string {
	name, ok := exitCodeNames[c]
	if !ok {
		return fmt.Sprintf("exit code %d", int(c))
	}
	return fmt.Sprintf("%s (%d)", name, int(c))
}

// MaxReason is the length in bytes to which Pacemaker cuts an exit reason
// (EXIT_REASON_MAX_LEN of its executor).
const MaxReason = 128

// Error is an action's failure: what Pacemaker is told, and why.
type Error struct {
	Code ExitCode
	// Reason is what crm_mon shows: one line that a person can act on. At most
	// MaxReason bytes of it are written out; Err may say more, for the log.
	Reason string
	Err    error // the cause, may be nil
}

// Errorf makes an Error. The format's text is the exit reason; an operand of %w
// becomes the cause.
func Errorf(code ExitCode, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Reason: err.Error(), Err: errors.Unwrap(err)}
}

// Error returns the reason, and the cause if the reason does not tell it already.
func (e *Error) Error() string {
	if e.Err == nil || strings.Contains(e.Reason, e.Err.Error()) {
		return e.Reason
	}
	return e.Reason + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the exit code that an action which ended with err must use:
// Success for nil, the code of the outermost Error, else ErrGeneric.
func CodeOf(err error) ExitCode {
	if err == nil {
		return Success
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ErrGeneric
}

// ReasonOf returns the exit reason for err: the Reason of the outermost Error,
// else its whole text; empty for nil.
func ReasonOf(err error) string {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return err.Error()
}

// defaultReasonPrefix is used when the cluster manager does not name another in
// OCF_EXIT_REASON_PREFIX.
const defaultReasonPrefix = "ocf-exit-reason:"

// WriteReason writes the exit reason of the action to w, which is the agent's
// standard error: Pacemaker keeps the last such line. The prefix is that of
// OCF_EXIT_REASON_PREFIX. Line breaks and control characters become spaces, and
// what is longer than MaxReason is cut at a word. An empty reason writes nothing.
func WriteReason(w io.Writer, reason string) {
	reason = shorten(oneLine(reason), MaxReason)
	if reason == "" {
		return
	}
	prefix := os.Getenv("OCF_EXIT_REASON_PREFIX")
	if prefix == "" {
		prefix = defaultReasonPrefix
	}
	fmt.Fprintf(w, "%s%s\n", prefix, reason)
}

// oneLine makes one line of s: every run of space and control characters becomes
// one space. What is not valid UTF-8 becomes "?", for the reason ends up in XML.
func oneLine(s string) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	return strings.Join(strings.Fields(s), " ")
}

// shorten cuts s to at most limit bytes, at the last word that fits, and shows
// the cut by "...". A single word longer than the limit is cut between runes.
func shorten(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	const dots = "..."
	room := limit - len(dots)
	end := room
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	if i := strings.LastIndexByte(s[:end+1], ' '); i > room/2 {
		end = i
	}
	return strings.TrimRight(s[:end], " ,;:") + dots
}
