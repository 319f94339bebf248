package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// block is what docs/tasks.md has to be run on a node.
type block struct {
	section string
	node    string // as the page calls it
	code    int    // exit code that the page expects
	script  string
}

// onNode is the first line of a block.
var onNode = regexp.MustCompile(`^# on (n[123])(?: \(exit code (\d+)\))?$`)

// taskBlocks reads the blocks that docs/tasks.md has for the nodes, in their order.
func taskBlocks(t testing.TB) []block {
	t.Helper()
	data, err := os.ReadFile("../docs/tasks.md")
	if err != nil {
		t.Fatal(err)
	}
	var list []block
	section, indent := "", ""
	open := false
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\n")
		text := strings.TrimLeft(line, " ")
		lead := line[:len(line)-len(text)]
		if m := onNode.FindStringSubmatch(text); m != nil && len(lead) >= 4 {
			b := block{section: section, node: m[1]}
			fmt.Sscan(m[2], &b.code)
			list, open, indent = append(list, b), true, lead
			continue
		}
		open = open && strings.HasPrefix(line, indent)
		switch title, ok := strings.CutPrefix(line, "## "); {
		case ok:
			section = title
		case open:
			list[len(list)-1].script += strings.TrimPrefix(line, indent) + "\n"
		}
	}
	return list
}

// tasks runs the blocks of one section after the other.
type tasks struct {
	*scenario
	blocks []block
	names  map[string]string // of the page to those of the lab
}

func (s *scenario) tasks(section string, all []block) *tasks {
	s.t.Helper()
	k := &tasks{scenario: s, names: map[string]string{"n1": s.old, "n2": s.others[0], "n3": s.others[1]}}
	for _, b := range all {
		if b.section == section {
			k.blocks = append(k.blocks, b)
		}
	}
	if len(k.blocks) == 0 {
		s.t.Fatalf("docs/tasks.md has nothing to be run in %q", section)
	}
	return k
}

var pageName = regexp.MustCompile(`\bn[123]\b`)

// do runs the next block of the section.
func (k *tasks) do() string {
	k.t.Helper()
	if len(k.blocks) == 0 {
		k.t.Fatal("docs/tasks.md has fewer blocks than this test wants to run")
	}
	b := k.blocks[0]
	k.blocks = k.blocks[1:]
	script := pageName.ReplaceAllStringFunc(b.script, func(n string) string { return k.names[n] })
	out, errs, code, err := k.lab.Exec(k.within(2*time.Minute), k.names[b.node], "sh", "-euc", script)
	if code != b.code {
		k.t.Fatalf("on %s: exit code %d (%v), the page says %d\n%s%s%s", k.names[b.node], code, err, b.code, script, out, errs)
	}
	k.stage("on %s: %s", k.names[b.node], strings.ReplaceAll(strings.TrimSpace(script), "\n", "; "))
	return out
}

// end is finish, and makes sure that the section has no block that was not run.
func (k *tasks) end() {
	k.t.Helper()
	if len(k.blocks) > 0 {
		k.t.Errorf("not run: %+v", k.blocks)
	}
	k.streaming()
	k.finish()
}

// Ensure the tasks of docs/tasks.md do what the page says, as they stand there. Those that need systemd are TestMachines'.
func TestTasks(t *testing.T) {
	all := taskBlocks(t)
	command := built(t, buildCommand)
	other := built(t, buildFaultyAgent) // another build, so that it is another agent
	o := ordinary()
	o.Layout = "debian"
	o.AutoReturn = time.Hour
	o.Conf["checkpoint_timeout"] = "30s"
	o.Conf["primary_conninfo"] = "host=" + lab.VIP + " user=replicator tcp_user_timeout=3000"
	o.Files = map[string]string{
		"/usr/bin/pgbaton": command, "/root/pgbaton-new/pgbaton": command, "/root/pgbaton-new/pgbaton-agent": other,
	}
	c := testCluster(t, "tasks", o)
	started := func(s *scenario, node string) string { return s.sql(node, "SELECT pg_postmaster_start_time()") }

	t.Run("Upgrade of pgbaton", func(t *testing.T) {
		s := c.begin(t, 4*time.Minute, true)
		from := s.old
		for _, n := range []string{s.others[1], s.others[0], s.old} {
			s.settled() // a status tells what the last monitors saw
			k := s.tasks("Upgrade of pgbaton", all)
			before := started(s, n)
			k.names["n3"] = n
			k.do()
			if len(k.blocks) > 0 {
				t.Errorf("not run: %+v", k.blocks)
			}
			s.await(healLimit, func() error { return newSentinel(s, n) })
			if now := started(s, n); now != before {
				t.Errorf("the server of %s was restarted", n)
			}
			s.stage("%s has the new agent, and its sentinel", n)
			if n == s.others[0] {
				// Between nodes of both releases: to one that has the new one, while the primary has the old one.
				code, text := s.pgbaton(from, "switchover", "--yes", "--to", n)
				s.expect(code, 0, text, "Done:")
				s.streaming()
			}
		}
		c.faulty = true // that is what the other build is
		s.finish()
	})

	t.Run("Maintenance", func(t *testing.T) {
		s := c.begin(t, 5*time.Minute, true)
		k := s.tasks("Maintenance", all)
		k.do()
		now := s.promotedBut(s.old)
		k.do()
		s.stage("%s was primary meanwhile", now)
		s.streaming()
		s.finish()

		s = c.begin(t, 4*time.Minute, true)
		k.scenario, k.names = s, map[string]string{"n1": s.old}
		was, before := s.timeline(s.old), started(s, s.old)
		k.do()
		if started(s, s.old) == before || s.timeline(s.old) != was {
			t.Errorf("%s was to be restarted and to stay primary on timeline %d", s.old, was)
		}
		k.end()
	})

	t.Run("When nobody is promoted", func(t *testing.T) { tasksNobody(t, c, all) })

	// What is left is not the cluster that others expect.
	if err := endCluster(); err != nil {
		t.Error(err)
	}
}

// tasksNobody brings the cluster twice to where nobody is promoted: the primary's node leaves, and the others are cut off just
// before it stops. First it comes back, then it does not.
func tasksNobody(t *testing.T, c *cluster, all []block) {
	c.useFaults(t, true)
	s := c.begin(t, 8*time.Minute, true)
	k := s.tasks("When nobody is promoted", all)
	nobody := func() {
		t.Helper()
		s.pause(s.old, atStop, func() { s.standby(s.old, true) }, func() {
			// The page's n2 is to lack the least: it is cut off last.
			s.cutStandby(s.others[1])
			s.cutStandby(s.others[0])
		})
		for _, n := range s.others {
			s.refused(n)
		}
		s.must(s.lab.HealAll(s.ctx))
		s.must(s.lab.WaitIdle(s.within(roleLimit)))
		s.stage("nobody is primary")
	}
	nobody()
	if out := k.do(); !strings.Contains(out, "crm_standby") {
		t.Errorf("status does not say the way out:\n%s", out)
	}
	k.do()
	s.promoted(s.old)
	s.streaming()
	for _, n := range s.others {
		s.lifted(n)
	}

	nobody()
	s.powerOff(s.old)
	k.do()
	s.promoted(s.others[0])
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.fenced = fencings(t, s.lab)
	s.standby(s.old, false)
	s.must(s.lab.Power(s.ctx, s.old, true))
	s.keptOut(s.old, `^diverged: `)
	out := k.do()
	s.stage("%s", out)
	s.mayBePromoted(s.old)
	if len(k.blocks) > 0 {
		t.Errorf("not run: %+v", k.blocks)
	}
	s.streaming()
	s.run(s.others[0], "crm_resource", "--cleanup")
	s.load.Stop() // a person has accepted a loss
	s.load = nil
	s.sameRows()
}

// newSentinel reports whether a sentinel runs on a node, and is the agent's that is in place there.
func newSentinel(s *scenario, node string) error {
	procs, err := s.lab.Processes(node)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(procs, func(p lab.Process) bool { return p.State != "Z" && strings.HasSuffix(p.Args, " sentinel") })
	if i < 0 {
		return lab.NotYet("no sentinel runs on %s", node)
	}
	exe, err := os.Stat(fmt.Sprintf("/proc/%d/exe", procs[i].PID))
	if err != nil {
		return lab.NotYet("%v", err)
	}
	root, err := s.lab.Root(node)
	if err != nil {
		return err
	}
	there, err := os.Stat(filepath.Join(root, agentInNode))
	if err != nil {
		return err
	}
	if !os.SameFile(exe, there) {
		return lab.NotYet("the sentinel of %s (pid %d) is that of the old agent", node, procs[i].PID)
	}
	return nil
}
