package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// query runs statements on a server, one after the other, and returns the last one's first value.
func (p place) query(i *postgres.Instance, statements ...string) string {
	p.t.Helper()
	ctx := within(p.t, time.Minute)
	s, err := i.Connect(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	defer s.Close()
	var row []string
	for _, sql := range statements {
		if row, err = s.Row(ctx, sql); err != nil {
			p.t.Fatal(err)
		}
	}
	if len(row) == 0 {
		return ""
	}
	return row[0]
}

func (p place) await(i *postgres.Instance, sql, want string) {
	p.t.Helper()
	got := ""
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if s, err := i.Connect(p.t.Context()); err == nil {
			row, err := s.Row(p.t.Context(), sql)
			s.Close()
			if err == nil && len(row) == 1 {
				if got = row[0]; got == want {
					return
				}
			}
		}
	}
	log, _ := os.ReadFile(i.LogFile)
	p.t.Fatalf("%s is %q, expected %q\n%s", sql, got, want, log)
}

// Ensure a rewind comes to the same end however often it is killed on the way: on real servers, an old primary that crashed
// with rows of its own, and a new one that has changed everything since. Whenever it was killed, nothing starts what is
// there.
func TestRewind_Killed(t *testing.T) {
	p := newPlace(t)
	old := p.primary("-c", "wal_log_hints=on", "-c", "wal_keep_size=512MB", "-c", "primary_conninfo=host="+p.dir+" port=5434 user=postgres application_name=n1")
	p.query(old, "CREATE TABLE common AS SELECT n, repeat('a', 300) AS f FROM generate_series(1, 30000) n", "CREATE INDEX ON common (n)", "CREATE TABLE dropped AS SELECT n FROM generate_series(1, 10000) n", "CHECKPOINT")
	now := p.clone(old)
	now.StartArgs = append(now.StartArgs, "-c", "wal_keep_size=512MB")
	pm := p.start(now, "ready")
	p.await(now, "SELECT pg_last_wal_receive_lsn() >= '"+p.query(old, "SELECT pg_current_wal_flush_lsn()")+"'::pg_lsn", "t")
	p.await(now, "SELECT count(*) FROM dropped", "10000")
	if err := now.RequestPromotion(pm.Process); err != nil {
		t.Fatal(err)
	}
	p.await(now, "SELECT pg_is_in_recovery()", "f")
	p.query(old, "UPDATE common SET f = repeat('lost', 80) WHERE n % 3 = 0", "DROP TABLE dropped", "CREATE TABLE lost AS SELECT n FROM generate_series(1, 50000) n", "CHECKPOINT", "INSERT INTO lost VALUES (-1)")
	a, _ := p.agent(old, "n1", rejoinAction)
	p.query(now, "UPDATE common SET f = repeat('kept', 80) WHERE n % 5 = 0", "CREATE TABLE fresh AS SELECT n, repeat(md5(n::text), 40) AS f FROM generate_series(1, 80000) n", "CHECKPOINT")
	if _, err := old.KillLeftovers(t.Context()); err != nil {
		t.Fatal(err)
	}
	own := map[string]string{"server.key": "secret", "conf.d/local.conf": "# local\n"}
	for name, text := range own {
		path := filepath.Join(old.DataDir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600), os.Lchown(path, int(old.Owner.UID), int(old.Owner.GID)), os.Lchown(filepath.Dir(path), int(old.Owner.UID), int(old.Owner.GID))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(now.DataDir, "theirs.conf"), []byte("# not ours"), 0o644); err != nil {
		t.Fatal(err)
	}

	h, err := pgdisk.ReadHistory(filepath.Join(now.DataDir, "pg_wal"), 2)
	if err != nil {
		t.Fatal(err)
	}
	a.params.RewindConninfo, a.params.RewindKeep = "host="+p.dir+" port=5434 user=postgres password=sesame", 1024
	a.state.Claims = []baton.Claim{{Seq: 1, Timeline: 2, Parent: 1, Switch: h[0].Switch, Node: "n2", Nonce: "x", State: baton.Effective}}
	if err := a.store.Save(a.state); err != nil {
		t.Fatal(err)
	}
	mustNotStart := func(when string) {
		t.Helper()
		if err := a.startAsStandby(within(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
		if a.vol.Out == nil || a.vol.Out.Rejoin != baton.Rewind {
			t.Fatalf("%s: kept out: %+v, expected to be rewound", when, a.vol.Out)
		}
		if _, err := old.Postmaster(); !errors.Is(err, postgres.ErrNotRunning) {
			t.Fatalf("%s: the server runs (%v)", when, err)
		}
	}
	mustNotStart("diverged")
	// What PostgreSQL makes ahead for WAL to come is no WAL that is lost.
	made := recycled(t, old)
	lock, err := os.Create(filepath.Join(p.dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	r, err := a.prepareRewind(within(t, time.Minute), a.rewindSource(lock))
	if err != nil {
		t.Fatal(err)
	}
	if kept, err := filepath.Glob(filepath.Join(r.Keep, strings.Repeat("?", segmentName))); err != nil || len(kept) == 0 || slices.Contains(kept, filepath.Join(r.Keep, made)) {
		t.Errorf("kept: %q (%v), expected the WAL from %s on, and not %s, an old file of another name", kept, err, r.Fork, made)
	}
	killed := 0
	for limit := 300 * time.Millisecond; ; limit = limit * 3 / 2 {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		err := a.rewind(ctx, lock)
		cancel()
		if err == nil {
			break
		}
		if ctx.Err() == nil {
			t.Fatal(err)
		}
		if r, err := a.store.LoadRewind(); err != nil || r == nil {
			t.Fatalf("killed after %s, and there is no marker (%v)", limit, err)
		}
		mustNotStart("killed after " + limit.String())
		killed++
	}
	if killed < 2 {
		t.Errorf("the rewind was killed %d times, expected at least 2: it says nothing", killed)
	}
	t.Logf("killed %d times", killed)

	p.await(old, "SELECT pg_last_wal_replay_lsn() >= '"+p.query(now, "SELECT pg_current_wal_flush_lsn()")+"'::pg_lsn", "t")
	for _, sql := range []string{
		"SELECT count(*) || ' ' || sum(hashtext(n || f)) FROM common", "SELECT count(*) || ' ' || sum(hashtext(n || f)) FROM fresh", "SELECT count(*) || ' ' || sum(n) FROM dropped",
		"SELECT count(*) || ' ' || sum(relpages) FROM pg_class", "SELECT to_regclass('lost') IS NULL",
	} {
		if got, want := p.query(old, sql), p.query(now, sql); got != want {
			t.Errorf("%s: %q, on the primary %q", sql, got, want)
		}
	}
	if got := p.query(old, "SELECT to_regclass('lost') IS NULL"); got != "t" {
		t.Error("a table that the cluster passed over is still there")
	}
	for name, text := range own {
		if b, err := os.ReadFile(filepath.Join(old.DataDir, name)); err != nil || string(b) != text {
			t.Errorf("the node's own %s after the rewind: %q, %v", name, b, err)
		}
	}
	if _, err := os.Stat(filepath.Join(old.DataDir, "theirs.conf")); err == nil {
		t.Error("a file of the primary's configuration was left behind")
	}
	left, err := filepath.Glob(filepath.Join(a.store.Dir, "lost-*", "*"))
	if err != nil || !slices.ContainsFunc(left, func(s string) bool { return strings.HasSuffix(s, "/README") }) || slices.ContainsFunc(left, func(s string) bool { return strings.HasSuffix(s, asideOlder) }) {
		t.Errorf("kept of what was lost: %q, %v", left, err)
	}
	events, err := a.store.LastEvents()
	if err != nil || len(events) == 0 {
		t.Fatalf("journal: %d events, %v", len(events), err)
	}
	last := events[len(events)-1]
	if kept := last.Details["kept"]; last.Outcome != "rewound" || len(left) == 0 || kept != filepath.Dir(left[0]) || !strings.Contains(last.Details["waldump"], " -p "+kept+" ") {
		t.Errorf("the journal says %s %q, kept is %q", last.Outcome, last.Details, left)
	}
	if a.rewinding() || a.vol.Out != nil {
		t.Errorf("the marker is there: %v, kept out: %+v", a.rewinding(), a.vol.Out)
	}
	if a.state.Rewound != "x" {
		t.Errorf("rewound for the claim %q, expected x", a.state.Rewound)
	}
}

// recycled renames a copy of an older WAL segment for WAL to come, as a checkpoint does, and returns the new name.
func recycled(t *testing.T, i *postgres.Instance) string {
	t.Helper()
	ctl, err := pgdisk.ReadControl(i.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	wal := filepath.Join(i.DataDir, "pg_wal")
	segment := func(lsn pgdisk.LSN) string { return pgdisk.SegmentName(ctl.CheckPointTimeline, lsn, ctl.SegmentSize) }
	name := segment(ctl.CheckPoint + 8*pgdisk.LSN(ctl.SegmentSize))
	b, err := os.ReadFile(filepath.Join(wal, segment(ctl.Redo)))
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(wal, name)
	if err := errors.Join(os.WriteFile(to, b, 0o600), os.Lchown(to, int(i.Owner.UID), int(i.Owner.GID))); err != nil {
		t.Fatal(err)
	}
	return name
}

// Ensure that no password of a connection string is in what is said of a program that failed.
func TestRewindSource_Why(t *testing.T) {
	a := &Agent{}
	a.params.RewindConninfo = "host=h user=u password=sesame"
	src := a.rewindSource(nil)
	if strings.Contains(src.conninfo, "sesame") || !slices.Contains(src.tool.Env, "PGPASSWORD=sesame") {
		t.Errorf("command line %q, environment %q", src.conninfo, src.tool.Env)
	}
	for _, tt := range []struct{ out, want string }{
		{"psql: error: connection failed: sesame\n", "connection failed: ***"},
		{"pg_rewind: servers diverged at WAL location 0/3 on timeline 1\npg_rewind: error: could not find previous WAL record at 0/2: sesame\n", "could not find previous WAL record at 0/2: ***"},
		{"pg_rewind: fatal: target server must be shut down cleanly\n", "target server must be shut down cleanly"},
		{"something else sesame", "something else ***"},
	} {
		if err := src.why(tt.out, errors.New("exit status 1")); !strings.HasSuffix(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.out, err, tt.want)
		}
	}
}

// Ensure that what a rewind puts aside and back are the user's files, and nothing of the server's: also where a tablespace
// lies inside the data directory.
func TestOwnFiles(t *testing.T) {
	p := newPlace(t)
	a, _ := p.agent(&postgres.Instance{DataDir: p.dir, ConfigDir: p.dir}, "n1", rejoinAction)
	for _, name := range []string{
		"postgresql.conf", "conf.d/local.conf", "PG_VERSION", "base/1/1259", "pg_wal/000000010000000000000001", "log/today.log", "inside/PG_15_202209061/5/16385",
	} {
		path := filepath.Join(p.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(t.TempDir(), "data")
	if err := os.Symlink(p.dir, link); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{p.dir, link} {
		a.pg.DataDir = dir
		list, err := a.ownFiles()
		if err != nil || len(list) != 2 || list[0].name != "conf.d/local.conf" || list[1].name != "postgresql.conf" {
			t.Errorf("own files of %s: %+v, %v; want conf.d/local.conf and postgresql.conf", dir, list, err)
		}
	}
}

// Ensure a rewind that was cut short goes on only in the data directory in which it was: a person may have put a backup in its
// place, whose files would be taken for those that pg_rewind has touched, and removed.
func TestSameTarget(t *testing.T) {
	p := newPlace(t)
	i := p.instance("data", "5433")
	a, _ := p.agent(i, "n1", rejoinAction)
	keep := filepath.Join(p.dir, "lost")
	write := func(path, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(keep, asideControl), "before")
	label := filepath.Join(i.DataDir, "backup_label")
	for _, tt := range []struct {
		name, control, label, dir string
		same                      bool
	}{
		{"pg_rewind was killed before it wrote pg_control", "before", "", i.DataDir, true},
		{"and after it wrote its label", "before", "BACKUP METHOD: pg_rewind\n", i.DataDir, true},
		{"it was killed after that", "after", "BACKUP METHOD: pg_rewind\n", i.DataDir, true},
		{"a base backup that was not started yet", "backup", "BACKUP METHOD: streamed\n", i.DataDir, false},
		{"one that ran", "backup", "", i.DataDir, false},
		{"the power went after it wrote pg_control, and with it what was in its label", "after", "empty", i.DataDir, true},
		{"nothing is there", "", "", i.DataDir, false},
		{"pgdata is another one by now", "before", "", "/elsewhere", false},
	} {
		os.RemoveAll(i.DataDir)
		if tt.control != "" {
			write(pgdisk.ControlPath(i.DataDir), tt.control)
		}
		if tt.label != "" {
			write(label, strings.TrimPrefix(tt.label, "empty"))
		}
		r := &journal.Rewind{DataDir: tt.dir, Keep: keep, Began: time.Now()}
		if err := a.sameTarget(r); (err == nil) != tt.same || err != nil && !strings.Contains(err.Error(), "rm "+a.store.RewindPath()) {
			t.Errorf("%s: %v, expected that it is the same: %t", tt.name, err, tt.same)
		}
	}
}

// Ensure what a restore_command has left running, with the lock of a rewind in its hands, does not count as the rewind: a stop would
// wait for it in vain, and the node be fenced.
func TestRejoining_StrayHolder(t *testing.T) {
	a, _ := newPlace(t).agent(&postgres.Instance{}, "n1", "stop")
	if err := os.MkdirAll(journal.RunDir(a.inv.Resource), 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := a.rejoinLock()
	if err != nil || lock == nil {
		t.Fatal(lock, err)
	}
	if !a.rejoining() {
		t.Error("nobody rejoins, but this process does")
	}
	group := exec.Command("/bin/sleep", "600")
	group.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stray := exec.Command("/bin/sleep", "600")
	stray.SysProcAttr, stray.ExtraFiles = group.SysProcAttr, []*os.File{lock}
	for _, cmd := range []*exec.Cmd{group, stray} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go cmd.Wait()
		defer cmd.Process.Kill()
	}
	if err := os.WriteFile(a.rejoinLockPath(), []byte(fmt.Sprint(group.Process.Pid)), 0o600); err != nil {
		t.Fatal(err)
	}
	lock.Close()
	if err := a.endRejoin(within(t, 5*time.Second)); err != nil {
		t.Errorf("the rewind has ended, but: %v", err)
	}
	if err := stray.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("what is none of the rewind was killed: %v", err)
	}
}

// Ensure a clock that was set back does not make this node wait for hours.
func TestAge(t *testing.T) {
	a, _ := newPlace(t).agent(&postgres.Instance{}, "n1", "monitor")
	a.vol.Out = &journal.Out{Rejoin: baton.Rewind}
	a.params.RewindConninfo = "host=n2"
	if err := os.MkdirAll(journal.RunDir(a.inv.Resource), 0o700); err != nil {
		t.Fatal(err)
	}
	a.say(rewindStopped + "no room")
	for age, may := range map[time.Duration]bool{0: false, time.Hour: true, -time.Hour: true} {
		at := time.Now().Add(-age)
		if err := os.Chtimes(a.doingPath(), at, at); err != nil {
			t.Fatal(err)
		}
		if got := a.mayRewind(); got != may {
			t.Errorf("a rewind that stopped %s ago may begin again: %t, want %t", age, got, may)
		}
	}
}
