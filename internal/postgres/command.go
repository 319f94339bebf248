package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ProgramMajor is the major version of the server's program (postgres -V).
func (i *Instance) ProgramMajor(ctx context.Context) (int, error) {
	out, err := i.run(ctx, filepath.Join(i.BinDir, "postgres"), "-V")
	if err != nil {
		return 0, err
	}
	// "postgres (PostgreSQL) 15.4 (Debian 15.4-1)", "postgres (PostgreSQL) 18beta1"
	_, version, _ := strings.Cut(out, ") ")
	digits := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	if digits < 0 {
		digits = len(version)
	}
	major, err := strconv.Atoi(version[:digits])
	if err != nil {
		return 0, fmt.Errorf("postgres -V says %q: expected a version of PostgreSQL", strings.TrimSpace(out))
	}
	return major, nil
}

// ConfiguredValue is what a configuration parameter is by the configuration files, whether the server runs or not
// (postgres -C). The error says what the server finds wrong with them.
func (i *Instance) ConfiguredValue(ctx context.Context, name string) (string, error) {
	args := []string{"-C", name, "-D", i.ConfigDir}
	if i.ConfigDir != i.DataDir {
		args = append(args, "-c", "data_directory="+i.DataDir)
	}
	args = append(args, i.StartArgs...)
	out, err := i.run(ctx, filepath.Join(i.BinDir, "postgres"), args...)
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		return "", errors.New(complaint(err.Error()))
	}
	return strings.TrimSpace(out), err
}

// complaint picks what is wrong out of the lines that a server says before it gives up. Of a configuration file with
// errors it is what was said first; the last line, FATAL, only says that there were errors. A token of the file that the
// server could not read is left out: it may be a piece of a password that was not quoted.
func complaint(text string) string {
	said := whatServerSaid(text)
	if before, _, ok := strings.Cut(said, ", near token"); ok {
		return before
	}
	return said
}

func whatServerSaid(text string) string {
	first := ""
	for line := range strings.Lines(text) {
		if _, said, ok := strings.Cut(line, " LOG:  "); ok && first == "" && !strings.HasPrefix(said, "skipping missing configuration file") {
			first = strings.TrimSpace(said)
		}
		_, said, ok := strings.Cut(line, " FATAL:  ")
		switch {
		case !ok:
		case strings.Contains(said, "contains errors") && first != "":
			return first
		default:
			return strings.TrimSpace(said)
		}
	}
	return text
}

// SplitList splits a list such as unix_socket_directories: by commas, a part may be in double quotes
// (SplitDirectoriesString in src/backend/utils/adt/varlena.c).
func SplitList(s string) []string {
	var list []string
	for s = strings.TrimSpace(s); s != ""; {
		var part string
		if rest, quoted := strings.CutPrefix(s, `"`); quoted {
			part, s, _ = strings.Cut(rest, `"`)
			for strings.HasPrefix(s, `"`) { // "" inside stands for one
				var more string
				more, s, _ = strings.Cut(s[1:], `"`)
				part += `"` + more
			}
			_, s, _ = strings.Cut(s, ",")
		} else {
			part, s, _ = strings.Cut(s, ",")
			part = strings.TrimSpace(part)
		}
		if part != "" {
			list = append(list, part)
		}
		s = strings.TrimSpace(s)
	}
	return list
}

// Shell runs a command line of the user's own configuration, as the server would.
func (i *Instance) Shell(ctx context.Context, line string) error {
	_, err := i.run(ctx, "/bin/sh", "-c", line)
	return err
}

// Tool is a run of one of PostgreSQL's programs in the caller's own process group, which ends with that.
type Tool struct {
	Env   []string   // added to the environment of the server's user
	Files []*os.File // held open by the program: a lock, for as long as it lives
}

// Run runs the program in BinDir as the server's user, in the data directory. It returns what it wrote to either output.
func (t Tool) Run(ctx context.Context, i *Instance, name string, args ...string) (string, error) {
	if !i.Owner.Known() {
		return "", fmt.Errorf("%s: %w", name, ErrUnknownAccount)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(i.BinDir, name), args...)
	cmd.Dir, cmd.Env = i.DataDir, append(i.Owner.env(), t.Env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.ExtraFiles = t.Files
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: i.Owner.credential()}
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return out.String(), err
}

// SingleUserArgs are the arguments with which the server's program recovers this data directory from a crash and shuts
// it down cleanly, without a standby.signal, when its standard input is empty (pg_rewind does the same, but without this
// instance's configuration: ensureCleanShutdown in src/bin/pg_rewind/pg_rewind.c).
func (i *Instance) SingleUserArgs() []string {
	args := []string{"--single", "-D", i.ConfigDir}
	if i.ConfigDir != i.DataDir {
		args = append(args, "-c", "data_directory="+i.DataDir)
	}
	args = append(args, i.StartArgs...)
	// Whatever it still writes, nobody needs. Its checkpoint must not remove what pg_rewind reads: all WAL since the last common
	// checkpoint, which may be an earlier one than where the recovery begins.
	return append(args, "-c", "archive_mode=off", "-c", "wal_keep_size=1TB", "template1")
}

// run runs a program as the server's user in the data directory. Its whole process group ends with the context.
func (i *Instance) run(ctx context.Context, path string, args ...string) (string, error) {
	if !i.Owner.Known() {
		return "", fmt.Errorf("%s: %w", filepath.Base(path), ErrUnknownAccount)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Env = i.DataDir, i.Owner.env()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: i.Owner.credential()}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", filepath.Base(path), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}
