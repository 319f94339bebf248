package agent

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// These tests run one action's part against a real server. Of Pacemaker there is only a memory of what was published: what
// the cluster makes of it is tested in e2e.

const serverBin = "/usr/lib/postgresql/15/bin"

// memory is a cluster of one node that does as it is told.
type memory struct {
	Cluster
	published []baton.Bulletin
	score     pacemaker.Score
	status    string
	alone     bool   // without quorum
	held      string // its role
	scores    map[string]pacemaker.Score
}

func (m *memory) Publish(_ context.Context, b baton.Bulletin) error {
	m.published = append(m.published, b)
	return nil
}

func (m *memory) Bulletins(context.Context) ([]baton.Bulletin, error) { return m.published, nil }

func (m *memory) SetScore(_ context.Context, _ string, s pacemaker.Score) error {
	m.score = s
	return nil
}

func (m *memory) ScoreInCIB(context.Context, string) (pacemaker.Score, bool, error) {
	return m.score, true, nil
}

func (m *memory) DeleteScore(context.Context, string) error { return nil }

func (m *memory) Held(context.Context) (string, error) {
	return cmp.Or(m.held, pacemaker.RoleUnpromoted), nil
}

func (m *memory) Order(context.Context, string) (*baton.Order, error) { return nil, nil }

func (m *memory) PromotedBut(context.Context, string) (string, error) { return "", nil }

func (m *memory) Scores(context.Context) (map[string]pacemaker.Score, error) { return m.scores, nil }

func (m *memory) SetStatus(_ context.Context, text string) error {
	m.status = text
	return nil
}

func (m *memory) Quorate(context.Context) (bool, error) { return !m.alone, nil }

func (m *memory) Votes(context.Context) (baton.Votes, error) {
	return baton.Votes{Expected: 3, Quorum: 2}, nil
}

func (m *memory) StatusInCIB(context.Context, string) (string, error) { return m.status, nil }

func (m *memory) RecordedClaims(context.Context, uint64) ([]baton.Claim, error) { return nil, nil }

// place is a directory for servers that the user postgres can reach.
type place struct {
	t   *testing.T
	dir string
}

func newPlace(t *testing.T) place {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("servers run as another user: run this test as root")
	}
	dir, err := os.MkdirTemp("", "pgbaton")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return place{t, dir}
}

func (p place) instance(name, port string, args ...string) *postgres.Instance {
	p.t.Helper()
	owner, err := postgres.LookupAccount("postgres")
	if err != nil {
		p.t.Fatal(err)
	}
	data := filepath.Join(p.dir, name)
	i := &postgres.Instance{
		DataDir: data, ConfigDir: data, BinDir: serverBin, SocketDir: p.dir, Port: 5433, LogFile: filepath.Join(p.dir, name+".log"), Owner: owner,
		StartArgs: append([]string{"-c", "port=" + port, "-c", "unix_socket_directories=" + p.dir, "-c", "listen_addresses=", "-c", "fsync=off"}, args...),
	}
	p.t.Cleanup(func() { i.KillLeftovers(context.Background()) })
	return i
}

func (p place) run(i *postgres.Instance, program string, args ...string) {
	p.t.Helper()
	cmd := exec.Command(filepath.Join(serverBin, program), args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: i.Owner.UID, Gid: i.Owner.GID}}
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("%s: %v: %s", program, err, out)
	}
}

// primary makes a server and starts it.
func (p place) primary(args ...string) *postgres.Instance {
	p.t.Helper()
	i := p.instance("primary", "5433", args...)
	p.run(i, "initdb", "-D", i.DataDir, "-U", "postgres", "-A", "trust", "--no-sync")
	p.start(i, "ready")
	return i
}

// clone takes a base backup of it, which has never run.
func (p place) clone(of *postgres.Instance) *postgres.Instance {
	p.t.Helper()
	i := p.instance("clone", "5434")
	i.Port = 5434
	p.run(i, "pg_basebackup", "-h", of.SocketDir, "-p", "5433", "-U", "postgres", "-D", i.DataDir, "-R", "-c", "fast", "--no-sync")
	return i
}

func (p place) start(i *postgres.Instance, status string) postgres.Postmaster {
	p.t.Helper()
	if _, err := i.Spawn(); err != nil {
		p.t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if pm, err := i.Postmaster(); err == nil && pm.Status == status {
			return pm
		}
	}
	text, _ := os.ReadFile(i.LogFile)
	p.t.Fatalf("the server of %s is not %q after 20 s: %s", i.DataDir, status, text)
	return postgres.Postmaster{}
}

func (p place) postmaster(i *postgres.Instance) postgres.Postmaster {
	p.t.Helper()
	pm, err := i.Postmaster()
	if err != nil {
		p.t.Fatal(err)
	}
	return pm
}

// agent is one that runs an action on an instance.
func (p place) agent(i *postgres.Instance, node, action string) (*Agent, *memory) {
	p.t.Helper()
	m := &memory{}
	a := &Agent{
		pg: i, cluster: m, clock: realClock{}, log: &Log{Logger: slog.New(fanout(nil))},
		store: journal.Store{Dir: filepath.Join(p.dir, "state-"+node)}, details: map[string]string{}, stderr: p.t.Output(), began: time.Now(),
	}
	a.inv = ocf.Invocation{Action: action, Node: node, Resource: filepath.Base(p.dir) + "-" + node}
	p.t.Cleanup(func() { os.RemoveAll(journal.RunDir(a.inv.Resource)) })
	return a, m
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// Ensure a standby that was started on a crashed primary's data directory is never taken for a primary, also while its
// postmaster has not written its status yet: it would answer that it is writable, and spoil the takeover.
func TestLook_CrashedThenStandby(t *testing.T) {
	p := newPlace(t)
	i := p.primary("-c", "shared_buffers=1GB", "-c", "shared_preload_libraries=auto_explain")
	if _, err := i.KillLeftovers(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := i.SetStandbySignal(); err != nil {
		t.Fatal(err)
	}
	a, _ := p.agent(i, "n1", "monitor")
	if _, err := i.Spawn(); err != nil {
		t.Fatal(err)
	}
	seen := map[role]int{}
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond / 2) {
		f, err := a.look()
		if err != nil {
			continue
		}
		seen[f.role]++
		if f.role == primary {
			t.Fatalf("taken for a primary: postmaster's status %q, pg_control %q", f.postmaster.Status, f.control.State)
		}
	}
	if seen[standby] == 0 {
		t.Errorf("roles seen: %v; never a standby, so this shows nothing", seen)
	}
}

// Ensure a clone that never ran leaves no note, although its pg_control, a copy of the primary's, says "in production":
// the note would stand in the way of every takeover from the primary, which lives. A primary that crashed does leave one.
func TestStop_CloneThatNeverRan(t *testing.T) {
	p := newPlace(t)
	clone := p.clone(p.primary())
	ctl, err := pgdisk.ReadControl(clone.DataDir)
	if err != nil || ctl.State != pgdisk.InProduction {
		t.Fatalf("pg_control of the clone: %v, %v; this shows nothing", ctl.State, err)
	}
	a, m := p.agent(clone, "n3", "stop")
	if err := a.stop(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	if a.state.Note != nil || len(m.published) > 0 {
		t.Errorf("note %v, published %d bulletins; want none", a.state.Note, len(m.published))
	}

	a.state.Claims = []baton.Claim{{Seq: 1, Timeline: 1, Node: "n3", Nonce: "c", State: baton.Effective}}
	if err := a.stop(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	if a.state.Note == nil || a.state.Note.Kind != baton.Crash || a.state.Note.Timeline != 1 {
		t.Errorf("note of a crashed primary: %v; want a crash note of timeline 1", a.state.Note)
	}
}

// Ensure a standby that is stopped while a primary runs writes down that it leaves, also where its server has died before
// and there is nothing to stop, and where it has only booted and Pacemaker's plan says that there is a primary: otherwise it
// would vouch, days later, that nobody has more.
func TestStop_Leaves(t *testing.T) {
	p := newPlace(t)
	old := p.primary()
	i := p.clone(old)
	p.start(i, "ready")
	for _, tt := range []struct {
		name   string
		died   bool
		live   bool
		demote []string
		alone  bool
		want   bool
	}{
		{"nobody is known to be primary", false, false, []string{"n1"}, false, false},
		{"its server has died", true, true, nil, false, true},
		{"nothing left of it to stop", true, false, nil, false, true},
		{"it runs, and has seen a primary", false, true, []string{"n1"}, false, true},
		{"its node has lost the quorum", false, true, []string{"n1"}, true, true},
	} {
		if pm, err := i.Postmaster(); !tt.died && err != nil {
			p.start(i, "ready")
		} else if tt.died && err == nil {
			pm.Signal(syscall.SIGKILL)
			i.KillLeftovers(t.Context())
		}
		a, _ := p.agent(i, "n3", "stop")
		a.vol.Live = tt.live
		a.cluster.(*memory).alone = tt.alone
		a.plan.Promoted, a.plan.Demote = []string{"n1"}, tt.demote
		if err := a.stop(within(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
		if st, err := a.store.Load(); err != nil || (st.Left != nil) != tt.want || st.Away == tt.alone {
			t.Errorf("%s: it left: %+v, away %t (%v), want %t", tt.name, st.Left, st.Away, err, tt.want)
		}
		os.RemoveAll(a.store.Dir)
	}

	// An old primary that does not start as a standby of the new one has answered for its claim, and knows no more of it.
	old.KillLeftovers(t.Context())
	for _, restarts := range []bool{true, false} {
		a, _ := p.agent(old, "n1", "stop")
		a.vol.Live, a.vol.Saw = true, 2
		if a.plan.Stop = []string{"n1"}; restarts {
			a.plan.Start = a.plan.Stop
		}
		if err := a.stop(within(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
		if v := journal.LoadVolatile(a.inv.Resource); a.state.Left != nil || v.Live != restarts || (v.Saw == 2) != restarts {
			t.Errorf("an old primary that is stopped and started: %t; left %+v, live %t, saw the claim %d", restarts, a.state.Left, v.Live, v.Saw)
		}
	}
}

// Ensure a standby that somebody else has stopped does not vouch for what has been since, when it is started again.
func TestNoticeAbsence(t *testing.T) {
	a, _ := newPlace(t).agent(&postgres.Instance{}, "n3", "start")
	for _, tt := range []struct {
		role    role
		stopped bool
		there   bool
	}{{down, true, true}, {parkedDown, false, true}, {standby, false, true}, {down, false, false}} {
		a.vol = journal.Volatile{Live: true, Saw: 7, Stopped: tt.stopped}
		a.noticeAbsence(facts{role: tt.role})
		if a.vol.Live != tt.there || (a.vol.Saw == 7) != tt.there {
			t.Errorf("role %d, stopped by an action: %t; live %t, saw %d, want %t", tt.role, tt.stopped, a.vol.Live, a.vol.Saw, tt.there)
		}
	}
	if v := journal.LoadVolatile(a.inv.Resource); v.Live {
		t.Error("it is not written down")
	}
}

// Ensure the sentinel does not start what Pacemaker has just stopped. A stop that had to use force leaves a pg_control
// like that of a crash, and the cluster's status shows the instance for a moment longer.
func TestSentinel_AfterStop(t *testing.T) {
	p := newPlace(t)
	i := p.clone(p.primary())
	pm := p.start(i, "ready")
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		ctl, err := pgdisk.ReadControl(i.DataDir)
		if err == nil && ctl.State == pgdisk.InArchiveRecovery {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("pg_control of the standby: %v, %v", ctl.State, err)
		}
	}
	if _, err := i.KillLeftovers(t.Context()); err != nil {
		t.Fatal(err)
	}
	sentinel := func() {
		t.Helper()
		a, _ := p.agent(i, "n3", sentinelAction)
		var revivals []time.Time
		if _, err := a.mourn(within(t, 20*time.Second), pm, &revivals); err != nil {
			t.Fatal(err)
		}
	}
	stop, _ := p.agent(i, "n3", "stop")
	if err := stop.stop(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	sentinel()
	time.Sleep(100 * time.Millisecond)
	if pm, err := i.Postmaster(); !errors.Is(err, postgres.ErrNotRunning) {
		t.Fatalf("a stopped instance runs again: pid %d, %v", pm.PID, err)
	}

	// Of a crash it does.
	a, _ := p.agent(i, "n3", "monitor")
	a.vol.Stopped = false
	a.saveVolatile()
	sentinel()
	if _, err := i.Postmaster(); err != nil {
		t.Errorf("a crashed standby: %v; want it started again", err)
	}
}

// recording is a cluster that has a claim in its configuration.
type recording struct {
	memory
	claim *baton.Claim
}

func (r *recording) RecordClaim(_ context.Context, _ uint64, c baton.Claim) error {
	r.claim = &c
	return nil
}

func (r *recording) ForgetClaim(context.Context, string) error {
	r.claim = nil
	return nil
}

func (r *recording) ScoreInCIB(context.Context, string) (pacemaker.Score, bool, error) {
	return pacemaker.NegInfinity, true, nil
}

// Ensure a claim that was recorded in the cluster's configuration does not stand there once it is withdrawn: a node that
// reads it when the one that made it is gone would take it for a timeline that may hold rows, and nobody would be promoted.
func TestRefuse_Recorded(t *testing.T) {
	p := newPlace(t)
	claim := baton.Claim{Seq: 2, Timeline: 3, Parent: 2, Node: "n2", Nonce: "c2", State: baton.Intended}
	for _, tt := range []struct {
		state baton.ClaimState
		kept  bool
	}{{baton.Intended, false}, {baton.Claimed, true}} {
		a, _ := p.agent(&postgres.Instance{DataDir: p.dir}, "n2", "notify")
		m := &recording{claim: &claim}
		a.cluster = m
		claim.State = tt.state
		a.state.Claims = []baton.Claim{claim}
		a.vol.Recorded = claim.Nonce
		if err := a.refuse(within(t, 10*time.Second), "why", nil, claim.Seq); err != nil {
			t.Fatal(err)
		}
		if (m.claim != nil) != tt.kept {
			t.Errorf("a claim that was %s: in the configuration: %v, want it kept: %t", tt.state, m.claim, tt.kept)
		}
		os.RemoveAll(a.store.Dir)
	}
}

// Ensure a state that cannot be read is not written over: what a newer release, or this one before a disk error, knew
// would be lost, and the node would say that it had stored what it has not.
func TestState_NotOverwritten(t *testing.T) {
	p := newPlace(t)
	a, m := p.agent(&postgres.Instance{DataDir: p.dir}, "n1", "notify")
	path := filepath.Join(a.store.Dir, "state.json")
	const newer = `{"version":2,"claims":["from a newer release"]}`
	if err := errors.Join(os.MkdirAll(a.store.Dir, 0o755), os.WriteFile(path, []byte(newer), 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := a.loadState(); err == nil {
		t.Fatal("it was read")
	}
	challenge := &baton.Challenge{Nonce: "q", Claim: baton.Claim{Seq: 9, Timeline: 8, Parent: 7, Node: "n2", Nonce: "q", State: baton.Intended}}
	if err := a.answerTo(t.Context(), challenge); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("answer: %v; want an error that names %s", err, path)
	}
	if len(m.published) > 0 {
		t.Error("it answered that it had stored the claim")
	}
	if got, _ := os.ReadFile(path); string(got) != newer {
		t.Errorf("the file is now %s", got)
	}
}

// Ensure that root removes nothing outside of pg_wal on behalf of the server's user, who may put a link where WAL waits to
// be archived, and that a file which is no WAL does not hold up those that are.
func TestArchiveKept_Links(t *testing.T) {
	p := newPlace(t)
	i := p.primary("-c", "archive_mode=on", "-c", "archive_command=true")
	a, _ := p.agent(i, "n1", aftercareAction)
	const segment = "000000010000000000000001"
	victim := filepath.Join(p.dir, "victim")
	keep := filepath.Join(i.DataDir, "pg_wal", keepDir)
	if err := errors.Join(os.Mkdir(victim, 0o700), os.WriteFile(filepath.Join(victim, segment), nil, 0o600), os.Symlink(victim, keep)); err != nil {
		t.Fatal(err)
	}
	if err := a.archiveKept(within(t, 10*time.Second)); err == nil {
		t.Errorf("a link in place of %s: no error", keep)
	}
	if _, err := os.Stat(filepath.Join(victim, segment)); err != nil {
		t.Errorf("removed through a link: %v", err)
	}

	if err := errors.Join(os.Remove(keep), os.Mkdir(keep, 0o700), os.WriteFile(filepath.Join(keep, "notes.txt"), nil, 0o600), os.WriteFile(filepath.Join(keep, segment), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := a.archiveKept(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(keep, segment)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s was not archived: %v", segment, err)
	}
	if _, err := os.Stat(filepath.Join(keep, "notes.txt")); err != nil {
		t.Errorf("a file that is no WAL: %v; want it left alone", err)
	}
}

// Ensure that nothing runs with root's group while the name service cannot say which groups the server's user is in.
func TestInstance_UnknownAccount(t *testing.T) {
	p := newPlace(t)
	a, _ := p.agent(&postgres.Instance{}, "n1", "monitor")
	a.env = ocf.Env{"OCF_RESKEY_system_user": "of-a-directory", "OCF_RESKEY_datadir": p.dir}
	a.params, a.invalid = ocf.ParseParams(a.env)
	a.state.Instance = &journal.InstanceRecord{DataDir: p.dir, Owner: "of-a-directory", UID: 12345}
	if err := a.instance().Shell(t.Context(), "true"); !errors.Is(err, postgres.ErrUnknownAccount) {
		t.Errorf("a record of a release that did not keep groups: %v; want %v", err, postgres.ErrUnknownAccount)
	}
	if _, err := (postgres.Tool{}).Run(t.Context(), a.instance(), "psql"); !errors.Is(err, postgres.ErrUnknownAccount) {
		t.Errorf("a program of a rewind: %v; want %v", err, postgres.ErrUnknownAccount)
	}
	a.state.Instance.GID, a.state.Instance.Groups = 12346, []uint32{12346, 12347}
	out := filepath.Join(p.dir, "out")
	if err := a.instance().Shell(t.Context(), "id -u >"+out+"; id -G >>"+out); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(out); string(got) != "12345\n12346 12347\n" {
		t.Errorf("runs as %q, want uid 12345 and groups 12346 12347", got)
	}
}

// Ensure that after a pg_upgrade, which makes another database cluster on timeline 1, what was known of the old one does not
// stand in the way.
func TestIdentify(t *testing.T) {
	p := newPlace(t)
	a, m := p.agent(&postgres.Instance{DataDir: p.dir}, "n1", "start")
	a.state.SystemID = 7
	a.state.Note = &baton.Note{Kind: baton.Clean, SystemID: 7, Timeline: 7, Start: 0x100, End: 0x110, Node: "n1", Nonce: "old"}
	a.state.Claims = []baton.Claim{{Seq: 8, Timeline: 7, Parent: 6, Node: "n1", Nonce: "c8", State: baton.Effective}}
	a.state.Refusal, a.state.Left = &baton.Refusal{Note: "old"}, &baton.Left{Primary: "n2", Timeline: 7}
	a.vol.Live, a.vol.Saw = true, 8
	a.state.Participants = []string{"n1", "n2"}
	if a.identify(pgdisk.Control{SystemIdentifier: 7}) || a.state.Note == nil {
		t.Error("the same database cluster: something changed")
	}
	m.published = []baton.Bulletin{{Node: "n2", SystemID: 7, Note: a.state.Note}, {Node: "n3", SystemID: 8}, {Node: "n4"}}
	if !a.identify(pgdisk.Control{SystemIdentifier: 8}) || a.state.Note != nil || a.state.Claims != nil || a.state.Refusal != nil {
		t.Errorf("another one: %+v; want nothing of the old one", a.state)
	}
	if a.state.Left != nil || a.vol.Live || a.vol.Saw != 0 {
		t.Errorf("left %+v, live %t, saw the claim %d; what comes now has claims with these numbers, too", a.state.Left, a.vol.Live, a.vol.Saw)
	}
	if len(a.state.Participants) != 2 {
		t.Errorf("participants %v; want them kept", a.state.Participants)
	}
	list, err := a.bulletins(t.Context())
	if err != nil || len(list) != 2 || list[0].Node != "n3" || list[1].Node != "n4" {
		t.Errorf("bulletins %+v, %v; want those of n3 and n4", list, err)
	}
}

// Ensure a challenge that an attempt left which was cut short is not answered once somebody else has tried since: its
// target asks anew, and would find nobody who listens.
func TestInForce(t *testing.T) {
	p := newPlace(t)
	a, _ := p.agent(&postgres.Instance{DataDir: p.dir}, "n3", "notify")
	a.plan.Promote = []string{"n1"}
	claim := func(seq uint64, node string) baton.Claim {
		return baton.Claim{Seq: seq, Timeline: 10 + pgdisk.TimelineID(seq), Node: node, Nonce: node + "-asked", State: baton.Intended}
	}
	left := claim(4, "n1")
	list := []baton.Bulletin{{Node: "n1", Claims: []baton.Claim{left}, Challenge: &baton.Challenge{Nonce: left.Nonce, Claim: left}}}
	if c := a.unanswered(list); c == nil || c.Nonce != left.Nonce {
		t.Errorf("the newest attempt: %v; want its challenge", c)
	}
	list = append(list, baton.Bulletin{Node: "n2", Claims: []baton.Claim{claim(5, "n2")}})
	if c := a.unanswered(list); c != nil {
		t.Errorf("an attempt that another followed: %v; want to wait for the next challenge", c)
	}
}

// removed is a cluster of whose resource one can tell whether it is still there.
type removed struct {
	memory
	ours    bool
	deleted int
}

func (r *removed) Ours(context.Context) (bool, error) { return r.ours, nil }

func (r *removed) DeleteScore(context.Context, string) error {
	r.deleted++
	return nil
}

// Ensure the score that a stop leaves to an instance that was kept out goes with the resource, and not before; and not if it
// was started again or the score is another agent's.
func TestUnmark(t *testing.T) {
	for _, tt := range []struct {
		name    string
		ours    bool
		stopped bool
		score   pacemaker.Score
		want    int
	}{
		{"removed", false, true, pacemaker.NegInfinity, 1},
		{"started again", true, false, pacemaker.NegInfinity, 0},
		{"removed, and made again", false, false, pacemaker.NegInfinity, 0},
		{"another agent's", false, true, 1001, 0},
	} {
		a, _ := newPlace(t).agent(&postgres.Instance{}, "n1", unmarkAction)
		c := &removed{ours: tt.ours}
		c.score, a.cluster = tt.score, c
		a.vol.Stopped = tt.stopped
		a.saveVolatile()
		if err := a.unmark(t.Context()); err != nil || c.deleted != tt.want {
			t.Errorf("%s: deleted %d times, %v; want %d", tt.name, c.deleted, err, tt.want)
		}
	}
}

// Ensure it is not held against an instance that the agent itself closed it, to have it rewound, nor that pg_control speaks of
// another record than the last.
func TestJudge_Closed(t *testing.T) {
	at := pgdisk.Position{Timeline: 2, LSN: 0x30000A0}
	for _, tt := range []struct {
		name      string
		recovered bool
		start     pgdisk.LSN
		want      baton.Rejoin
	}{
		{"started by hand", false, 0x3000028, baton.Await},
		{"recovered by the agent", true, 0x3000028, baton.Follow},
		{"another record", false, 0x3000020, baton.Follow},
	} {
		a, _ := newPlace(t).agent(&postgres.Instance{DataDir: t.TempDir()}, "n1", "start")
		a.state.Claims = []baton.Claim{{Seq: 1, Timeline: 2, Parent: 1, Switch: 0x2000000, Node: "n2", Nonce: "x", State: baton.Effective}}
		a.state.Recovered = tt.recovered
		self := baton.Candidate{Node: "n1", Position: at, Last: &baton.LastRecord{Start: tt.start, End: at.LSN, ShutdownCheckpoint: true}}
		got := a.judge(t.Context(), self, pgdisk.Control{State: pgdisk.ShutDown, CheckPoint: 0x3000028, CheckPointTimeline: 2})
		if got.Rejoin != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// Ensure the sentinel does not start a crashed primary that has said how it ended: whoever has just that would be promoted over
// what it writes then.
func TestSentinel_AfterNote(t *testing.T) {
	p := newPlace(t)
	i := p.primary()
	pm, err := i.Postmaster()
	if err == nil {
		_, err = i.KillLeftovers(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, noted := range []bool{true, false} {
		a, m := p.agent(i, "n1", sentinelAction)
		m.held = pacemaker.RolePromoted
		st := journal.State{Claims: []baton.Claim{{Seq: 1, Timeline: 1, Node: "n1", Nonce: "c", State: baton.Effective}}}
		if noted {
			st.Note = &baton.Note{Kind: baton.Crash, Timeline: 1, Start: 1, End: 2, Node: "n1", Nonce: "n"}
		}
		if err := a.store.Save(st); err != nil {
			t.Fatal(err)
		}
		var revivals []time.Time
		if _, err := a.mourn(within(t, 20*time.Second), pm, &revivals); err != nil {
			t.Fatal(err)
		}
		if _, err := i.Postmaster(); (err != nil) != noted {
			t.Errorf("it has left a note: %t; the server after that: %v", noted, err)
		}
	}
}
