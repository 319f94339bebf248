package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/lab/follow"
	"github.com/pgbaton/pgbaton/internal/load"
)

// machines are nodes as people have them: Debian booted by systemd, with pcsd, PostgreSQL, and no cluster. upgrade are the
// packages of a minor upgrade, which a node can install without a network.
func machines(t *testing.T, upgrade []string) *cluster {
	t.Helper()
	o := ordinary()
	o.Systemd, o.Layout = true, "debian"
	o.Conf["primary_conninfo"] = "host=" + lab.VIP + " user=replicator tcp_user_timeout=3000"
	o.Files = map[string]string{"/usr/bin/pgbaton": built(t, buildCommand)}
	for _, deb := range upgrade {
		o.Files["/var/cache/apt/archives/"+filepath.Base(deb)] = deb
	}
	return testCluster(t, "machines", o)
}

// packages fetches what a minor upgrade of PostgreSQL would install here: nothing if this machine has the newest version.
// It returns that version.
func packages(t *testing.T) (debs []string, version string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "partial"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "apt-get", "install", "-y", "--only-upgrade", "--download-only", "-o", "Dir::Cache::archives="+dir, "postgresql-15").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if debs, err = filepath.Glob(filepath.Join(dir, "*.deb")); err != nil {
		t.Fatal(err)
	}
	out, err = exec.CommandContext(ctx, "apt-cache", "policy", "postgresql-15").CombinedOutput()
	m := regexp.MustCompile(`Candidate: (\d+\.\d+)`).FindSubmatch(out)
	if err != nil || m == nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return debs, string(m[1])
}

// sh runs a script on a node.
func (s *scenario) sh(node, script string) string {
	s.t.Helper()
	out, errs, code, err := s.lab.Exec(s.within(2*time.Minute), node, "sh", "-euc", script)
	if err != nil || code != 0 {
		s.t.Fatalf("on %s: exit code %d (%v)\n%s\n%s%s", node, code, err, script, out, errs)
	}
	return out
}

// readmeWithPCS is the configuration that README.md has for pcs, with the lab's power switch as the device that it leaves to
// the reader.
func readmeWithPCS(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\nWith pcs:\n\n")
	text, _, ok := strings.Cut(rest, "\n\n")
	device := regexp.MustCompile(`stonith create fence-n1 [^\n]*\n.*pcmk_host_list=n1\n`)
	if !ok || !device.MatchString(text) {
		t.Fatalf("README.md has no configuration for pcs with a device for n1:\n%s", text)
	}
	return device.ReplaceAllLiteralString(text, "stonith create power fence_pgbaton_lab pcmk_host_list='n1 n2 n3'\n")
}

// empty makes a node's disk that of a new machine.
func (s *scenario) empty(node string) {
	s.t.Helper()
	for _, d := range []string{"data", "lib"} {
		entries, err := filepath.Glob(filepath.Join(s.lab.Dir, "nodes", node, d, "*"))
		s.must(err)
		for _, e := range entries {
			s.must(os.RemoveAll(e))
		}
	}
}

// journals checks what a person finds in a node's journal.
func (s *scenario) journals(node, text string) {
	s.t.Helper()
	if out := s.sh(node, "journalctl --no-pager -o short"); !strings.Contains(out, text) {
		s.t.Errorf("the journal of %s has no %q", node, text)
	}
}

// Ensure the README's configuration, and what docs/tasks.md has to do with packages, systemd and pcs, hold as they stand there, on
// machines that were booted by systemd, under write load.
func TestMachines(t *testing.T) {
	debs, version := packages(t)
	all := taskBlocks(t)
	c := machines(t, debs)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	s := &scenario{t: t, lab: c.lab, ctx: ctx, last: time.Now(), old: "n1", others: []string{"n2", "n3"}, logs: follow.Start(c.lab)}
	t.Cleanup(func() {
		s.logs.Close()
		if t.Failed() {
			c.lab.Dump(context.Background(), t.Output())
		}
		if s.load != nil {
			s.load.Stop()
		}
		if err := endCluster(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("PostgreSQL %s is the newest, %d packages have it", version, len(debs))

	// A cluster of two, from nothing.
	for _, n := range c.lab.Names {
		s.sh(n, "echo hacluster:baton | chpasswd")
	}
	for _, n := range []string{"n1", "n2"} {
		s.sh(n, "systemctl disable --now postgresql; echo disabled > /etc/postgresql/15/main/start.conf")
	}
	s.sh("n3", "systemctl stop postgresql")
	s.empty("n3")
	s.sh("n1", "pcs host auth n1 n2 n3 -u hacluster -p baton && pcs cluster setup machines n1 n2 totem token=1000 --start --enable --wait=60")
	s.stage("n1 and n2 are a cluster")
	s.sh("n1", readmeWithPCS(t))
	s.promoted("n1")
	s.sh("n1", "until pgbaton status; do sleep 1; done")
	s.stage("they have the README's configuration, and n1 is primary")
	mend := regexp.MustCompile(`(?m)^ +-> (.*)$`)
	for _, n := range []string{"n1", "n2"} {
		code, text := s.pgbaton(n, "check")
		s.expect(code, 1, text, "0 critical, 1 warnings", "[oom-policy]") // as Debian's packages leave it
		for _, m := range mend.FindAllStringSubmatch(text, -1) {
			s.sh(n, m[1])
		}
		code, text = s.pgbaton(n, "check")
		s.expect(code, 0, text)
		if out := s.sh(n, "systemctl show --property OOMPolicy pacemaker"); out != "OOMPolicy=continue\n" {
			t.Errorf("on %s systemd says %q", n, out)
		}
	}
	s.startLoad(load.Options{})

	k := s.tasks("Add a node", all)
	for len(k.blocks) > 0 {
		k.do()
	}
	s.streaming()
	code, text := s.pgbaton("n3", "check")
	s.expect(code, 0, text)
	s.stage("n3 is the third")

	k = s.tasks("Minor upgrade of PostgreSQL", all)
	was, before := s.timeline("n1"), s.starts()
	for len(k.blocks) > 0 {
		k.do()
	}
	s.promoted("n2")
	if now := s.timeline("n2"); now != was+1 {
		t.Errorf("timeline %d, it was %d: expected one handover", now, was)
	}
	for n, started := range s.starts() {
		if started == before[n] {
			t.Errorf("the server of %s runs since %s: an upgrade would not have come into force", n, started)
		}
		if v := s.sql(n, "SHOW server_version"); !strings.HasPrefix(v, version) {
			t.Errorf("the server of %s has version %s, the newest is %s", n, v, version)
		}
	}
	s.journals("n1", "the primary has ended")
	s.journals("n2", "equal: nothing lost")
	s.stage("all run PostgreSQL %s", version)

	// The README: a clean shutdown of the primary's Pacemaker, or of its machine, is a handover.
	s.sh("n2", "systemctl stop pacemaker")
	next := s.promotedBut("n2")
	s.proven("n2", was+1, next)
	s.sh("n2", "systemctl start pacemaker; until pgbaton status; do sleep 1; done")
	s.stage("n2 stopped Pacemaker, %s took the role, and n2 is back", next)
	was = s.timeline(next)
	s.must(c.lab.Shutdown(ctx, next))
	last := s.promotedBut(next)
	s.proven(next, was, last)
	s.must(c.lab.Power(ctx, next, true))
	s.sh(last, "until pgbaton status; do sleep 1; done")
	s.stage("the machine of %s was switched off in good order, %s took the role, and %s is back after its boot", next, last, next)

	// systemd starts Pacemaker's first process again, which finds the others at work.
	before = s.starts()
	s.sh(last, "pkill -9 -x pacemakerd; sleep 2; until systemctl is-active pacemaker && pgbaton status; do sleep 1; done")
	s.sameStarts(before, "pacemakerd was killed")
	s.primaryIs(last)
	s.stage("pacemakerd was killed on %s, and nothing happened", last)

	// By hand, in pcs's words. The page removes n3 afterwards, so it is not to be the primary.
	s.streaming()
	to := map[string]string{"n1": "n2", "n2": "n1", "n3": "n1"}[last]
	was = s.timeline(last)
	s.sh(to, "pcs resource move-with-constraint pgsql-ha "+to+" --promoted")
	s.newPrimary(was, to)
	s.highest(to)
	s.sh(to, "pcs resource clear pgsql-ha")
	s.proven(last, was, to)
	s.streaming()
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	s.primaryIs(to)
	s.stage("%s took the role by pcs resource move-with-constraint", to)

	k = s.tasks("Remove a node", all)
	by := slices.IndexFunc(k.blocks, func(b block) bool { return strings.Contains(b.script, "pcs cluster node remove") })
	standby, byHand := k.blocks[:by], k.blocks[by+1:]
	k.blocks = k.blocks[:by+1]
	for len(k.blocks) > 0 {
		k.do()
	}
	gone := func(how string) {
		t.Helper()
		code, text := s.pgbaton("n1", "switchover", "--yes")
		s.expect(code, 0, text, "Done:")
		if strings.Contains(text, "n3") {
			t.Errorf("n3 was removed %s, and pgbaton still speaks of it:\n%s", how, text)
		}
		if q := s.sh("n1", "corosync-quorumtool -s"); !strings.Contains(q, "2Node") {
			t.Errorf("two nodes are left, and two_node is not set:\n%s", q)
		}
		s.stage("n3 was removed %s, the others hand the role over", how)
	}
	gone("with pcs")

	s.empty("n3")
	k = s.tasks("Add a node", all)
	for len(k.blocks) > 0 {
		k.do()
	}
	s.streaming()
	s.stage("n3 is there again, as a new machine")

	k = s.tasks("Remove a node", all)
	k.blocks = slices.Concat(standby, byHand)
	for len(k.blocks) > 1 {
		k.do()
	}
	section := regexp.MustCompile(`(?s)\s*node \{[^}]*\bn3\b[^}]*\}`)
	for _, n := range []string{"n1", "n2"} { // the editor
		path := filepath.Join(c.lab.Dir, "nodes", n, "root/etc/corosync/corosync.conf")
		b, err := os.ReadFile(path)
		s.must(err)
		if !section.Match(b) {
			t.Fatalf("%s has no section of n3:\n%s", path, b)
		}
		text := strings.Replace(string(section.ReplaceAll(b, nil)), "provider: corosync_votequorum", "provider: corosync_votequorum\n    two_node: 1", 1)
		s.must(os.WriteFile(path, []byte(text), 0o644))
	}
	k.do()
	gone("by hand")

	r := s.stopLoad()
	s.stage("%d rows acknowledged, %d writes lost", r.Acknowledged, r.LostWrites())
	if f := fencings(t, c.lab); len(f) > 0 {
		t.Errorf("fenced: %q", f)
	}
}
