package pgdisk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// majors are the versions whose servers scripts/postgres-matrix.sh installs.
var majors = []int{13, 14, 15, 16, 17, 18}

// tool is the path of a program of that major version. Its absence fails the test: a
// matrix with holes is no matrix.
func tool(t testing.TB, major int, name string) string {
	t.Helper()
	cache := os.Getenv("PGBATON_PG_CACHE")
	if cache == "" {
		cache = "/var/cache/pgbaton/postgresql"
	}
	path := filepath.Join(cache, strconv.Itoa(major), "bin", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run scripts/postgres-matrix.sh, which installs the servers for the tests", err)
	}
	return path
}

// serverUser is who runs the servers: initdb and postgres refuse to be root.
func serverUser(t testing.TB) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatalf("the tests run as root and need a user for the servers: %v", err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

func command(t testing.TB, path string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(path, args...)
	// Pdeathsig: no server outlives a test that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: serverUser(t), Pdeathsig: syscall.SIGQUIT}
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin:/bin", "TZ=UTC"}
	cmd.Dir = "/"
	return cmd
}

// run runs a program to its end and returns what it printed.
func run(t testing.TB, path string, args ...string) string {
	t.Helper()
	out, err := command(t, path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", path, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// scratch is where test clusters are made: in memory where there is enough of it, since they
// only cost a disk's time; else, and with TMPDIR set, where temporary files are.
func scratch() string {
	const memory, enough = "/dev/shm", 4 << 30
	var fs syscall.Statfs_t
	if os.Getenv("TMPDIR") == "" && syscall.Statfs(memory, &fs) == nil && fs.Bavail*uint64(fs.Bsize) >= enough {
		return memory
	}
	return ""
}

// serverDir is a new directory that belongs to the servers' user.
func serverDir(t testing.TB) string {
	t.Helper()
	return serverDirIn(t, scratch())
}

func serverDirIn(t testing.TB, parent string) string {
	t.Helper()
	dir, err := os.MkdirTemp(parent, "pgdisk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if cred := serverUser(t); cred != nil {
		if err := os.Chown(dir, int(cred.Uid), int(cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// server is a real PostgreSQL in a directory of its own.
type server struct {
	t     testing.TB
	major int
	dir   string // data directory, sockets and logs are below
	data  string
	cmd   *exec.Cmd
	log   string // of the latest start
	runs  int
}

// initdb makes a cluster without fsync: what is tested is bytes, not crashes of machines.
func initdb(t testing.TB, major, segMB int, data string) {
	t.Helper()
	run(t, tool(t, major, "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync",
		"--wal-segsize", strconv.Itoa(segMB))
}

// templateSegMB is the segment size of most test clusters. initdb takes longer than
// most tests, so it runs once a version.
const templateSegMB = 1

var templates = map[int]*struct {
	once sync.Once
	data string
}{13: {}, 14: {}, 15: {}, 16: {}, 17: {}, 18: {}}

// templateDir holds the templates; TestMain makes and removes it.
var templateDir string

func TestMain(m *testing.M) {
	var err error
	templateDir, err = os.MkdirTemp(scratch(), "pgdisk-templates")
	if err == nil {
		// The servers' user makes the clusters in it.
		err = os.Chmod(templateDir, 0o777)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(templateDir)
	os.Exit(code)
}

// template is a fresh cluster to copy.
func template(t testing.TB, major int) string {
	t.Helper()
	tp := templates[major]
	tp.once.Do(func() {
		data := filepath.Join(templateDir, strconv.Itoa(major))
		initdb(t, major, templateSegMB, data)
		tp.data = data
	})
	if tp.data == "" {
		t.Fatalf("no template of PostgreSQL %d: an earlier test could not make it", major)
	}
	return tp.data
}

// newServer makes a cluster with WAL segments of segMB megabytes and does not start it.
func newServer(t testing.TB, major, segMB int) *server {
	t.Helper()
	s := &server{t: t, major: major, dir: serverDir(t)}
	if segMB > 64 {
		// Gigabytes are for the disk.
		s.dir = serverDirIn(t, "")
	}
	s.data = filepath.Join(s.dir, "data")
	if segMB == templateSegMB {
		run(t, "/bin/cp", "-a", template(t, major), s.data)
	} else {
		initdb(t, major, segMB, s.data)
	}
	s.configure(
		"listen_addresses = ''", "unix_socket_directories = '"+s.dir+"'", "fsync = off", "shared_buffers = 16MB",
		"max_connections = 20", "wal_log_hints = on", "max_prepared_transactions = 5", "wal_level = logical", "log_min_messages = log",
		"wal_writer_delay = 10ms", "checkpoint_timeout = 1h", "autovacuum = off", "bgwriter_delay = 10s",
		fmt.Sprintf("min_wal_size = %dMB", 4*segMB), fmt.Sprintf("max_wal_size = %dMB", max(64, 4*segMB)))
	t.Cleanup(func() { s.stop(syscall.SIGQUIT) })
	return s
}

// configure appends settings.
func (s *server) configure(lines ...string) {
	s.t.Helper()
	f, err := os.OpenFile(filepath.Join(s.data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintln(f, strings.Join(lines, "\n")); err != nil {
		s.t.Fatal(err)
	}
}

// start starts the server and waits until it takes connections.
func (s *server) start() {
	s.t.Helper()
	s.runs++
	s.log = filepath.Join(s.dir, fmt.Sprintf("log.%d", s.runs))
	log, err := os.Create(s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	s.cmd = command(s.t, tool(s.t, s.major, "postgres"), "-D", s.data)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := s.tryConnect()
		if err == nil {
			_ = c.Close(context.Background())
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("PostgreSQL %d does not take connections: %v\n%s", s.major, err, s.readLog())
		}
	}
}

func (s *server) readLog() string {
	b, err := os.ReadFile(s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

func (s *server) tryConnect() (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return pgx.Connect(ctx, "host="+s.dir+" user=postgres dbname=postgres sslmode=disable")
}

// stop ends the server: SIGINT is a fast shutdown, SIGQUIT an immediate one, which is
// a crash that leaves no processes.
func (s *server) stop(sig syscall.Signal) {
	s.t.Helper()
	if s.cmd == nil {
		return
	}
	cmd := s.cmd
	s.cmd = nil
	if err := cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done: // the exit code of an immediate shutdown is not zero
	case <-time.After(60 * time.Second):
		_ = cmd.Process.Kill()
		s.t.Fatalf("PostgreSQL %d did not stop\n%s", s.major, s.readLog())
	}
}

// session is a connection for SQL.
type session struct {
	s *server
	c *pgx.Conn
}

func (s *server) session() *session {
	s.t.Helper()
	c, err := s.tryConnect()
	if err != nil {
		s.t.Fatalf("PostgreSQL %d: %v\n%s", s.major, err, s.readLog())
	}
	s.t.Cleanup(func() { _ = c.Close(context.Background()) })
	return &session{s: s, c: c}
}

func (q *session) close() { _ = q.c.Close(context.Background()) }

// exec runs statements one by one.
func (q *session) exec(statements ...string) {
	q.s.t.Helper()
	for _, sql := range statements {
		if _, err := q.c.Exec(context.Background(), sql); err != nil {
			q.s.t.Fatalf("PostgreSQL %d: %s: %v", q.s.major, sql, err)
		}
	}
}

// rows returns the columns as text.
func (q *session) rows(sql string) [][]string {
	q.s.t.Helper()
	rows, err := q.c.Query(context.Background(), sql, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		q.s.t.Fatalf("PostgreSQL %d: %s: %v", q.s.major, sql, err)
	}
	defer rows.Close()
	var out [][]string
	for rows.Next() {
		var line []string
		for _, v := range rows.RawValues() {
			line = append(line, string(v))
		}
		out = append(out, line)
	}
	if err := rows.Err(); err != nil {
		q.s.t.Fatalf("PostgreSQL %d: %s: %v", q.s.major, sql, err)
	}
	return out
}

func (q *session) value(sql string) string {
	q.s.t.Helper()
	return q.rows(sql)[0][0]
}

func (q *session) lsn(sql string) LSN {
	q.s.t.Helper()
	return mustLSN(q.s.t, q.value(sql))
}

func mustLSN(t testing.TB, s string) LSN {
	t.Helper()
	l, err := ParseLSN(s)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// flushed waits until everything written so far is on disk, and returns its end.
func (q *session) flushed() LSN {
	q.s.t.Helper()
	want := q.lsn("SELECT pg_current_wal_insert_lsn()")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		// A position right behind a page's header is the page's start, where the flush ends.
		if got := q.lsn("SELECT pg_current_wal_flush_lsn()"); got+longPageHeader >= want {
			return got
		}
		if time.Now().After(deadline) {
			q.s.t.Fatalf("the WAL up to %s is not flushed", want)
		}
	}
}

func (s *server) control() Control {
	s.t.Helper()
	c, err := ReadControl(s.data)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *server) wal() *WAL { return OpenWAL(s.data, s.control()) }

// findEnd is FindEnd, and that no error comes of it.
func (s *server) findEnd(tli TimelineID, from LSN) End {
	s.t.Helper()
	end, err := s.wal().FindEnd(context.Background(), tli, from)
	if err != nil {
		s.t.Fatalf("PostgreSQL %d: FindEnd(%d, %s): %v", s.major, tli, from, err)
	}
	if !isInvalid(end.Stop) {
		s.t.Fatalf("PostgreSQL %d: FindEnd(%d, %s): stop is %v, want an InvalidError", s.major, tli, from, end.Stop)
	}
	return end
}

// records are all valid records from a record boundary on.
func (s *server) records(tli TimelineID, from LSN) []Record {
	s.t.Helper()
	return walk(s.t, s.wal(), tli, from)
}

// isInvalid says whether err is one that ends the WAL.
func isInvalid(err error) bool {
	var invalid *InvalidError
	return errors.As(err, &invalid)
}

var redoDone = regexp.MustCompile(`redo done at ([0-9A-F]+/[0-9A-F]+)`)

// redoDone is the start of the last record that the server replayed when it came up: what
// it took for the last valid one.
func (s *server) redoDone() LSN {
	s.t.Helper()
	m := redoDone.FindStringSubmatch(s.readLog())
	if m == nil {
		s.t.Fatalf("PostgreSQL %d replayed nothing:\n%s", s.major, s.readLog())
	}
	return mustLSN(s.t, m[1])
}

// promote lets the stopped server come up as a standby and promotes it: a new timeline.
func (s *server) promote() {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.data, "standby.signal"), nil, 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.start()
	q := s.session()
	defer q.close()
	if got := q.value("SELECT pg_promote(true, 30)"); got != "t" {
		s.t.Fatalf("PostgreSQL %d was not promoted\n%s", s.major, s.readLog())
	}
}

// historyFile is the bytes of a history file as the server wrote it.
func (s *server) historyFile(tli TimelineID) string {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.data, "pg_wal", HistoryFileName(tli)))
	if errors.Is(err, fs.ErrNotExist) && tli == 1 {
		return ""
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// removeFrom removes the segments of a timeline from the one that holds lsn on, and says
// how many.
func (s *server) removeFrom(tli TimelineID, lsn LSN) int {
	s.t.Helper()
	n := 0
	segSize := s.control().SegmentSize
	for ; ; lsn += LSN(segSize) {
		err := os.Remove(filepath.Join(s.data, "pg_wal", SegmentName(tli, lsn, segSize)))
		if errors.Is(err, fs.ErrNotExist) {
			return n
		}
		if err != nil {
			s.t.Fatal(err)
		}
		n++
	}
}
