package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// deaf is an attribute manager that takes nothing.
type deaf struct{ memory }

func (d *deaf) Publish(context.Context, baton.Bulletin) error {
	return errors.New("it does not answer")
}

// end shuts a server down, as an action that was killed may have.
func (p place) end(i *postgres.Instance) {
	p.t.Helper()
	pm := p.postmaster(i)
	pm.Signal(postgres.FastStop)
	for end := time.Now().Add(20 * time.Second); pm.Alive(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatalf("the server of %s does not end", i.DataDir)
		}
	}
}

// failing is a state directory in which nothing can be written, for root neither.
func (p place) failing() journal.Store {
	p.t.Helper()
	file := filepath.Join(p.dir, "no-directory")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		p.t.Fatal(err)
	}
	return journal.Store{Dir: filepath.Join(file, "state")}
}

// primaryClaim is what n1 claimed to become primary.
func primaryClaim() []baton.Claim {
	return []baton.Claim{{Seq: 1, Timeline: 1, Node: "n1", Nonce: "c", State: baton.Effective}}
}

// Ensure stop publishes the note that a demote saved and could not publish, and says nothing twice; and that it leaves a new one where
// somebody started the server again after its note, as the primary that it was: with the old one, whoever ends there would be
// promoted over what it wrote since.
func TestStop_Note(t *testing.T) {
	p := newPlace(t)
	i := p.primary()
	p.end(i)
	a, m := p.agent(i, "n1", "demote")
	a.state.Claims = primaryClaim()
	a.cluster = &deaf{memory: *m}
	f, err := a.look()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.leaveNote(within(t, 20*time.Second), f); err != nil || a.state.Note == nil {
		t.Fatalf("the note: %v, %v", a.state.Note, err)
	}
	first := *a.state.Note
	a.inv.Action, a.cluster = "stop", m
	for stop, want := range []int{1, 0} {
		m.published = nil
		if err := a.stop(within(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
		if len(m.published) != want || want > 0 && (m.published[0].Note == nil || m.published[0].Note.Nonce != first.Nonce) {
			t.Errorf("stop %d published %+v, want the note %s %d times", stop+1, m.published, first, want)
		}
	}

	p.start(i, "ready")
	sess, err := i.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := sess.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	sess.Close()
	m.published = nil
	if err := a.stop(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	if len(m.published) != 1 || !m.published[0].Note.NewerThan(&first) || m.published[0].Note.Kind != baton.Clean {
		t.Errorf("after a start by hand stop published %+v, want a note behind %s", m.published, first)
	}
}

// Ensure a primary that runs has used its own note up, though nobody said so when it was started: if it is lost, who has all up to that
// note has not everything.
func TestMonitor_BehindItsNote(t *testing.T) {
	p := newPlace(t)
	i := p.primary()
	a, _ := p.agent(i, "n1", "monitor")
	sentinelLives(t, a)
	a.cluster = &promoting{}
	a.state.Claims = primaryClaim()
	a.state.Note = &baton.Note{Kind: baton.Clean, Timeline: 1, Start: 0x1000028, End: 0x1000060, Node: "n1", Nonce: "N"}
	for range 2 {
		if err := a.examine(within(t, 20*time.Second)); err != nil {
			codeIs(t, "its monitor", err, 8)
		}
	}
	if len(a.state.Claims) != 1 || a.state.Claims[0].Seq != 2 || a.state.Claims[0].Note != "N" || a.ownNote() {
		t.Errorf("claims %+v, the note is good still: %t; want one that uses it up", a.state.Claims, a.ownNote())
	}
}

// Ensure a primary that cannot store a claim says nevertheless that it is writable: its silence would count as that of a node that is
// gone. One that is no primary stays silent, and neither says that it knows the claim.
func TestAnswerTo_CannotSave(t *testing.T) {
	p := newPlace(t)
	i := p.primary()
	challenge := &baton.Challenge{Nonce: "q", Claim: baton.Claim{Seq: 2, Timeline: 2, Parent: 1, Node: "n2", Nonce: "q", State: baton.Intended}}
	for _, writable := range []bool{true, false} {
		if !writable {
			p.end(i)
		}
		a, m := p.agent(i, "n1", "notify")
		a.store, a.state.Claims = p.failing(), primaryClaim()
		if err := a.answerTo(within(t, 20*time.Second), challenge); err == nil {
			t.Fatal("it could save: this shows nothing")
		}
		switch {
		case !writable && len(m.published) > 0:
			t.Errorf("one that is no primary published %+v", m.published)
		case writable && (len(m.published) != 1 || m.published[0].Answer == nil || !m.published[0].Answer.Writable || len(m.published[0].Claims) != 1):
			t.Errorf("a primary published %+v, want that it is writable, and its own claim alone", m.published)
		}
	}
}

// Ensure a standby that cannot save does not come back into the running after a refusal that it could not save either: the role would go
// to it, and back, again and again.
func TestMonitor_CannotSave(t *testing.T) {
	p := newPlace(t)
	first := p.primary()
	i := p.clone(first)
	p.start(i, "ready")
	a, _ := p.agent(i, "n2", "monitor")
	sentinelLives(t, a)
	m := &promoting{}
	a.cluster = m
	good := a.store
	if err := a.poll(within(t, 20*time.Second), "it to stream", 10*time.Millisecond, func() (bool, error) {
		sess, err := i.Connect(t.Context())
		if err != nil {
			return false, nil
		}
		defer sess.Close()
		v, err := sess.Standby(t.Context())
		return v.Streaming, err
	}); err != nil {
		t.Fatal(err)
	}
	m.scores = map[string]pacemaker.Score{"n2": pacemaker.NegInfinity}
	for _, saves := range []bool{false, true} {
		a.store = p.failing()
		if saves {
			a.store = good
		}
		a.vol.Score = pacemaker.NegInfinity.String()
		if err := a.examine(within(t, 20*time.Second)); err != nil {
			t.Log(err)
		}
		if raised := len(m.set) > 0; raised != saves {
			t.Errorf("it can save: %t; scores set: %v", saves, m.set)
		}
	}
}

// Ensure who brings a parked instance back ends no server that runs as what it should be, be that still noted as parked: it was promoted
// before its monitor came.
func TestBringBack_Serves(t *testing.T) {
	p := newPlace(t)
	i := p.primary()
	pm := p.postmaster(i)
	a, _ := p.agent(i, "n1", aftercareAction)
	a.vol.Parked = true
	a.saveVolatile()
	if err := a.bringBack(within(t, 30*time.Second)); err != nil {
		t.Log(err)
	}
	if now, err := i.Postmaster(); err != nil || now.PID != pm.PID || now.Status != "ready" {
		t.Errorf("the server is %+v, %v; want it left alone, pid %d", now, err, pm.PID)
	}
}

// Ensure the sentinel does not start a crashed primary in place once a stop has said that it is stopped, also if it says so at that moment.
func TestSentinel_Stopped(t *testing.T) {
	p := newPlace(t)
	i := p.primary()
	if _, err := i.KillLeftovers(t.Context()); err != nil {
		t.Fatal(err)
	}
	a, _ := p.agent(i, "n1", sentinelAction)
	vol := a.vol
	vol.Stopped = true
	if err := journal.SaveVolatile(a.inv.Resource, vol); err != nil {
		t.Fatal(err)
	}
	if err := a.restartInPlace(within(t, 20*time.Second)); !errors.Is(err, errStopped) || a.spawned.PID != 0 {
		t.Errorf("restarted (pid %d): %v; want %v", a.spawned.PID, err, errStopped)
	}
}

// Ensure the commands that make an instance anew can be run where it has tablespaces and its WAL is elsewhere, and that no commit waits
// for the copy by the name of the node.
func TestCloneCommands(t *testing.T) {
	p := newPlace(t)
	i := p.primary()
	space, wal := filepath.Join(p.dir, "a space"), filepath.Join(p.dir, "wal")
	sess, err := i.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sess.Close()
	if err := errors.Join(os.Mkdir(space, 0o700), os.Chown(space, int(i.Owner.UID), int(i.Owner.GID))); err != nil {
		t.Fatal(err)
	}
	p.run(i, "psql", "-h", p.dir, "-p", "5433", "-U", "postgres", "-c", "CREATE TABLESPACE s LOCATION '"+space+"'")
	p.end(i)
	if err := errors.Join(os.Rename(filepath.Join(i.DataDir, "pg_wal"), wal), os.Symlink(wal, filepath.Join(i.DataDir, "pg_wal"))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(i.DataDir, "postgresql.auto.conf"), []byte("primary_conninfo = 'host=10.0.0.9 user=r password=secret application_name=n1'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, _ := p.agent(i, "n1", "monitor")
	text := a.cloneCommands()
	for _, want := range []string{
		"find -H '" + space + "' -mindepth 1 -path '" + space + "/PG_*' -delete",
		"find " + wal + " -mindepth 1 -delete",
		"--waldir " + wal,
		"application_name=pg_basebackup",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %s", want)
		}
	}
	for _, not := range []string{"application_name=n1", "secret"} {
		if strings.Contains(text, not) {
			t.Errorf("has %s", not)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
	for _, info := range []string{
		"host=10.0.0.5 user=repl sslkey=/k sslpassword=geheim application_name=n1",
		"postgresql://repl:Ab/geheim@10.0.0.5/?application_name=n1",
		"host=a password=my geheim user=b application_name=n1",
	} {
		if err := os.WriteFile(filepath.Join(i.DataDir, "postgresql.auto.conf"), []byte("primary_conninfo = '"+info+"'\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{a.cloneCommands(), a.rewindCommand()} {
			if strings.Contains(text, "geheim") || strings.Contains(text, " $ ") || strings.HasPrefix(text, "$ ") {
				t.Errorf("%s: %s", info, text)
			}
		}
	}
}

// lingering leaves a postmaster that has been told to stop, has nothing to write any more and does not end. Only SIGKILL ends it.
func (p place) lingering(i *postgres.Instance) postgres.Postmaster {
	p.t.Helper()
	p.end(i)
	control := filepath.Join(i.DataDir, "global", "pg_control")
	shutDown, err := os.ReadFile(control)
	if err != nil {
		p.t.Fatal(err)
	}
	pm := p.start(i, "ready")
	p.signal(pm.PID, syscall.SIGSTOP)
	lock := filepath.Join(i.DataDir, "postmaster.pid")
	text, err := os.ReadFile(lock)
	if err != nil {
		p.t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	lines[7] = "stopping"
	if err := errors.Join(os.WriteFile(control, shutDown, 0o600), os.WriteFile(lock, []byte(strings.Join(lines, "\n")), 0o600)); err != nil {
		p.t.Fatal(err)
	}
	if ctl, err := pgdisk.ReadControl(i.DataDir); err != nil || ctl.State != pgdisk.ShutDown {
		p.t.Fatalf("pg_control: %s, %v", ctl.State, err)
	}
	return pm
}

// Ensure what pg_rewind brings of the primary's WAL that waits to be archived is neither archived here, half copied as it may be, nor kept.
func TestArchiveKept_Foreign(t *testing.T) {
	p := newPlace(t)
	i := p.primary("-c", "archive_mode=on", "-c", "archive_command=touch "+p.dir+"/archived")
	p.end(i)
	os.Remove(filepath.Join(p.dir, "archived")) // by the server itself
	a, _ := p.agent(i, "n1", aftercareAction)
	keep := filepath.Join(i.DataDir, "pg_wal", keepDir)
	if err := errors.Join(os.Mkdir(keep, 0o700), os.WriteFile(filepath.Join(keep, "000000010000000000000007"), []byte("half"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := a.store.SaveRewind(journal.Rewind{DataDir: i.DataDir, Began: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if err := a.archiveKept(within(t, 5*time.Second)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(p.dir, "archived")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("archived while a rewind is under way (%v)", err)
	}
	if err := a.dropForeign(); err != nil || a.kept() != 0 {
		t.Errorf("%d files are still kept (%v)", a.kept(), err)
	}
}

// Ensure what is put in force for the duration of a change of roles is in force, and is taken back also if somebody used ALTER SYSTEM
// meanwhile, which removes the mark of it; and that what the user has set stays.
func TestOverride_AlterSystem(t *testing.T) {
	p := newPlace(t)
	i := p.primary()
	sql := func(text string) { p.run(i, "psql", "-h", p.dir, "-p", "5433", "-U", "postgres", "-c", text) }
	shows := func(want string) {
		t.Helper()
		p.postmaster(i).Signal(postgres.Reload)
		a, _ := p.agent(i, "n1", "monitor")
		got := ""
		if err := a.poll(within(t, 10*time.Second), "the reload", 10*time.Millisecond, func() (bool, error) {
			sess, err := i.Connect(t.Context())
			if err != nil {
				return false, err
			}
			defer sess.Close()
			got, err = sess.Setting(t.Context(), "wal_sender_timeout")
			return got == want, err
		}); err != nil {
			t.Errorf("wal_sender_timeout is %s, want %s", got, want)
		}
	}
	sql("ALTER SYSTEM SET wal_sender_timeout = '30s'")
	if changed, err := i.Override([2]string{"wal_sender_timeout", "2s"}); !changed || err != nil {
		t.Fatal(changed, err)
	}
	shows("2s")
	sql("ALTER SYSTEM SET work_mem = '7MB'")
	if text, err := os.ReadFile(filepath.Join(i.DataDir, "postgresql.auto.conf")); err != nil || strings.Contains(string(text), "# pgbaton") {
		t.Fatalf("%v: the mark has survived, so this shows nothing:\n%s", err, text)
	}
	shows("2s")
	if changed, err := i.Override(); !changed || err != nil {
		t.Errorf("taken back: %t, %v", changed, err)
	}
	shows("30s")
}
