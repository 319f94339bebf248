package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/load"
)

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
	s.stage("%d rows acknowledged, %d writes lost; all nodes stream and have the same rows", r.Acknowledged, r.LostWrites())
	return r
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

// noFailedActions is noFailures for a scenario in which a node had to be fenced, and is now known to be diverged: its
// monitor says so in a way that Pacemaker lists, without counting it.
func (s *scenario) noFailedActions(diverged string) {
	s.t.Helper()
	st := s.status()
	for _, f := range st.Failed {
		// What a node that is kept out says, and a primary that hung before it lost its role, is no failed action.
		if !strings.Contains(f, " on "+diverged+": OCF_DEGRADED ") && !strings.Contains(f, " on "+diverged+": promoted (degraded) ") {
			s.t.Errorf("failed action: %s", f)
		}
	}
	for _, n := range st.Nodes {
		if n.FailCount != "" && n.FailCount != "0" {
			s.t.Errorf("%s has a fail count of %s", n.Name, n.FailCount)
		}
	}
}

// primaryIs checks that the role did not bounce since.
func (s *scenario) primaryIs(node string) {
	s.t.Helper()
	if p := s.status().Promoted(); len(p) != 1 || p[0] != node {
		s.t.Errorf("expected %s to be the only primary still, found %v", node, p)
	}
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
	err = lab.Poll(ctx, 100*time.Millisecond, func() error {
		out, err := l.SQL(ctx, primary, "SELECT count(*) FROM pg_stat_activity WHERE usename = 'load' AND state <> 'idle'")
		if err != nil || out != "0" {
			return lab.NotYet("%s backends of the stopped clients still run on %s (%v)", out, primary, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := l.WaitAllStreaming(ctx); err != nil {
		return err
	}
	rows := func(node string) (string, error) {
		return l.SQLIn(ctx, node, "load", "SELECT count(*), coalesce(sum(hashtextextended(client || ':' || seq, 0)), 0) FROM written")
	}
	want, err := rows(primary)
	if err != nil {
		return err
	}
	for _, n := range l.Instances() {
		if n == primary {
			continue
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

// outage prints how long nobody could write after a mark, and how starved the machine was, and holds the first to a
// limit; 0: none.
func (s *scenario) outage(r load.Report, mark string, limit time.Duration) time.Duration {
	s.t.Helper()
	g := r.GapAfter(mark)
	s.result.OutagesMs = append(s.result.OutagesMs, g.Ms)
	s.t.Logf("outage %.0f ms; %s", g.Ms, starvation(r))
	if limit > 0 && g.Duration() > limit {
		s.t.Errorf("nobody could write for %.0f ms, expected at most %s", g.Ms, limit)
	}
	return g.Duration()
}

// starvation says how short of processor time this machine was during a run.
func starvation(r load.Report) string {
	pressure := "unknown"
	if b, err := os.ReadFile("/proc/pressure/cpu"); err == nil {
		pressure, _, _ = strings.Cut(string(b), "\n")
	}
	return fmt.Sprintf("a sleep of 10 ms took up to %.0f ms longer, %.1f ms in 99 of 100; CPU pressure: %s", r.OvershootMax, r.OvershootP99, pressure)
}

// takenOver ends the clients of a scenario in which the old primary went without a shutdown: no row is lost that was
// not committed in WAL which the new primary had not received, by pg_waldump on the old one's disk.
func (s *scenario) takenOver(now string, was uint32, mark string, limit time.Duration) load.Report {
	s.t.Helper()
	r := s.endLoad()
	fork := s.fork(now, s.timeline(now), was)
	end := s.lastRecord(s.old, was, fork).end
	only := s.commitsAfter(s.old, was, fork)
	s.t.Logf("%d rows acknowledged, %d writes lost; the WAL of %s runs %d bytes past the fork, %d transactions", r.Acknowledged, r.LostWrites(), s.old, end-fork, only)
	if r.CheckError != "" || r.LostWrites() > only {
		s.t.Errorf("%d writes are lost, %d were committed in WAL that %s did not have (%s)", r.LostWrites(), only, now, r.CheckError)
	}
	for _, o := range r.Overlaps {
		s.t.Errorf("two writable nodes: %+v", o)
	}
	s.outage(r, mark, limit)
	s.primaryIs(now)
	s.noFailedActions(s.old)
	return r
}

// missing checks that a takeover said, in the journal, how much it knows to be lost.
func (s *scenario) missing(node string, since time.Time, want int64) {
	s.t.Helper()
	e := s.promotion(node, since)
	got := e.Details["missing_bytes"]
	if e.Details["result"] == "equal: nothing lost" {
		got = "0"
	}
	if got != fmt.Sprint(want) {
		s.t.Errorf("%s says that %q bytes are missing, by pg_waldump it is %d: %+v", node, got, want, e)
	}
	s.t.Logf("%d bytes of WAL are lost; %s says %v", want, node, e.Details)
}

// promotion is what a node's journal says of its last promotion since then.
func (s *scenario) promotion(node string, since time.Time) event {
	s.t.Helper()
	list := s.journal(node, since)
	for _, e := range slices.Backward(list) {
		if e.Action == "promote" && e.Outcome == "done" {
			return e
		}
	}
	s.t.Fatalf("the journal of %s has no promotion since %s: %+v", node, since.Format(time.TimeOnly), list)
	return event{}
}

// event is a line of a node's journal, as far as these tests read it.
type event struct {
	Time    time.Time         `json:"time"`
	Action  string            `json:"action"`
	Kind    string            `json:"kind"`
	Outcome string            `json:"outcome"`
	Reason  string            `json:"reason"`
	Details map[string]string `json:"details"`
}

// journal reads a node's journal from a moment on.
func (s *scenario) journal(node string, since time.Time) []event {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.lab.Dir, "nodes", node, "lib", lab.Resource, "journal.jsonl"))
	s.must(err)
	var list []event
	for line := range strings.Lines(string(b)) {
		var e event
		s.must(json.Unmarshal([]byte(line), &e))
		if !e.Time.Before(since) {
			list = append(list, e)
		}
	}
	return list
}

// returned waits until a node that was gone is back: it streams, or it has WAL of its own, and says so in crm_mon -A and
// by a score that nobody is promoted with. It reports whether it streams.
//
// If it has diverged, no look at crm_mon until then may show its instance started without its mark, or with another score.
func (s *scenario) returned(node, primary string) (streams bool) {
	s.t.Helper()
	var bare []string
	s.must(lab.Poll(s.within(healLimit), 60*time.Millisecond, func() error { // some ten looks a second, with what each takes
		st, err := s.lab.View(s.ctx)
		if err != nil {
			return lab.NotYet("%v", err)
		}
		n := st.Node(node)
		if bad := unmarked(n); bad != "" {
			bare = append(bare, bad)
		}
		out := ""
		if scoreOf(n) > 0 {
			out, err = s.lab.SQL(s.ctx, primary, "SELECT state FROM pg_stat_replication WHERE application_name = '"+node+"'")
			if err == nil && out == "streaming" {
				streams = true
				return nil
			}
		}
		text := n.Attributes[statusAttribute]
		if strings.HasPrefix(text, "diverged: ") && n.Score == "-INFINITY" {
			s.t.Logf("crm_mon -A says of %s: %s", node, text)
			for _, b := range bare {
				s.t.Errorf("a node that has diverged, without its mark or with a score that could be promoted: %s", b)
			}
			return nil
		}
		return lab.NotYet("%s is %q with the score %q (%s), and does not stream from %s: %q (%v)", node, n.Role, n.Score, text, primary, out, err)
	}))
	s.stage("%s is back, streams: %v", node, streams)
	return streams
}

// fencedSince lists the nodes that were fenced since the scenario began.
func (s *scenario) fencedSince() []string {
	s.t.Helper()
	var nodes []string
	for _, e := range fencings(s.t, s.lab)[len(s.fenced):] {
		f := strings.Fields(e)
		nodes = append(nodes, f[len(f)-1])
	}
	return nodes
}

// fencedAt is when a node was fenced in this scenario.
func (s *scenario) fencedAt(node string) (time.Time, bool) {
	s.t.Helper()
	for _, e := range fencings(s.t, s.lab)[len(s.fenced):] {
		f := strings.Fields(e)
		at, err := time.ParseInLocation(lab.StampFormat, f[0], time.Local)
		s.must(err)
		if f[len(f)-1] == node {
			return at, true
		}
	}
	return time.Time{}, false
}

// onlyFenced checks that nobody else was fenced.
func (s *scenario) onlyFenced(allowed ...string) {
	s.t.Helper()
	for _, n := range s.fencedSince() {
		if !slices.Contains(allowed, n) {
			s.t.Errorf("%s was fenced, expected only %v", n, allowed)
		}
	}
}

// wasFenced checks that a node was fenced, as the scenario means it, and lets that count as seen.
func (s *scenario) wasFenced() {
	s.t.Helper()
	now := fencings(s.t, s.lab)
	if len(now) <= len(s.fenced) {
		s.t.Errorf("fenced: %q, before: %q; expected the node that lost its power", now, s.fenced)
	}
	s.fenced = now
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
