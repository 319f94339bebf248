package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// templateSQL makes what the writing clients and the prober of package load need.
// It runs once, when the template is made.
const templateSQL = `
CREATE ROLE replicator LOGIN REPLICATION PASSWORD 'baton';
GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
  pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean) TO replicator;
CREATE ROLE load LOGIN;
ALTER ROLE load SET log_min_messages = log; -- the prober's errors on standbys are no news
CREATE DATABASE load OWNER load;
\c load load
CREATE TABLE written (client int, seq bigint, inserted_at timestamptz NOT NULL DEFAULT clock_timestamp(), padding text, PRIMARY KEY (client, seq));
CREATE TABLE appended (run int, key int, list bigint[] NOT NULL, PRIMARY KEY (run, key));
CREATE TABLE probed (node text PRIMARY KEY, n bigint NOT NULL DEFAULT 0);
`

// majorVersion is that of the PostgreSQL server in a directory, "15".
func majorVersion(bindir string) (string, error) {
	out, err := exec.Command(filepath.Join(bindir, "postgres"), "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s/postgres --version: %w", bindir, err)
	}
	f := strings.Fields(string(out)) // postgres (PostgreSQL) 15.18 (Debian ...)
	if len(f) < 3 {
		return "", fmt.Errorf("%s/postgres --version says %q", bindir, out)
	}
	major, _, _ := strings.Cut(f[2], ".")
	return major, nil
}

// template returns a directory with primary, a data directory of a primary that was
// stopped cleanly, and standby, a base backup that was taken of it before that.
func template(ctx context.Context, o Options) (string, error) {
	sum := sha256.Sum256([]byte(templateSQL + strings.Join(initdbArgs(o), " ") + o.Bindir))
	dir := filepath.Join(TemplateRoot, fmt.Sprintf("%s-%x", o.Major, sum[:6]))
	if err := os.MkdirAll(TemplateRoot, 0o755); err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	// Several labs may come up at once: one makes it, the others wait.
	f, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	begin := time.Now()
	tmp := dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	if err := makeTemplate(ctx, o, tmp); err != nil {
		return "", errors.Join(fmt.Errorf("make a data directory for PostgreSQL %s: %w", o.Major, err), os.RemoveAll(tmp))
	}
	o.logf("%6.1f s  initdb and base backup, kept in %s", time.Since(begin).Seconds(), dir)
	return dir, os.Rename(tmp, dir)
}

func initdbArgs(o Options) []string {
	return []string{
		"-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "-k",
		"--wal-segsize=" + strconv.Itoa(o.WALSegMB),
	}
}

func makeTemplate(ctx context.Context, o Options, dir string) (err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := chown(dir, "postgres"); err != nil {
		return err
	}
	primary, standby := filepath.Join(dir, "primary"), filepath.Join(dir, "standby")
	pg := func(name string, args ...string) error {
		cmd, err := asPostgres(ctx, filepath.Join(o.Bindir, name), args...)
		if err != nil {
			return err
		}
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
		}
		return nil
	}
	if err := pg("initdb", append(initdbArgs(o), "--no-sync", "-D", primary)...); err != nil {
		return err
	}
	// The segments of the backup must not be recycled while they are copied.
	opts := fmt.Sprintf("-c listen_addresses= -c unix_socket_directories=%s -c wal_level=logical -c wal_keep_size=1GB", dir)
	if err := pg("pg_ctl", "-D", primary, "-w", "-l", filepath.Join(dir, "log"), "-o", opts, "start"); err != nil {
		return err
	}
	err = fillTemplate(ctx, o, dir, primary, standby)
	if err != nil {
		return errors.Join(err, pg("pg_ctl", "-D", primary, "-m", "immediate", "stop"))
	}
	return pg("pg_ctl", "-D", primary, "-m", "fast", "-w", "stop")
}

// fillTemplate makes the schema on the running primary, then the standby.
func fillTemplate(ctx context.Context, o Options, socketDir, primary, standby string) error {
	psql := func() (*exec.Cmd, error) {
		return asPostgres(ctx, o.client("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", socketDir, "-U", "postgres")
	}
	cmd, err := psql()
	if err != nil {
		return err
	}
	cmd.Stdin = strings.NewReader(templateSQL)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("psql: %w: %s", err, strings.TrimSpace(string(out)))
	}
	if err := os.Mkdir(standby, 0o700); err != nil {
		return err
	}
	if err := chown(standby, "postgres"); err != nil {
		return err
	}
	if cmd, err = psql(); err != nil {
		return err
	}
	return baseBackup(ctx, o.Major, cmd, primary, standby)
}

// asPostgres prepares a command that runs on the host as the user postgres.
func asPostgres(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	uid, gid, err := ids("postgres")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	return cmd, nil
}

func ids(name string) (uid, gid int, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, fmt.Errorf("%w (Debian's packages postgresql and pacemaker make it)", err)
	}
	uid, err = strconv.Atoi(u.Uid)
	if err != nil {
		return 0, 0, err
	}
	gid, err = strconv.Atoi(u.Gid)
	return uid, gid, err
}

// chown gives a path to a user and its primary group.
func chown(path, name string) error {
	if name == "root" {
		return os.Chown(path, 0, 0)
	}
	uid, gid, err := ids(name)
	if err != nil {
		return err
	}
	return os.Chown(path, uid, gid)
}
