package agent

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// silent is a cluster that does not answer.
type silent struct{ memory }

func (silent) Ours(ctx context.Context) (bool, error) {
	<-ctx.Done()
	return false, ctx.Err()
}

// Ensure the sentinel, which lives for a year, does not wait for a Pacemaker that does not answer: nobody watches the server
// meanwhile.
func TestSentinel_SilentCluster(t *testing.T) {
	a, _ := newPlace(t).agent(&postgres.Instance{}, "n1", sentinelAction)
	a.cluster = &silent{}
	began := time.Now()
	if !a.ours(t.Context()) {
		t.Error("a resource of which nothing could be found out counts as another agent's")
	}
	if took := time.Since(began); took > oursLimit+time.Second {
		t.Errorf("waited for %s, expected %s", took, oursLimit)
	}
}

// Ensure what outlives the action that started it does not go by its plan: a sentinel that was started by a promotion waited
// five seconds for the word of the primary before that when it had a standby to start, and a monitor reported a failure.
func TestEnvironment(t *testing.T) {
	env := ocf.Env{"OCF_RESKEY_CRM_meta_notify_promoted_uname": "n9", "OCF_RESKEY_CRM_meta_notify_demote_uname": "n9", "OCF_RESKEY_datadir": "/data"}
	for action, known := range map[string]bool{sentinelAction: false, rejoinAction: false, answerAction: true, aftercareAction: true, "promote": true} {
		got := environment(action, env)
		if plan := pacemaker.ParsePlan(got); plan.Known() != known || got["OCF_RESKEY_datadir"] != "/data" {
			t.Errorf("%s: knows a plan: %t, want %t; its environment: %v", action, plan.Known(), known, got)
		}
	}
}

// Ensure a sentinel that began with other parameters than those of the last action knows it, and that a monitor which the sentinel
// itself runs does not hand its own on as new ones: it would start a crashed primary on the port that it had before.
func TestRenewSentinel(t *testing.T) {
	p := newPlace(t)
	sentinel, _ := p.agent(&postgres.Instance{}, "n1", sentinelAction)
	sentinel.params.PGPort = 5432
	if sentinel.outdated() {
		t.Error("outdated before any action has said what is in force")
	}
	act := func(port int, tending, want bool) {
		t.Helper()
		a, _ := p.agent(&postgres.Instance{}, "n1", "monitor")
		a.vol = journal.LoadVolatile(a.inv.Resource)
		a.params.PGPort, a.tending = port, tending
		a.renewSentinel()
		if got := sentinel.outdated(); got != want {
			t.Errorf("after an action with port %d (of the sentinel: %t): outdated: %t, want %t", port, tending, got, want)
		}
	}
	act(5432, false, false)
	act(5433, true, false)
	act(5433, false, true)
	act(5432, true, true)
	act(5432, false, false)
}

// sentinelLives has this test hold what a sentinel holds as long as it lives.
func sentinelLives(t *testing.T, a *Agent) {
	t.Helper()
	release, err := a.flock(within(t, time.Second), "sentinel.lock")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
}

func codeIs(t *testing.T, what string, err error, want ocf.ExitCode) {
	t.Helper()
	var role roleCode
	if !errors.As(err, &role) || role.code != want {
		t.Errorf("%s: %v (%d), want %d", what, err, role.code, want)
	}
}

// Ensure a hung primary is reported as failed when the sentinel, which was to see to it, hangs itself, with the lock: what
// it writes to may be on the same disk. Pacemaker then has the node fenced.
func TestMonitor_SentinelHangs(t *testing.T) {
	p := newPlace(t)
	i := p.primary()
	a, _ := p.agent(i, "n1", "monitor")
	sentinelLives(t, a)
	a.unlocked = true
	now := time.Now()
	a.vol.Stall = &baton.Stall{Since: now.Add(-time.Minute), Last: now.Add(-5 * time.Second), Looks: 9, PID: 1, What: "pid 1 waits"}
	err := a.examine(within(t, 10*time.Second))
	var role roleCode
	if errors.As(err, &role) && role.code == ocf.FailedPromoted {
		t.Errorf("%v; want the sentinel to have its time", err)
	}
	a.vol.Stall.Last = now.Add(-lockedFor - time.Second)
	codeIs(t, "the sentinel has not done anything", a.examine(within(t, 10*time.Second)), ocf.FailedPromoted)
}

// Ensure a monitor that finds a crashed standby, and waits for the sentinel to start it, sees that the sentinel found it
// diverged and keeps it out: that is no failure.
func TestMonitor_SentinelKeepsOut(t *testing.T) {
	p := newPlace(t)
	i := p.clone(p.primary())
	a, _ := p.agent(i, "n1", "monitor")
	sentinelLives(t, a)
	a.release = func() {}
	go func() {
		time.Sleep(300 * time.Millisecond)
		journal.SaveVolatile(a.inv.Resource, journal.Volatile{Out: &journal.Out{Rejoin: baton.Rewind, Reason: "it has diverged"}})
	}()
	began := time.Now()
	codeIs(t, "kept out by the sentinel", a.monitor(within(t, 10*time.Second)), ocf.Degraded)
	if took := time.Since(began); took > sentinelLimit {
		t.Errorf("waited for %s", took)
	}
}

// Ensure a client whose role has the name of a process of the server's is not taken for it.
func TestIsKind(t *testing.T) {
	for title, want := range map[string][2]bool{
		"walreceiver":                                  {true, false},
		"walreceiver streaming 0/3000000":              {true, false},
		"walreceiver idle":                             {true, false},
		"walreceiver app 10.0.0.9(4711) idle":          {false, false},
		"walreceiver_ro app [local] idle":              {false, false},
		"startup":                                      {false, true},
		"startup recovering 000000010000000000000003":  {false, true},
		"startup waiting for 000000010000000000000003": {false, true},
		"startup postgres [local] idle":                {false, false},
		"checkpointer":                                 {false, false},
	} {
		if got := [2]bool{receives(title), isKind(title, "startup", "recovering", "waiting")}; got != want {
			t.Errorf("%q: WAL receiver, startup process: %v, want %v", title, got, want)
		}
	}
}
