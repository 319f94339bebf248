package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/lab/follow"
	"github.com/pgbaton/pgbaton/internal/load"
)

// Limits that have nothing to do with how good an outage is: what takes longer has gone wrong.
const (
	roleLimit = 60 * time.Second // until there is a primary again
	healLimit = 60 * time.Second // until every node streams
)

// cluster is a lab that several scenarios use one after the other.
type cluster struct {
	lab    *lab.Lab
	faulty bool // the agent in place is the one that can be paused and killed
}

// running is the one lab that testCluster keeps: two would disturb each other on a small machine.
var running *cluster

// Where a node has both builds of the agent: a scenario chooses one.
const (
	plainAgent  = "/usr/lib/pgbaton-e2e/agent"
	faultyAgent = "/usr/lib/pgbaton-e2e/agent-faults"
	agentInNode = "/usr/lib/ocf/resource.d/pgbaton/postgresql"
)

// ordinary are the options of a lab for scenarios in general: what heals by the next monitor does not make them long, and
// neither does what waits for as long as Pacemaker lets a notification or a stop run. A standby that is connected through
// the virtual IP, which has moved meanwhile, notices when it next sends its status.
func ordinary() lab.Options {
	return lab.Options{
		Ops: map[string]lab.Op{
			"promote":            {OnFail: "demote"},
			"monitor-promoted":   {Interval: "4s"},
			"monitor-unpromoted": {Interval: "5s"},
			"notify":             {Timeout: "20s"},
			"stop":               {Timeout: "30s"},
		},
		Conf: map[string]string{"wal_receiver_status_interval": "1s", "max_prepared_transactions": "5"},
	}
}

// testCluster returns the running lab of that name, or makes it: name tells labs of different options apart. The agent is
// built from this tree.
func testCluster(t *testing.T, name string, o lab.Options) *cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the lab makes namespaces: run this test as root")
	}
	// Another run of these tests at the same time has labs of its own.
	o.Name = fmt.Sprintf("e2e-%s-%d", name, os.Getpid())
	if running != nil && running.lab.Name == o.Name {
		return running
	}
	if err := endCluster(); err != nil {
		t.Fatal(err)
	}
	if err := lab.Sweep("e2e-"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	plain, faulty := built(t, buildAgent), built(t, buildFaultyAgent)
	t.Logf("%6.1f s  built the agent, with and without faults", time.Since(began).Seconds())
	if o.Files == nil {
		o.Files = map[string]string{}
	}
	if o.Agent == "" {
		o.Agent, o.AgentBinary = "pgbaton", plain
	} else {
		o.Files[agentInNode] = plain // installed, and not in charge
	}
	o.Lifeline, o.Replace, o.Log = true, true, t.Output()
	o.Files[plainAgent], o.Files[faultyAgent] = plain, faulty
	if o.AutoReturn == 0 {
		o.AutoReturn = 2 * time.Second
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	l, err := lab.Up(ctx, o)
	if l != nil {
		running = &cluster{lab: l}
		l.Log = nil // it belongs to this test
	}
	if err != nil {
		if l != nil {
			l.Dump(context.WithoutCancel(ctx), t.Output())
		}
		t.Fatal(err)
	}
	return running
}

// endCluster takes the running lab down.
func endCluster() error {
	if running == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	l := running.lab
	running = nil
	return l.Down(ctx)
}

// ownLab makes a lab for one test alone, which is not one for scenarios.
func ownLab(t *testing.T, name string, o lab.Options) *lab.Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the lab makes namespaces: run this test as root")
	}
	if err := endCluster(); err != nil { // two labs would disturb each other
		t.Fatal(err)
	}
	o.Name, o.Agent = fmt.Sprintf("e2e-%s-%d", name, os.Getpid()), "pgbaton"
	o.Lifeline, o.Replace, o.Log = true, true, t.Output()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	l, err := lab.Up(ctx, o)
	if l != nil {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			if err := l.Down(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// useFaults puts the agent that reads the fault directory in place on all nodes, or the one without.
func (c *cluster) useFaults(t *testing.T, on bool) {
	t.Helper()
	if c.faulty == on {
		return
	}
	agent := plainAgent
	if on {
		agent = faultyAgent
	}
	for _, n := range c.lab.Names {
		if _, err := c.lab.Run(t.Context(), n, "sh", "-c", "cp "+agent+" "+agentInNode+".new && mv "+agentInNode+".new "+agentInNode); err != nil {
			t.Fatal(err)
		}
	}
	c.faulty = on
}

// scenario is one story on a healthy cluster: a primary, two or more standbys that stream, clients that write.
type scenario struct {
	t   *testing.T
	lab *lab.Lab
	ctx context.Context

	old    string   // the primary when it began
	others []string // the other nodes, in their order after it
	load   *load.Run
	logs   *follow.Follower // of the agents
	fenced []string         // events before it

	last time.Time // end of the stage before

	result lab.Result // what the table of a soak is made of
}

// begin makes the cluster healthy, and the scenario; limit bounds all of it. Without load no client writes.
func (c *cluster) begin(t *testing.T, limit time.Duration, withLoad bool) *scenario {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	s := &scenario{t: t, lab: c.lab, ctx: ctx, last: time.Now()}
	t.Cleanup(func() {
		if t.Failed() {
			c.lab.Dump(context.Background(), t.Output())
		}
	})
	t.Cleanup(s.keepResult)
	if err := c.lab.Healthy(ctx); err != nil {
		t.Logf("reset: %v", err)
		s.must(c.lab.Reset(ctx))
	}
	s.must(noRefusals(ctx, c.lab))
	st := s.status()
	s.old, s.fenced = st.Promoted()[0], fencings(t, c.lab)
	n := len(c.lab.Names)
	for i := 1; i < n; i++ {
		s.others = append(s.others, c.lab.Names[(slices.Index(c.lab.Names, s.old)+i)%n])
	}
	if c.faulty {
		for _, n := range c.lab.Names {
			s.must(s.faults(n).clear())
		}
	}
	s.logs = follow.Start(c.lab)
	t.Cleanup(s.logs.Close)
	t.Cleanup(func() {
		if s.load != nil {
			s.load.Stop()
		}
	})
	if withLoad {
		s.startLoad(load.Options{})
	}
	s.stage("healthy, %s is primary", s.old)
	if resultsFile != "" {
		time.Sleep(rand.N(5 * time.Second)) // a soak meets the monitors at another moment each time
	}
	return s
}

// story is a scenario under load, as the subtest of that name.
type story struct {
	name string
	run  func(*scenario)
}

// tell runs stories one after the other, each on the healthy cluster of that name and with the agent that is installed;
// limit bounds each.
func tell(t *testing.T, cluster string, o lab.Options, limit time.Duration, stories []story) {
	for _, st := range stories {
		t.Run(st.name, func(t *testing.T) {
			c := testCluster(t, cluster, o)
			c.useFaults(t, false)
			st.run(c.begin(t, limit, true))
		})
	}
}

// powerOff takes a node's power and waits until the cluster has noticed and fenced it: a node that is back before that is
// fenced then, and is off for good.
func (s *scenario) powerOff(node string) {
	s.t.Helper()
	s.must(s.lab.Power(s.ctx, node, false))
	s.await(roleLimit, func() error {
		if st, err := s.lab.Status(s.ctx); err != nil || st.Node(node).Online {
			return lab.NotYet("%s still is online (%v)", node, err)
		}
		return nil
	})
	s.must(s.lab.WaitIdle(s.within(healLimit)))
}

// noRefusals waits until every node may be promoted: a refusal of the scenario before is lifted by the next monitor.
func noRefusals(ctx context.Context, l *lab.Lab) error {
	ctx, cancel := context.WithTimeout(ctx, healLimit)
	defer cancel()
	return lab.Poll(ctx, 100*time.Millisecond, func() error {
		st, err := l.Status(ctx)
		if err != nil {
			return lab.NotYet("%v", err)
		}
		for _, n := range st.Nodes {
			if scoreOf(n) < 0 {
				return lab.NotYet("%s has the score %q (%s)", n.Name, n.Score, n.Attributes["pgbaton-status-"+lab.Resource])
			}
		}
		return nil
	})
}

// stage prints how long the time until now took.
func (s *scenario) stage(format string, args ...any) {
	now := time.Now()
	s.t.Logf("%6.1f s  %s", now.Sub(s.last).Seconds(), fmt.Sprintf(format, args...))
	s.last = now
}

func (s *scenario) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *scenario) status() *lab.Status {
	s.t.Helper()
	st, err := s.lab.Status(s.ctx)
	s.must(err)
	return st
}

// run runs a command on a node that has the cluster's software running.
func (s *scenario) run(node string, argv ...string) string {
	s.t.Helper()
	out, err := s.lab.Run(s.ctx, node, argv...)
	s.must(err)
	return out
}

func (s *scenario) sql(node, query string) string {
	s.t.Helper()
	out, err := s.lab.SQL(s.ctx, node, query)
	s.must(err)
	return out
}

// within bounds a wait.
func (s *scenario) within(limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(s.ctx, limit)
	s.t.Cleanup(cancel)
	return ctx
}

// await polls until ok returns nil or an error that is not made by lab.NotYet.
func (s *scenario) await(limit time.Duration, ok func() error) {
	s.t.Helper()
	s.must(lab.Poll(s.within(limit), 50*time.Millisecond, ok))
}

// move orders the role to a node, as an operator does.
func (s *scenario) move(to string) {
	s.t.Helper()
	s.run(to, "crm_resource", "--move", "-r", lab.Clone, "--promoted", "--node", to)
}

// ban forbids the role on a node.
func (s *scenario) ban(node string) {
	s.t.Helper()
	s.run(node, "crm_resource", "--ban", "-r", lab.Clone, "--promoted", "--node", node)
}

// clear takes the constraints of move and ban away.
func (s *scenario) clear() {
	s.t.Helper()
	s.run(s.status().Asked, "crm_resource", "--clear", "-r", lab.Clone)
}

// standby puts a node in standby, or takes it out of it.
func (s *scenario) standby(node string, on bool) {
	s.t.Helper()
	if on {
		s.run(s.others[len(s.others)-1], "crm_attribute", "-N", node, "-n", "standby", "-v", "on")
		return
	}
	s.run(s.others[len(s.others)-1], "crm_attribute", "-N", node, "-n", "standby", "-D")
}

// promoted waits for a primary, this one unless the name is empty, and returns its name.
func (s *scenario) promoted(node string) string {
	s.t.Helper()
	name, err := s.lab.WaitPromoted(s.within(roleLimit), node)
	s.must(err)
	return name
}

// newPrimary waits for a primary that writes a newer timeline than was: one that was promoted since. It is this node
// unless the name is empty.
func (s *scenario) newPrimary(was uint32, node string) string {
	s.t.Helper()
	ctx := s.within(roleLimit)
	var found string
	s.must(lab.Poll(ctx, 100*time.Millisecond, func() error {
		name, err := s.lab.WaitPromoted(ctx, "")
		if err != nil {
			return err
		}
		out, err := s.lab.SQL(ctx, name, "SELECT NOT pg_is_in_recovery() AND ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int > "+fmt.Sprint(was))
		if err != nil || out != "t" {
			return lab.NotYet("%s has not begun a timeline after %d (%v)", name, was, err)
		}
		found = name
		return nil
	}))
	if node != "" && found != node {
		s.t.Fatalf("%s was promoted, expected %s", found, node)
	}
	return found
}

// highest waits until the primary's score is above all others: before that, clear could make the role bounce. It returns
// the status that showed it.
func (s *scenario) highest(primary string) *lab.Status {
	s.t.Helper()
	var last *lab.Status
	s.await(healLimit, func() error {
		st, err := s.lab.Status(s.ctx)
		if err != nil {
			return lab.NotYet("%v", err)
		}
		for _, n := range st.Nodes {
			if n.Name != primary && scoreOf(n) >= scoreOf(st.Node(primary)) {
				return lab.NotYet("%s has the score %q, the primary %s has %q", n.Name, n.Score, primary, st.Node(primary).Score)
			}
		}
		last = st
		return nil
	})
	return last
}

// lifted waits until a node that refused may be promoted again.
func (s *scenario) lifted(node string) {
	s.t.Helper()
	s.await(healLimit, func() error {
		st, err := s.lab.Status(s.ctx)
		if err != nil {
			return lab.NotYet("%v", err)
		}
		if scoreOf(st.Node(node)) < 0 {
			return lab.NotYet("%s still has the score %q (%s)", node, st.Node(node).Score, st.Node(node).Attributes["pgbaton-status-"+lab.Resource])
		}
		return nil
	})
}

// streaming waits until every other node streams from the primary.
func (s *scenario) streaming() {
	s.t.Helper()
	s.must(s.lab.WaitAllStreaming(s.within(healLimit)))
}

// scoreOf reads a promotion score; none is the lowest.
func scoreOf(n lab.NodeStatus) int {
	switch n.Score {
	case "INFINITY":
		return 1_000_000
	case "", "-INFINITY":
		return -1_000_000
	}
	v, err := strconv.Atoi(n.Score)
	if err != nil {
		return -1_000_000
	}
	return v
}

// faults is the fault directory of a node.
func (s *scenario) faults(node string) faults {
	s.t.Helper()
	f, err := openFaults(s.lab, node)
	s.must(err)
	return f
}

// pause plants a pause of the agent on a node; do what makes the agent come there in change, and what should happen
// meanwhile in meanwhile.
func (s *scenario) pause(node, point string, change, meanwhile func()) {
	s.t.Helper()
	f := s.faults(node)
	_, err := f.remove("paused") // of a pause before
	s.must(err)
	s.must(f.plant("pause", point))
	defer f.remove("pause")
	change()
	s.await(30*time.Second, func() error {
		if !f.exists("paused") {
			return lab.NotYet("the agent on %s has not come to %q", node, point)
		}
		return nil
	})
	meanwhile()
}

// cutStandby cuts the replication of nodes: port 5432 between each of them and every other node.
func (s *scenario) cutStandby(nodes ...string) {
	s.t.Helper()
	for _, n := range nodes {
		s.must(s.lab.Cut(s.ctx, lab.Link{From: n, To: "*", Port: 5432}))
	}
}

// noFailures checks that Pacemaker knows of no failed action and no fail count, and fenced nobody.
func (s *scenario) noFailures() {
	s.t.Helper()
	s.noFailuresIn(s.status())
}

func (s *scenario) noFailuresIn(st *lab.Status) {
	s.t.Helper()
	for _, f := range st.Failed {
		if strings.Contains(f, "(degraded)") {
			continue // Pacemaker lists what a monitor has to say, and acts on nothing
		}
		s.t.Errorf("failed action: %s", f)
	}
	for _, n := range st.Nodes {
		if n.FailCount != "" && n.FailCount != "0" {
			s.t.Errorf("%s has a fail count of %s", n.Name, n.FailCount)
		}
	}
	if now := fencings(s.t, s.lab); !slices.Equal(now, s.fenced) {
		s.t.Errorf("fenced: %q, before: %q", now, s.fenced)
	}
}

// startLoad starts two clients with some work to do.
func (s *scenario) startLoad(o load.Options) {
	s.t.Helper()
	o.Clients, o.Every = 2, 10*time.Millisecond
	var err error
	s.load, err = load.Start(s.ctx, s.lab, o)
	s.must(err)
}

// fencings lists how often which node was fenced so far, by what the power switch did. Pacemaker's own history of it is
// forgotten by a node that boots, for a while.
func fencings(t testing.TB, l *lab.Lab) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(l.Dir, "supervisor.log"))
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`(?m)^\S+ reboot \S+$`).FindAllString(string(b), -1)
}

// stopLoad ends the clients and checks what no run may show.
func (s *scenario) stopLoad() load.Report {
	s.t.Helper()
	r := s.endLoad()
	if err := r.Err(); err != nil {
		s.t.Error(err)
	}
	return r
}

// finish ends the clients, checks that nothing failed, that every node streams and that all have the same rows.
func (s *scenario) finish() load.Report {
	s.t.Helper()
	s.streaming()
	var r load.Report
	if s.load != nil {
		r = s.stopLoad()
	}
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	s.noFailures()
	s.sameRows()
	s.stage("%d rows acknowledged, %d lost; all nodes stream and have the same rows", r.Acknowledged, r.Lost)
	return r
}

func (s *scenario) sameRows() {
	s.t.Helper()
	if err := sameRows(s.within(30*time.Second), s.lab); err != nil {
		s.t.Error(err)
	}
}

// sameRows compares the tables of all nodes when nobody writes: a twin streams as if nothing was, and has other rows.
func sameRows(ctx context.Context, l *lab.Lab) error {
	primary, err := l.WaitPromoted(ctx, "")
	if err != nil {
		return err
	}
	// A client that was stopped may have left a statement that is still to commit. An idle backend whose client lost it when
	// the address moved is nothing of that kind: it may stay for hours.
	err = lab.Poll(ctx, 20*time.Millisecond, func() error {
		out, err := l.SQL(ctx, primary, "SELECT count(*) FROM pg_stat_activity WHERE usename = 'load' AND state <> 'idle'")
		if err != nil || out != "0" {
			return lab.NotYet("%s backends of the stopped clients still run on %s (%v)", out, primary, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	end, err := l.SQL(ctx, primary, "SELECT pg_current_wal_insert_lsn()")
	if err != nil {
		return err
	}
	rows := func(node string) (string, error) {
		return l.SQLIn(ctx, node, "load", "SELECT count(*), coalesce(sum(hashtextextended(client || ':' || seq, 0)), 0) FROM written")
	}
	want, err := rows(primary)
	if err != nil {
		return err
	}
	for _, n := range l.Names {
		if n == primary {
			continue
		}
		err := lab.Poll(ctx, 20*time.Millisecond, func() error {
			out, err := l.SQL(ctx, n, "SELECT pg_last_wal_replay_lsn() >= '"+end+"'")
			if err != nil || out != "t" {
				return lab.NotYet("%s has not replayed up to %s (%v)", n, end, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
		got, err := rows(n)
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("%s has other rows (count|sum) than its primary %s: %s, want %s", n, primary, got, want)
		}
	}
	return nil
}

// timeline is the timeline that a primary writes.
func (s *scenario) timeline(primary string) uint32 {
	s.t.Helper()
	v, err := strconv.ParseUint(s.sql(primary, "SELECT left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)"), 16, 32)
	s.must(err)
	return uint32(v)
}

// fork reads a timeline's history file on a node: where it left the timeline was. Between the two may lie numbers that
// were passed over, because somebody had meant to start them: timelines that end where they begin, without a record.
func (s *scenario) fork(node string, timeline, was uint32) uint64 {
	s.t.Helper()
	path := filepath.Join(s.walDir(node), fmt.Sprintf("%08X.history", timeline))
	b, err := os.ReadFile(path)
	s.must(err)
	var at uint64
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		parent, err := strconv.ParseUint(f[0], 10, 32)
		s.must(err)
		left := parseLSN(s.t, f[1])
		switch {
		case uint32(parent) == was:
			at = left
		case uint32(parent) > was && left != at:
			s.t.Errorf("%s: timeline %d was left at %s and timeline %d at %s, expected nothing between them:\n%s", path, was, formatLSN(at), parent, f[1], b)
		}
	}
	if at == 0 {
		s.t.Fatalf("%s has no line for timeline %d:\n%s", path, was, b)
	}
	return at
}

// walDir is a node's pg_wal, as this program sees it.
func (s *scenario) walDir(node string) string {
	return filepath.Join(s.lab.Dir, "nodes", node, "data", "pg_wal")
}

// walRecord is a WAL record as pg_waldump shows it.
type walRecord struct {
	start, end uint64
	desc       string
}

var (
	dumpLine = regexp.MustCompile(`(?m)lsn: ([0-9A-F]+/[0-9A-F]+), prev [0-9A-F]+/[0-9A-F]+, desc: (.*)$`)
	// Where pg_waldump expected the next record. The words depend on what is there: zeros, or an older segment's bytes.
	dumpEnd = regexp.MustCompile(`(?s)error in WAL record at [0-9A-F]+/[0-9A-F]+: .*? at ([0-9A-F]+/[0-9A-F]+)`)
)

// lastRecord reads the last record of a timeline in a node's pg_wal with pg_waldump, looking from shortly before a
// position on.
func (s *scenario) lastRecord(node string, timeline uint32, near uint64) walRecord {
	s.t.Helper()
	segment := uint64(s.lab.WALSegMB) << 20
	// Not before the segment of the position: the one before may be gone.
	from := max((near-1)/segment*segment, (near-min(near, 64<<10))/8192*8192)
	cmd := exec.CommandContext(s.ctx, filepath.Join(s.lab.Bindir, "pg_waldump"), "-p", s.walDir(node), "-t", fmt.Sprint(timeline), "-s", formatLSN(from))
	out, _ := cmd.CombinedOutput() // it ends with an error where the WAL ends
	lines := dumpLine.FindAllStringSubmatch(string(out), -1)
	end := dumpEnd.FindStringSubmatch(string(out))
	if len(lines) == 0 || end == nil {
		s.t.Fatalf("%s: no record and an end expected: %s", cmd, out)
	}
	last := lines[len(lines)-1]
	return walRecord{start: parseLSN(s.t, last[1]), end: parseLSN(s.t, end[1]), desc: last[2]}
}

// proven checks a handover with pg_waldump and a .history file alone: the new primary's timeline forks from the old one
// at the end of the shutdown checkpoint, which is the last record that the old primary wrote on it.
func (s *scenario) proven(from string, was uint32, to string) (now uint32) {
	s.t.Helper()
	now = s.timeline(to)
	if now <= was {
		s.t.Fatalf("%s writes timeline %d; %s wrote %d before", to, now, from, was)
	}
	fork := s.fork(to, now, was)
	last := s.lastRecord(from, was, fork)
	if !strings.HasPrefix(last.desc, "CHECKPOINT_SHUTDOWN") {
		s.t.Errorf("the last record of %s on timeline %d, at %s, is %q, expected CHECKPOINT_SHUTDOWN", from, was, formatLSN(last.start), last.desc)
	}
	if last.end != fork {
		s.t.Errorf("timeline %d of %s forks at %s; the shutdown checkpoint of %s ends at %s", now, to, formatLSN(fork), from, formatLSN(last.end))
	}
	return now
}

func parseLSN(t testing.TB, text string) uint64 {
	t.Helper()
	high, low, ok := strings.Cut(text, "/")
	hi, err1 := strconv.ParseUint(high, 16, 32)
	lo, err2 := strconv.ParseUint(low, 16, 32)
	if !ok || err1 != nil || err2 != nil {
		t.Fatalf("%q is no position in WAL", text)
	}
	return hi<<32 | lo
}

func formatLSN(lsn uint64) string { return fmt.Sprintf("%X/%X", lsn>>32, lsn&0xFFFFFFFF) }
