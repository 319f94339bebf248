package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// baseBackup copies the data directory of a running server, as PostgreSQL's manual
// has it for a backup with the low-level API: not every installation that the lab can
// run has pg_basebackup, and that of another major version refuses. Both paths are
// the host's; psql is a session of a superuser with unaligned, bare output, not yet
// started. What belongs to the server and not to the data is left out.
func baseBackup(ctx context.Context, major string, psql *exec.Cmd, from, to string) error {
	begin, end := "SELECT pg_backup_start('lab', true)", "SELECT labelfile FROM pg_backup_stop()"
	if v, _ := strconv.Atoi(major); v < 15 {
		begin, end = "SELECT pg_start_backup('lab', true, false)", "SELECT labelfile FROM pg_stop_backup(false)"
	}
	in, err := psql.StdinPipe()
	if err != nil {
		return err
	}
	out, err := psql.StdoutPipe()
	if err != nil {
		return err
	}
	var stderr strings.Builder
	psql.Stderr = &stderr
	if err := psql.Start(); err != nil {
		return err
	}
	fail := func(err error) error {
		in.Close()
		return fmt.Errorf("base backup of %s: %w: %s", from, errors.Join(err, psql.Wait()), strings.TrimSpace(stderr.String()))
	}
	r := bufio.NewReader(out)
	fmt.Fprintln(in, begin+";")
	if _, err := r.ReadString('\n'); err != nil {
		return fail(err)
	}
	if err := copyLive(ctx, from, to); err != nil {
		return fail(err)
	}
	fmt.Fprintln(in, end+";")
	in.Close()
	label, err := io.ReadAll(r)
	if err != nil || len(label) == 0 {
		return fail(fmt.Errorf("no backup label: %w", err))
	}
	if err := psql.Wait(); err != nil {
		return fail(err)
	}
	// The WAL up to the end of the backup, which is there now.
	if err := copyLive(ctx, filepath.Join(from, "pg_wal"), filepath.Join(to, "pg_wal")); err != nil {
		return err
	}
	for _, pattern := range []string{"postmaster.*", "pg_replslot/*", "pg_stat_tmp/*", "standby.signal"} {
		paths, _ := filepath.Glob(filepath.Join(to, pattern))
		for _, p := range paths {
			if err := os.RemoveAll(p); err != nil {
				return err
			}
		}
	}
	// psql ends the value with a line end of its own.
	path := filepath.Join(to, "backup_label")
	if err := os.WriteFile(path, label[:len(label)-1], 0o600); err != nil {
		return err
	}
	return chown(path, "postgres")
}

// copyLive copies what is in one directory into another one. A server that runs
// removes files meanwhile, none of which a backup needs.
func copyLive(ctx context.Context, from, to string) error {
	cmd := exec.CommandContext(ctx, "cp", "-a", from+"/.", to)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	for line := range strings.Lines(string(out)) {
		if !strings.HasSuffix(strings.TrimSpace(line), "No such file or directory") {
			return fmt.Errorf("copy %s to %s: %w: %s", from, to, err, out)
		}
	}
	return nil
}

// client is the path of one of PostgreSQL's client programs: that of the version
// under test if it is installed, else the newest one of the machine's.
func (o Options) client(name string) string {
	path := filepath.Join(o.Bindir, name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	return filepath.Join(newestBindir(), name)
}
