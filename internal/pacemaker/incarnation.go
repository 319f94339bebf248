package pacemaker

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Incarnation is one life of a process: a process id alone comes back.
type Incarnation struct {
	PID   int
	Start uint64 // clock ticks from the start of the machine to that of the process
}

// String is the form to keep in a file.
func (i Incarnation) String() string { return fmt.Sprintf("%d/%d", i.PID, i.Start) }

// Alive tells whether this process still lives: some ten microseconds, where finding
// it anew takes milliseconds.
func (i Incarnation) Alive() bool { return i.alive("/proc") }

func (i Incarnation) alive(proc string) bool {
	stat, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(i.PID), "stat"))
	if err != nil {
		return false
	}
	_, state, start, ok := parseStat(stat)
	return ok && start == i.Start && state != "Z" && state != "X"
}

// ParseIncarnation reads what String wrote.
func ParseIncarnation(s string) (Incarnation, error) {
	pid, start, ok := strings.Cut(strings.TrimSpace(s), "/")
	var i Incarnation
	var err1, err2 error
	i.PID, err1 = strconv.Atoi(pid)
	i.Start, err2 = strconv.ParseUint(start, 10, 64)
	if !ok || err1 != nil || err2 != nil || i.PID <= 0 {
		return Incarnation{}, fmt.Errorf("incarnation %q: expected PID/START", s)
	}
	return i, nil
}

// ErrNoAttrd means that no attribute manager runs here.
var ErrNoAttrd = errors.New("no pacemaker-attrd runs on this node")

// attrdComm is its name in /proc: just as long as the kernel keeps names.
const attrdComm = "pacemaker-attrd"

// AttrdIncarnation returns the incarnation of this node's attribute manager. If it
// is another than the last time, the private attributes and the transient scores of
// this node have been lost meanwhile and must be set again. ErrNoAttrd if none runs.
// It reads all of /proc: keep the answer, and ask it whether it is Alive.
func AttrdIncarnation() (Incarnation, error) { return findProcess("/proc", attrdComm) }

// findProcess finds the process with that name in the pid namespace of the caller:
// a host sees the processes of its containers, which may be nodes of other clusters.
func findProcess(proc, comm string) (Incarnation, error) {
	dir, err := os.Open(proc)
	if err != nil {
		return Incarnation{}, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return Incarnation{}, err
	}
	self, selfErr := os.Readlink(filepath.Join(proc, "self/ns/pid"))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		// A process may end at any moment: what cannot be read is not it.
		stat, err := os.ReadFile(filepath.Join(proc, name, "stat"))
		if err != nil {
			continue
		}
		got, state, start, ok := parseStat(stat)
		if !ok || got != comm || state == "Z" || state == "X" {
			continue
		}
		ns, err := os.Readlink(filepath.Join(proc, name, "ns/pid"))
		if selfErr == nil && err == nil && ns != self {
			continue
		}
		return Incarnation{PID: pid, Start: start}, nil
	}
	return Incarnation{}, ErrNoAttrd
}

// parseStat reads /proc/PID/stat; see proc_pid_stat(5). The name stands in
// parentheses and may hold some itself.
func parseStat(b []byte) (comm, state string, start uint64, ok bool) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return "", "", 0, false
	}
	fields := strings.Fields(string(b[end+1:])) // from the third field on
	const startTime = 22 - 3
	if len(fields) <= startTime {
		return "", "", 0, false
	}
	start, err := strconv.ParseUint(fields[startTime], 10, 64)
	return string(b[open+1 : end]), fields[0], start, err == nil
}
