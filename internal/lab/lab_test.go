package lab_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/load"
)

func TestMain(m *testing.M) {
	lab.RunHelper()
	os.Exit(m.Run())
}

// up makes a lab for one test, and shows its logs if the test fails.
func up(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the lab makes namespaces: run this test as root")
	}
	if err := lab.Sweep("labtest-"); err != nil {
		t.Fatal(err)
	}
	o.Name = fmt.Sprintf("labtest-%d-%s", os.Getpid(), strings.ToLower(t.Name()))
	o.Lifeline = true
	o.Log = t.Output()
	begin := time.Now()
	l, err := lab.Up(within(t, 90*time.Second), o)
	if l != nil {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			if t.Failed() {
				l.Dump(ctx, t.Output())
			}
			if err := l.Down(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("up in %.1f s", time.Since(begin).Seconds())
	return l
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Ensure a cluster with Debian's agent comes up, moves its primary under load without
// loss or overlap, survives a loss of power and a cut, and is gone after its
// supervisor was killed.
func TestLab(t *testing.T) {
	l := up(t, lab.Options{})
	must(t, l.Healthy(within(t, 10*time.Second)))

	t.Run("nodes are apart from the host", func(t *testing.T) { testApart(t, l) })
	t.Run("move under load", func(t *testing.T) { testMove(t, l) })
	t.Run("cut and heal", func(t *testing.T) { testCut(t, l) })
	t.Run("half a record", func(t *testing.T) { testHalfRecord(t, l) })
	t.Run("power off and on", func(t *testing.T) { testPower(t, l) })
	t.Run("reset", func(t *testing.T) { testReset(t, l) })
	t.Run("the oracle sees", func(t *testing.T) { testOracle(t, l) })
	t.Run("kill", func(t *testing.T) { testKill(t, l) })
}

func testApart(t *testing.T, l *lab.Lab) {
	ctx := within(t, 20*time.Second)
	out, err := l.Run(ctx, "n2", "sh", "-c", "hostname; ls /sys/class/net; ls /var/lib/pgbaton-lab; echo x >/usr/n2-was-here")
	must(t, err)
	if out != "n2\neth0\nlo" {
		t.Errorf("host name, interfaces and other labs as n2 sees them: %q", out)
	}
	if _, err := os.Stat("/usr/n2-was-here"); err == nil {
		t.Error("a node wrote to the host's /usr")
	}
	if out, err := l.Run(ctx, "n1", "ls", "/usr"); err != nil || strings.Contains(out, "n2-was-here") {
		t.Errorf("n1 sees what n2 wrote: %q, %v", out, err)
	}
	if out, err := l.SQL(ctx, "n2", "SHOW cluster_name"); err != nil || out != "n2" {
		t.Errorf("SQL on n2 reached %q, %v", out, err)
	}
	if _, _, exit, err := l.Exec(ctx, "n3", "sh", "-c", "exit 7"); exit != 7 || err != nil {
		t.Errorf("exit code 7 came out as %d, %v", exit, err)
	}
	if _, err := l.Run(ctx, "n9", "true"); err == nil || !strings.Contains(err.Error(), "n1, n2, n3") {
		t.Errorf("a node that does not exist: %v", err)
	}
	must(t, l.SignalPostgres("n2", 0, true))
	if out, stderr, exit, err := l.Exec(ctx, "n1", "crm_verify", "-L", "-V"); err != nil || exit != 0 {
		t.Errorf("crm_verify finds fault with the running cluster: exit code %d, %v: %s%s", exit, err, out, stderr)
	}
}

// waitScore waits until a standby may be promoted. The Perl agent gives the standbys
// their scores at the primary's monitor only: before it, a failure of the primary
// finds nobody to promote, for ever.
func waitScore(ctx context.Context, l *lab.Lab, node string) error {
	return lab.Poll(ctx, 200*time.Millisecond, func() error {
		s, err := l.View(ctx)
		if err != nil {
			return err
		}
		if score := s.Node(node).Score; score == "" || strings.HasPrefix(score, "-") {
			return lab.NotYet("%s has the promotion score %q", node, score)
		}
		return nil
	})
}

func testMove(t *testing.T, l *lab.Lab) {
	ctx := within(t, 60*time.Second)
	run, err := load.Start(ctx, l, load.Options{})
	must(t, err)
	must(t, waitScore(ctx, l, "n2"))
	run.Mark("move")
	_, err = l.Run(ctx, "n1", "crm_resource", "--move", "-r", lab.Clone, "-N", "n2", "--promoted")
	must(t, err)
	_, err = l.WaitPromoted(ctx, "n2")
	must(t, err)
	must(t, run.AwaitAck(ctx))
	report := run.Stop()
	report.Text(t.Output())
	must(t, report.Err())
	if report.CheckedOn != "n2" {
		t.Errorf("the rows were counted on %q, expected n2", report.CheckedOn)
	}
	if len(report.Writable["n1"]) == 0 || len(report.Writable["n2"]) == 0 || len(report.Writable["n3"]) != 0 {
		t.Errorf("expected n1 and n2 writable, not n3: %+v", report.Writable)
	}
	gap := report.GapAfter("move")
	if gap.Duration() < 50*time.Millisecond || gap != report.Longest {
		t.Errorf("the gap after the move is %+v, the longest of all %+v", gap, report.Longest)
	}
}

// reaches tells whether a node gets a TCP connection to another one, which has half
// a second to answer.
func reaches(t *testing.T, l *lab.Lab, from, addr string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	c, err := l.DialFrom(from)(ctx, "tcp", addr)
	if err == nil {
		c.Close()
	}
	return err == nil
}

func testCut(t *testing.T, l *lab.Lab) {
	ctx := within(t, 60*time.Second)
	const n1, n2, n3 = "10.77.0.11:5432", "10.77.0.12:5432", "10.77.0.13:5432"
	expect := func(what string, want bool, from, addr string) {
		t.Helper()
		if got := reaches(t, l, from, addr); got != want {
			t.Errorf("%s: %s reaches %s: %v, expected %v", what, from, addr, got, want)
		}
	}
	expect("nothing cut", true, "n1", n2)
	port := lab.Link{From: "n1", To: "n3", Port: 5432}
	must(t, l.Cut(ctx, port))
	expect("port cut", false, "n1", n3)
	expect("port cut", false, "n3", n1)
	expect("port cut", true, "n2", n3)
	if out, err := l.Run(ctx, "n1", "ping", "-c1", "-W1", "n3"); err != nil && !strings.Contains(out, "not found") {
		if _, lookErr := l.Run(ctx, "n1", "sh", "-c", "command -v ping"); lookErr == nil {
			t.Errorf("other traffic is cut with the port: %v", err)
		}
	}
	must(t, l.Heal(ctx, port))
	expect("healed", true, "n1", n3)
	if err := l.Heal(ctx, port); err == nil {
		t.Error("a link that is not cut was healed without an error")
	}
	lossy := lab.Link{From: "n3", To: "n1", Loss: 100, OneWay: true, Port: 5432}
	must(t, l.Cut(ctx, lossy))
	expect("one way", false, "n3", n1) // its request is lost
	expect("one way", false, "n1", n3) // its answer is lost
	expect("one way", true, lab.Client, n3)
	must(t, l.HealAll(ctx))
	expect("all healed", true, "n3", n1)
	must(t, l.WaitAllStreaming(ctx))
}

// testHalfRecord: the WAL writer flushes a record up to the end of a page, and the transaction that would have the rest
// flushed goes on.
func testHalfRecord(t *testing.T, l *lab.Lab) {
	ctx := within(t, 30*time.Second)
	primary, err := l.WaitPromoted(ctx, "")
	must(t, err)
	ended := make(chan error, 1)
	go func() {
		_, err := l.SQL(ctx, primary, "SELECT pg_logical_emit_message(false, 'test', repeat('a', 20000)), pg_sleep(8)")
		ended <- err
	}()
	defer func() { must(t, <-ended) }()
	time.Sleep(time.Second)
	began := time.Now()
	must(t, l.WaitAllStreaming(ctx))
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("all stream after %s, expected at once: it is the lab that ends the record", took)
	}
}

func testPower(t *testing.T, l *lab.Lab) {
	ctx := within(t, 90*time.Second)
	run, err := load.Start(ctx, l, load.Options{})
	must(t, err)
	must(t, waitScore(ctx, l, "n1"))
	run.Mark("power off")
	must(t, l.Power(ctx, "n2", false))
	if _, err := l.Run(ctx, "n2", "true"); err == nil {
		t.Error("a command ran on a node without power")
	}
	// The survivors must fence it through the same switch, and promote.
	primary, err := l.WaitPromoted(ctx, "")
	must(t, err)
	must(t, run.AwaitAck(ctx))
	report := run.Stop()
	report.Text(t.Output())
	if len(report.Overlaps) > 0 || report.CheckError != "" {
		t.Error(report.Err()) // rows may be lost: replication is asynchronous
	}
	if primary == "n2" {
		t.Error("n2 is off and promoted")
	}
	s, err := l.Status(ctx)
	must(t, err)
	if len(s.Fenced) == 0 || !strings.Contains(s.Fenced[0], "of n2: success") {
		t.Errorf("expected a fencing of n2 that succeeded, found %q", s.Fenced)
	}
	must(t, l.Power(ctx, "n2", true))
	must(t, lab.Poll(ctx, 200*time.Millisecond, func() error {
		s, err := l.View(ctx)
		if err != nil {
			return err
		}
		if !s.Node("n2").Online {
			return lab.NotYet("n2 has not joined")
		}
		return nil
	}))
}

func testReset(t *testing.T, l *lab.Lab) {
	ctx := within(t, 120*time.Second)
	t.Cleanup(func() {
		if t.Failed() {
			l.Dump(context.WithoutCancel(ctx), t.Output())
		}
	})
	// What n2 needs is a power-off, and the Perl agent survives none before the new primary's first monitor.
	must(t, waitScore(ctx, l, "n1"))
	must(t, waitScore(ctx, l, "n3"))
	if err := l.Healthy(ctx); err == nil {
		t.Error("a lab with a constraint counts as healthy")
	}
	must(t, l.Cut(ctx, lab.Link{From: "n1", To: "client"}))
	must(t, l.Reset(ctx))
	must(t, l.Healthy(ctx))
	var b bytes.Buffer
	l.Dump(ctx, &b)
	for _, want := range []string{"crm_simulate", "n1/log/pacemaker/pacemaker.log", "n3/log/postgresql/postgresql.log", "database system is ready"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("Dump lacks %q", want)
		}
	}
}

// Ensure that of two nodes that fence each other the primary survives, and that the
// other one returns by itself when the lab says so.
func TestTwoNodes(t *testing.T) {
	l := up(t, lab.Options{Names: []string{"pg.1", "pg.10"}, AutoReturn: 500 * time.Millisecond, Direct: true})
	ctx := within(t, 120*time.Second)
	before, _, err := l.PowerState()
	must(t, err)
	run, err := load.Start(ctx, l, load.Options{})
	must(t, err)
	run.Mark("cut")
	must(t, l.Cut(ctx, lab.Link{From: "pg.1", To: "pg.10"}))
	must(t, lab.Poll(ctx, 100*time.Millisecond, func() error {
		now, _, err := l.PowerState()
		if err != nil {
			return err
		}
		if now["pg.1"] != before["pg.1"] {
			t.Fatal("the primary was fenced")
		}
		if now["pg.10"] == 0 || now["pg.10"] == before["pg.10"] {
			return lab.NotYet("pg.10 was not fenced, or is not back")
		}
		return nil
	}))
	must(t, l.HealAll(ctx))
	must(t, l.WaitAllStreaming(ctx))
	must(t, run.AwaitAck(ctx))
	report := run.Stop()
	report.Text(t.Output())
	must(t, report.Err())
	// Not Healthy: to the Perl agent a crashed standby is a failed probe.
}

// testOracle does what must never happen: a second primary, and a row that vanishes.
func testOracle(t *testing.T, l *lab.Lab) {
	ctx := within(t, 60*time.Second)
	run, err := load.Start(ctx, l, load.Options{})
	must(t, err)
	s, err := l.Status(ctx)
	must(t, err)
	primary := s.Promoted()[0]
	other := "n3"
	if primary == other {
		other = "n1"
	}
	_, err = l.SQL(ctx, other, "SELECT pg_promote()")
	must(t, err)
	must(t, run.AwaitAck(ctx))
	_, err = l.SQLIn(ctx, primary, "load", "DELETE FROM written WHERE (client, seq) = (SELECT client, seq FROM written ORDER BY inserted_at DESC OFFSET 40 LIMIT 1)")
	must(t, err)
	must(t, run.AwaitAck(ctx))
	time.Sleep(300 * time.Millisecond) // for the prober, which asks every 50 ms
	report := run.Stop()
	if report.Lost != 1 || len(report.Overlaps) == 0 || report.Err() == nil {
		t.Errorf("a row was deleted and %s promoted beside %s: the report finds %d rows lost and the overlaps %v", other, primary, report.Lost, report.Overlaps)
		report.Text(t.Output())
	}
}

func testKill(t *testing.T, l *lab.Lab) {
	ctx := within(t, 20*time.Second)
	left, err := l.Leftovers()
	must(t, err)
	if len(left) < 30 {
		t.Fatalf("expected the processes of three nodes, found only %+v: the check for left-overs is blind", left)
	}
	must(t, l.Signal(syscall.SIGKILL, l.SupervisorPID()))
	must(t, lab.Poll(ctx, 20*time.Millisecond, func() error {
		if left, err = l.Leftovers(); err != nil || len(left) > 0 {
			return lab.NotYet("left over: %+v, %v", left, err)
		}
		return nil
	}))
	mounts, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	if strings.Contains(string(mounts), l.Dir) {
		t.Errorf("mounts are left over:\n%s", mounts)
	}
	if _, err := lab.Open(l.Name, ""); err == nil || !strings.Contains(err.Error(), "not running any more") {
		t.Errorf("a dead lab was opened: %v", err)
	}
	// Its remains are in nobody's way.
	again, err := lab.Up(ctx, lab.Options{Name: l.Name, StayOff: true, Lifeline: true})
	must(t, err)
	if _, err := lab.Up(ctx, lab.Options{Name: l.Name, StayOff: true}); err == nil || !strings.Contains(err.Error(), "is up already") {
		t.Errorf("a second lab of the same name: %v", err)
	}
	must(t, again.Down(ctx))
	if _, err := os.Stat(l.Dir); err == nil {
		t.Errorf("%s is left over", l.Dir)
	}
}
