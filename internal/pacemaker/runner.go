package pacemaker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Runner runs one of Pacemaker's commands and returns its standard output. argv
// holds the name of the command, without a directory, and its arguments; no shell
// sees them. The error is a *RunError if the command could not be run, did not end
// before ctx did, or did not exit with 0; stdout is returned in any case.
type Runner interface {
	Run(ctx context.Context, argv ...string) (stdout []byte, err error)
}

// RunError is a command that failed.
type RunError struct {
	Argv   []string
	Status int    // exit status; -1 if it was killed or could not be started
	Stderr string // what it said there, trimmed, at most a few lines
	Err    error
}

// Error names the command, its exit status and the last that it said.
func (e *RunError) Error() string {
	msg := strings.Join(e.Argv, " ")
	if e.Status >= 0 {
		msg = fmt.Sprintf("%s: exit status %d", msg, e.Status)
	} else {
		msg = fmt.Sprintf("%s: %v", msg, e.Err)
	}
	if e.Stderr != "" {
		msg += ": " + strings.Join(strings.Fields(e.Stderr), " ")
	}
	return msg
}

// Unwrap returns the cause: the context's error if that ended the command.
func (e *RunError) Unwrap() error { return e.Err }

// ExitStatus returns the exit status of the command behind err, -1 if err is not
// that of a command which ended by itself.
func ExitStatus(err error) int {
	var e *RunError
	if errors.As(err, &e) {
		return e.Status
	}
	return -1
}

// Exit statuses of Pacemaker's commands (crm_exit_t), the same in all versions.
const (
	exitUsage     = 64  // CRM_EX_USAGE: the command does not know an option
	exitConfig    = 78  // CRM_EX_CONFIG
	exitNoSuch    = 105 // CRM_EX_NOSUCH: what was asked for does not exist
	exitExists    = 108 // CRM_EX_EXISTS
	exitTimeout   = 124 // CRM_EX_TIMEOUT
	maxErrorBytes = 2000
)

// ExecRunner runs the commands of this machine.
//
// The commands see no OCF_* variable: they look at OCF_RESKEY_CRM_meta_on_node,
// and then attrd_updater of 2.1.5 answers a query for all nodes with the own node
// alone (pcmk__attrd_api_query; mended in 2.1.6). They speak English (LC_ALL=C), and stay in the agent's
// process group, so that none outlives an agent whose group Pacemaker kills and
// writes an attribute afterwards. When ctx ends the command is killed; they have
// no children.
type ExecRunner struct {
	// Env is added to the environment, as in os.Environ.
	Env []string
}

// searchPath is where Debian and RHEL have Pacemaker's commands; a person's PATH
// need not contain it.
var searchPath = []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// Run implements Runner.
func (r ExecRunner) Run(ctx context.Context, argv ...string) ([]byte, error) {
	if len(argv) == 0 {
		return nil, &RunError{Status: -1, Err: errors.New("no command")}
	}
	path, err := lookPath(argv[0])
	if err != nil {
		return nil, &RunError{Argv: argv, Status: -1, Err: err}
	}
	cmd := exec.CommandContext(ctx, path, argv[1:]...)
	cmd.Env = append(commandEnv(os.Environ()), r.Env...)
	cmd.Dir = "/" // never hold a data directory or a file system
	cmd.WaitDelay = 500 * time.Millisecond
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	e := &RunError{Argv: argv, Status: -1, Stderr: strings.TrimSpace(stderr.String()), Err: err}
	if len(e.Stderr) > maxErrorBytes {
		e.Stderr = e.Stderr[:maxErrorBytes]
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		e.Err = context.Cause(ctx)
	case errors.As(err, &exit):
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Exited() {
			e.Status = ws.ExitStatus()
		}
	}
	return stdout.Bytes(), e
}

func lookPath(name string) (string, error) {
	if strings.ContainsRune(name, '/') {
		return name, nil
	}
	dirs := append(filepath.SplitList(os.Getenv("PATH")), searchPath...)
	for _, dir := range dirs {
		if !filepath.IsAbs(dir) {
			continue
		}
		path := filepath.Join(dir, name)
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && fi.Mode().Perm()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("command %s not found in PATH nor in %s: is Pacemaker installed?", name, strings.Join(searchPath, ", "))
}

func commandEnv(environ []string) []string {
	env := make([]string, 0, len(environ)+1)
	for _, kv := range environ {
		if strings.HasPrefix(kv, "OCF_") || strings.HasPrefix(kv, "LC_") || strings.HasPrefix(kv, "LANG") {
			continue
		}
		env = append(env, kv)
	}
	return append(env, "LC_ALL=C")
}
