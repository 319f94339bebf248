package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// sharedInNode is a directory that all nodes share: what archives write to, as an NFS export would be.
const sharedInNode = "/run/pgbaton-lab/switch/archive"

// archiveTest is a cluster that archives into one directory, with a base backup to restore from.
type archiveTest struct {
	*cluster
	shared string // sharedInNode, as this program sees it
	uid    int    // of the user postgres
	gid    int
}

// newArchiveTest boots a lab whose archive_command refuses to overwrite a file by another one, with a hook before the
// copy: a test makes it slow, or makes it fail. Segments are small and hardly kept,
// so that what is not archived in time is soon overwritten.
func newArchiveTest(t *testing.T) *archiveTest {
	t.Helper()
	o := ordinary()
	o.WALSegMB, o.AutoReturn = 1, time.Hour
	o.Conf["archive_mode"] = "on"
	// PostgreSQL itself archives a file again where a new primary finds one of an older timeline without a mark
	// (XLogArchiveCheckDone): a file that is there already must be the same one, and is then a success.
	// A partial segment gets a name of its own: two that were promoted at the same point, one after the other's loss, both
	// archive one, with other bytes behind the end.
	o.Conf["archive_command"] = fmt.Sprintf(`case %%f in *.partial) sh %[1]s/hook && cp %%p %[1]s/wal/%%f.$(cksum <%%p | cut -d" " -f1);; *) if test -f %[1]s/wal/%%f; then cmp -s %%p %[1]s/wal/%%f; else sh %[1]s/hook && cp %%p %[1]s/wal/%%f; fi;; esac`, sharedInNode)
	o.Conf["wal_keep_size"], o.Conf["min_wal_size"], o.Conf["max_wal_size"] = "16MB", "4MB", "32MB"
	c := testCluster(t, "restore", o)
	c.useFaults(t, true)
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatal(err)
	}
	a := &archiveTest{cluster: c, shared: filepath.Join(c.lab.Dir, "switch", "archive")}
	a.uid, _ = strconv.Atoi(u.Uid)
	a.gid, _ = strconv.Atoi(u.Gid)
	for _, d := range []string{a.shared, filepath.Join(a.shared, "wal")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(d, a.uid, a.gid); err != nil {
			t.Fatal(err)
		}
	}
	a.hook(t, "exit 0")
	return a
}

// hook says what every archive_command does from now on between looking and copying.
func (a *archiveTest) hook(t *testing.T, script string) {
	t.Helper()
	path := filepath.Join(a.shared, "hook")
	if err := os.WriteFile(path+".new", []byte(script+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

const (
	archiveHealthy = "exit 0"
	archiveSlow    = "sleep 5"
	archiveFailing = "exit 1"
)

// Ensure the archive has no hole across a handover, however healthy the archiver is: from a base backup and the archive
// alone, every acknowledged row is found again. And the handover does not wait for the archiver.
//
// By default a slow archiver, a failing one, and another story each day; PGBATON_ALL_ARCHIVE=1 takes all.
//
// Trap 33: no hole in the archive, whatever becomes of the archiver.
// Trap 19: a slow archiver holds nobody up.
// Trap 41: a slow archiver is not waited for.
func TestArchive(t *testing.T) {
	stories := []struct {
		name string
		f    func(*archiveTest, *scenario)
	}{
		{"healthy", archiveOnce(archiveHealthy)},
		{"slow", archiveOnce(archiveSlow)},
		{"failing", archiveOnce(archiveFailing)},
		{"failing, there and back", archiveThereAndBack},
		{"slow, and the handover is rolled back", archiveRollBack},
		{"failing, and the old primary's node loses its power", archivePowerLoss},
		{"healthy, and a timeline's number is passed over", archivePassedOver},
		{"healthy, and a twin has archived its history", archiveTwin},
	}
	if os.Getenv("PGBATON_ALL_ARCHIVE") == "" {
		day := int(time.Now().Unix() / 86400)
		stories = []struct {
			name string
			f    func(*archiveTest, *scenario)
		}{stories[1], stories[2], stories[3+day%(len(stories)-3)]}
		t.Logf("%q, %q and, of the others, %q today (PGBATON_ALL_ARCHIVE=1: all)", stories[0].name, stories[1].name, stories[2].name)
	}
	for _, tt := range stories {
		t.Run(tt.name, func(t *testing.T) {
			a := newArchiveTest(t)
			a.hook(t, archiveHealthy)
			s := a.begin(t, 5*time.Minute, true)
			base := a.backup(s)
			tt.f(a, s)
			a.hook(t, archiveHealthy)
			s.clear()
			r := s.finish()
			a.drain(s)
			// Far less than the archiver would take for what waited, or a lost node's fencing on a slow machine.
			if r.Longest.Duration() > here(15*time.Second) {
				t.Errorf("nobody could write for %.0f ms after %q, expected %s at most", r.Longest.Ms, r.Longest.After, here(15*time.Second))
			}
			t.Logf("longest time without a commit: %.0f ms", r.Longest.Ms)
			a.restore(s, base)
		})
	}
}

// archiveOnce hands over while several segments wait to be archived.
func archiveOnce(hook string) func(*archiveTest, *scenario) {
	return func(a *archiveTest, s *scenario) {
		to := s.others[0]
		was := s.timeline(s.old)
		a.hook(s.t, hook)
		s.segments(s.old, 6)
		if hook != archiveHealthy {
			s.unarchived(s.old, 5)
		}
		s.load.Mark("move")
		s.move(to)
		s.promoted(to)
		s.must(s.load.AwaitAck(s.within(roleLimit)))
		s.load.Mark("done")
		s.proven(s.old, was, to)
		s.stage("%s is primary", to)
		if hook == archiveSlow {
			// Still at it, one file after the other: it must not have been waited for.
			if n := len(a.waiting(s, s.old)); n < 3 {
				s.t.Errorf("%d files of %s wait to be archived, expected more: this shows nothing", n, s.old)
			}
		}
		s.highest(to)
	}
}

// archiveThereAndBack hands over and back before anything could be archived; then so much is written that every file
// which PostgreSQL believes to be archived is overwritten.
func archiveThereAndBack(a *archiveTest, s *scenario) {
	a.hook(s.t, archiveFailing)
	s.segments(s.old, 4)
	was := s.timeline(s.old)
	s.move(s.others[0])
	s.promoted(s.others[0])
	s.streaming()
	was = s.proven(s.old, was, s.others[0])
	s.highest(s.others[0])
	s.segments(s.others[0], 4)
	s.move(s.old)
	s.promoted(s.old)
	s.streaming()
	s.proven(s.others[0], was, s.old)
	s.highest(s.old)
	s.stage("%s is primary again", s.old)
	for range 3 {
		s.segments(s.old, 24)
		for _, n := range s.lab.Names {
			s.sql(n, "CHECKPOINT")
		}
	}
	s.stage("%s wrote 72 segments more", s.old)
}

// archiveRollBack cuts the target off when the primary is told to stop, while its archiver is slow.
func archiveRollBack(a *archiveTest, s *scenario) {
	target, was := s.others[0], s.timeline(s.old)
	a.hook(s.t, archiveSlow)
	s.segments(s.old, 6)
	s.unarchived(s.old, 5)
	s.pause(s.old, "demote/fast-stop before", func() { s.move(target) }, func() {
		s.cutStandby(target)
		s.load.Mark("stop")
	})
	s.refused(target)
	primary := s.newPrimary(was, "")
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	if primary == target {
		s.t.Errorf("%s was promoted, which could not have everything", target)
	}
	s.stage("rolled back to %s", primary)
	s.must(s.lab.HealAll(s.ctx))
	s.clear()
	s.lifted(target)
	s.streaming()
	for range 2 {
		s.segments(primary, 24)
		s.sql(primary, "CHECKPOINT")
	}
}

// archivePowerLoss hands over with a backlog, then switches the old primary's node off and on again.
func archivePowerLoss(a *archiveTest, s *scenario) {
	to := s.others[0]
	a.hook(s.t, archiveFailing)
	s.segments(s.old, 4)
	s.move(to)
	s.promoted(to)
	s.streaming()
	s.highest(to)
	s.clear()
	waiting := a.waiting(s, s.old)
	if len(waiting) == 0 {
		s.t.Fatalf("nothing of %s waits to be archived: this shows nothing", s.old)
	}
	s.stage("%s waits to archive %d files, %s the first", s.old, len(waiting), waiting[0])
	s.powerOff(s.old)
	s.segments(to, 24)
	s.sql(to, "CHECKPOINT")
	s.must(s.lab.Power(s.ctx, s.old, true))
	s.streaming()
	s.wasFenced()
	s.stage("%s is back", s.old)
}

// archivePassedOver takes the target's power away after everybody heard which timeline it was about to start, and before it
// did. The next primary passes over the number, and a recovery from the archive looks for one history file after the other
// (findNewestTimeLine in src/backend/access/transam/timeline.c): it ends at the first that is not there.
func archivePassedOver(a *archiveTest, s *scenario) {
	target, was := s.others[0], s.timeline(s.old)
	s.pause(target, "promote/request-promotion before", func() { s.move(target) }, func() {
		s.must(s.lab.Power(s.ctx, target, false))
	})
	primary := s.newPrimary(was, "")
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	if now := s.timeline(primary); now <= was+1 {
		s.t.Errorf("%s writes timeline %d after %d: no number was passed over, this shows nothing", primary, now, was)
	}
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	s.must(s.lab.Power(s.ctx, target, true))
	s.streaming()
	s.wasFenced()
}

// archiveTwin lets the new primary archive the history of its timeline before its node loses its power. The next primary
// passes over the number, and its archive_command refuses a second file of that name: this must hold nothing up.
func archiveTwin(a *archiveTest, s *scenario) {
	twin, was := s.others[0], s.timeline(s.old)
	s.promoteAlone(twin, "promote/request-promotion after")
	history := fmt.Sprintf("%08X.history", s.timeline(twin))
	s.await(30*time.Second, func() error {
		if _, err := os.Stat(filepath.Join(a.shared, "wal", history)); err != nil {
			return lab.NotYet("%s has not archived %s: %v", twin, history, err)
		}
		return nil
	})
	s.must(s.lab.Power(s.ctx, twin, false))
	primary := s.newPrimary(was, "")
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s passed over the timeline of %s", primary, twin)
	s.segments(primary, 3)
	s.must(s.lab.Reset(s.ctx)) // the twin has to be made anew
	s.wasFenced()
}

// segments fills WAL segments on a primary.
func (s *scenario) segments(primary string, n int) {
	s.t.Helper()
	for range n {
		s.sql(primary, "SELECT pg_logical_emit_message(true, 'e2e', 'a segment'); SELECT pg_switch_wal()")
	}
}

// unarchived checks that files of a running primary wait to be archived.
func (s *scenario) unarchived(node string, atLeast int) {
	s.t.Helper()
	ready, err := filepath.Glob(filepath.Join(s.walDir(node), "archive_status", "*.ready"))
	s.must(err)
	if len(ready) < atLeast {
		s.t.Fatalf("%d files of %s wait to be archived, expected at least %d: this shows nothing", len(ready), node, atLeast)
	}
}

// waiting lists what a node has still to archive: by PostgreSQL's own marks, and what was put aside for later.
func (a *archiveTest) waiting(s *scenario, node string) []string {
	s.t.Helper()
	var list []string
	for _, pattern := range []string{"archive_status/*.ready", "pgbaton-archive/*"} {
		paths, err := filepath.Glob(filepath.Join(s.walDir(node), pattern))
		s.must(err)
		for _, p := range paths {
			list = append(list, filepath.Base(p))
		}
	}
	return list
}

// drain waits until everything is archived that was written so far. Nobody writes.
func (a *archiveTest) drain(s *scenario) {
	s.t.Helper()
	primary := s.promoted("")
	last, timeline := s.sql(primary, "SELECT pg_walfile_name(pg_current_wal_lsn())"), s.timeline(primary)
	s.segments(primary, 1)
	s.await(90*time.Second, func() error {
		for _, n := range s.lab.Names {
			if w := a.waiting(s, n); len(w) > 0 {
				return lab.NotYet("%s has still to archive %d files: %s ...", n, len(w), w[0])
			}
		}
		if _, err := os.Stat(filepath.Join(a.shared, "wal", last)); err != nil {
			return lab.NotYet("the archive lacks what %s wrote last: %v", primary, err)
		}
		// The numbers that were passed over too, or a recovery does not find the way to the newest timeline.
		for t := uint32(2); t <= timeline; t++ {
			if _, err := os.Stat(filepath.Join(a.shared, "wal", fmt.Sprintf("%08X.history", t))); err != nil {
				return lab.NotYet("%s writes timeline %d; the archive lacks the history of %d: %v", primary, timeline, t, err)
			}
		}
		return nil
	})
	s.stage("everything up to %s is archived", last)
}

// backup takes a base backup, without WAL: it needs the archive to be of any use.
func (a *archiveTest) backup(s *scenario) string {
	s.t.Helper()
	name := fmt.Sprintf("base-%d", time.Now().UnixMilli())
	cmd, err := s.lab.CommandAs(s.ctx, s.old, "postgres", filepath.Join(s.lab.Bindir, "pg_basebackup"), "-h", "/var/run/postgresql", "-U", "postgres",
		"-D", filepath.Join(sharedInNode, name), "-X", "none", "--checkpoint=fast", "--no-sync")
	s.must(err)
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	s.stage("base backup of %s", s.old)
	return filepath.Join(a.shared, name)
}

// restore recovers the base backup from the archive alone, to the end of the latest timeline, and compares the rows with
// those of the primary, of which the load's own check has said that they have every acknowledged one.
func (a *archiveTest) restore(s *scenario, base string) {
	s.t.Helper()
	ctx := s.within(2 * time.Minute)
	conf := fmt.Sprintf(`
restore_command = 'cp "%s/wal/%%f" "%%p"'
recovery_target_timeline = 'latest'
archive_mode = off
primary_conninfo = ''
listen_addresses = ''
unix_socket_directories = '%s'
logging_collector = off
`, a.shared, base)
	auto := filepath.Join(base, "postgresql.auto.conf")
	s.must(os.WriteFile(auto, []byte(conf), 0o600))
	s.must(os.Chown(auto, a.uid, a.gid))
	signal := filepath.Join(base, "recovery.signal")
	s.must(os.WriteFile(signal, nil, 0o600))
	s.must(os.Chown(signal, a.uid, a.gid))
	server := a.asPostgres(ctx, filepath.Join(s.lab.Bindir, "postgres"), "-D", base)
	log, err := os.Create(filepath.Join(a.shared, filepath.Base(base)+".log"))
	s.must(err)
	defer log.Close()
	server.Stdout, server.Stderr = log, log
	s.must(server.Start())
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	defer func() {
		_ = server.Process.Signal(syscall.SIGQUIT)
		<-ended
	}()
	query := func(db, q string) (string, error) {
		out, err := a.asPostgres(ctx, filepath.Join(s.lab.Bindir, "psql"), "-XAtq", "-h", base, "-d", db, "-c", q).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	err = lab.Poll(ctx, 100*time.Millisecond, func() error {
		select {
		case err := <-ended:
			ended <- err
			return fmt.Errorf("the restored server ended: %w", err)
		default:
		}
		if out, err := query("postgres", "SELECT pg_is_in_recovery()"); err != nil || out != "f" {
			return lab.NotYet("recovery from the archive has not ended: %s (%v)", out, err)
		}
		return nil
	})
	if err != nil {
		text, _ := os.ReadFile(log.Name())
		s.t.Fatalf("%v; its log:\n%s", err, text)
	}
	const rows = "SELECT count(*), coalesce(sum(hashtextextended(client || ':' || seq, 0)), 0) FROM written"
	got, err := query("load", rows)
	s.must(err)
	primary := s.promoted("")
	want, err := s.lab.SQLIn(ctx, primary, "load", rows)
	s.must(err)
	if got != want {
		text, _ := os.ReadFile(log.Name())
		s.t.Errorf("restored from the archive alone (count|sum of all rows): %s, the primary %s has %s; the log of the recovery:\n%s", got, primary, want, text)
	}
	timeline := s.timeline(primary)
	if _, err := os.Stat(filepath.Join(base, "pg_wal", fmt.Sprintf("%08X.history", timeline))); err != nil {
		s.t.Errorf("the recovery did not come to timeline %d, which %s writes: %v", timeline, primary, err)
	}
	s.stage("restored from the archive alone, with all rows (count|sum): %s", got)
}

// asPostgres prepares a command outside of all nodes, as the user postgres; it has no network to speak of: the server
// listens on a socket only.
func (a *archiveTest) asPostgres(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}}
	return cmd
}
