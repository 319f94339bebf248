package e2e

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/load"
)

// otherCluster is a lab that something else than pgbaton runs, which is installed on its nodes.
func otherCluster(t *testing.T, name, agent string) *cluster {
	t.Helper()
	command := built(t, buildCommand)
	o := ordinary()
	o.Agent, o.Files = agent, map[string]string{"/usr/bin/pgbaton": command}
	delete(o.Ops, "promote") // nobody sets its on-fail there
	if agent == "none" {
		o.Layout = "debian" // as Debian's own tools start it: its configuration is elsewhere
	}
	return testCluster(t, name, o)
}

// starts are when the postmasters were started, by node.
func (s *scenario) starts() map[string]string {
	s.t.Helper()
	list := map[string]string{}
	for _, n := range s.lab.Names {
		list[n] = s.sql(n, "SELECT pg_postmaster_start_time()")
	}
	return list
}

// sameStarts checks that no server was started again since.
func (s *scenario) sameStarts(was map[string]string, what string) {
	s.t.Helper()
	for n, now := range s.starts() {
		if now != was[n] {
			s.t.Errorf("%s: the server of %s was started at %s, before at %s", what, n, now, was[n])
		}
	}
}

// agent is the one that the configuration names.
func (s *scenario) agent() string {
	s.t.Helper()
	text := s.run(s.status().Asked, "crm_resource", "--query-xml", "--resource", lab.Resource)
	for _, name := range []string{"pgsqlms", "postgresql"} {
		if strings.Contains(text, `type="`+name+`"`) {
			return name
		}
	}
	return ""
}

// permanent lists the nodes with a permanent promotion score, transient those with another one.
func (s *scenario) permanent() (list []string) {
	return s.nodesWith("//nodes/node[instance_attributes/nvpair[@name='master-" + lab.Resource + "']]")
}

func (s *scenario) transient() (list []string) {
	return s.nodesWith("//node_state[transient_attributes//nvpair[@name='master-" + lab.Resource + "']]")
}

func (s *scenario) nodesWith(xpath string) (list []string) {
	s.t.Helper()
	for _, n := range s.lab.Names {
		_, _, code, err := s.lab.Exec(s.ctx, s.status().Asked, "cibadmin", "--query", "--xpath", strings.Replace(xpath, "[", "[@uname='"+n+"'][", 1))
		s.must(err)
		if code == 0 {
			list = append(list, n)
		}
	}
	return list
}

// maintained tells whether the cluster is in maintenance mode, or a setup's mark is left.
func (s *scenario) maintained() bool {
	s.t.Helper()
	text := s.run(s.status().Asked, "cibadmin", "--query", "--scope", "configuration")
	return strings.Contains(text, `name="maintenance-mode" value="true"`) || strings.Contains(text, `name="pgbaton-setup"`)
}

// patient clients have errors where something happened to the server or its address, and not where the machine is slow.
var patient = load.Options{ConnectTimeout: 20 * time.Second, AnswerTimeout: 20 * time.Second}

// setup runs pgbaton setup under writing clients, none of which may notice.
func (s *scenario) setup(node string, args ...string) (code int, text string) {
	s.t.Helper()
	s.startLoad(patient)
	was := s.starts()
	code, text = s.pgbaton(node, append([]string{"setup"}, args...)...)
	time.Sleep(2 * time.Second) // what Pacemaker would do now it would do at once
	s.sameStarts(was, "setup "+strings.Join(args, " "))
	r := s.stopLoad()
	if len(r.Errors) > 0 || r.LostWrites() > 0 {
		s.t.Errorf("setup %v: clients noticed: %v, %d writes lost", args, r.Errors, r.LostWrites())
	}
	s.noFailures()
	s.stage("setup %s: exit code %d, %d rows acknowledged, longest gap %.0f ms", strings.Join(args, " "), code, r.Acknowledged, r.Longest.Ms)
	return code, text
}

func (s *scenario) is(agent string, what string) {
	s.t.Helper()
	perm, trans, all := s.permanent(), s.transient(), s.lab.Names
	if agent == "pgsqlms" && !(slices.Equal(perm, all) && len(trans) == 0) || agent == "postgresql" && !(len(perm) == 0 && slices.Equal(trans, all)) {
		s.t.Errorf("%s: permanent scores on %q, transient ones on %q", what, perm, trans)
	}
	if got := s.agent(); got != agent {
		s.t.Errorf("%s: the agent is %q, want %q", what, got, agent)
	}
	if s.maintained() {
		s.t.Errorf("%s: still in maintenance mode, or marked", what)
	}
}

// handBaton hands the role over by pgbaton.
func (s *scenario) handBaton(to string) {
	s.t.Helper()
	code, text := s.pgbaton(to, "switchover", "--to", to, "--yes")
	s.expect(code, 0, text, "Done: "+to+" is the primary", "nothing is lost")
	s.settled()
	s.stage("handed over to %s, with proof", to)
}

// Ensure a cluster that pgsqlms runs comes under pgbaton and goes back, without a restart of PostgreSQL and without a client
// that notices, and that handovers work after each.
func TestSetup(t *testing.T) {
	c := otherCluster(t, "paf", "pgsqlms")
	t.Run("there and back", func(t *testing.T) {
		s := c.begin(t, 5*time.Minute, false)
		s.settled()
		configuration := func() string {
			text := s.run(s.old, "cibadmin", "--query", "--scope", "configuration")
			// pgsqlms ranks the standbys there, by who is ahead when its monitor looks.
			return regexp.MustCompile(`<nvpair [^>]*name="master-`+lab.Resource+`"[^>]*>`).ReplaceAllString(text, "")
		}
		before := configuration()
		code, text := s.setup(s.others[0], "--from-paf")
		s.expect(code, 0, text, "Why:", "crm_attribute --name maintenance-mode --update true", "Nothing was changed")
		if configuration() != before {
			t.Error("the plan alone changed the configuration")
		}
		s.is("pgsqlms", "after the plan alone")

		code, text = s.setup(s.others[0], "--from-paf", "--apply")
		s.expect(code, 0, text, "Done")
		s.is("postgresql", "from pgsqlms")
		if p := s.status().Promoted(); !slices.Equal(p, []string{s.old}) {
			t.Errorf("%q are primary, %s was before", p, s.old)
		}
		code, text = s.pgbaton(s.old, "setup", "--from-paf", "--apply")
		s.expect(code, 0, text, "nothing to do")
		s.handBaton(s.others[0])

		code, text = s.setup(s.old, "--back", "--apply")
		s.expect(code, 0, text, "Done")
		s.is("pgsqlms", "back")
		s.move(s.others[1])
		s.promoted(s.others[1])
		s.settled()
		s.clear()
		s.must(s.lab.WaitIdle(s.within(healLimit)))
		s.stage("pgsqlms has handed over to %s", s.others[1])

		// What pgbaton knew is older than what pgsqlms has done since.
		code, text = s.setup(s.others[1], "--from-paf", "--apply")
		s.expect(code, 0, text, "Done")
		s.is("postgresql", "from pgsqlms once more")
		s.handBaton(s.old)
		code, text = s.setup(s.old, "--back", "--apply")
		s.expect(code, 0, text, "Done")
		s.is("pgsqlms", "back at the end")
		s.must(s.lab.WaitIdle(s.within(healLimit)))
		s.noFailures()
		s.sameRows()
	})
	t.Run("refused and taken back", func(t *testing.T) {
		s := c.begin(t, 3*time.Minute, false)
		s.settled()
		s.setupRefused()
	})
}

// Ensure a setup that is killed at any of its steps is gone on with by the same command, on another node, or turned back.
func TestSetup_Killed(t *testing.T) {
	c := otherCluster(t, "paf", "pgsqlms")
	s := c.begin(t, 6*time.Minute, false)
	s.settled()
	for _, at := range []string{"Put the cluster", "Give the resource", "Have the agent", "End the maintenance", "Remove the promotion scores"} {
		s.cutShort(at, "--from-paf")
		s.is("postgresql", "cut short at: "+at)
		code, text := s.pgbaton(s.old, "setup", "--back", "--apply")
		s.expect(code, 0, text, "Done")
	}
	// And the other way round: turned back in the middle.
	for _, at := range []string{"Give the resource", "Remove what pgbaton said"} {
		code, text := s.pgbaton(s.old, "setup", "--from-paf", "--apply")
		s.expect(code, 0, text, "Done")
		s.cutShort(at, "--back")
		s.is("pgsqlms", "cut short on the way back at: "+at)
	}
	s.kill("End the maintenance", "--from-paf")
	code, text := s.pgbaton(s.others[0], "setup", "--back", "--apply")
	s.expect(code, 0, text, "Done")
	s.is("pgsqlms", "turned back")
	s.noFailures()
}

// Ensure what pgbaton did not start is its own in a failure: a primary and a standby that die are started again in place, and
// another node takes over from a primary that is lost, which comes back as its standby.
func TestSetup_Failures(t *testing.T) {
	c := otherCluster(t, "paf", "pgsqlms")
	s := c.begin(t, 4*time.Minute, false)
	s.settled()
	if s.agent() == "pgsqlms" {
		code, text := s.setup(s.old, "--from-paf", "--apply")
		s.expect(code, 0, text, "Done")
	}
	for _, node := range []string{s.old, s.others[0]} {
		was := s.starts()
		s.must(s.lab.SignalPostgres(node, syscall.SIGKILL, false))
		s.await(30*time.Second, func() error {
			if now, err := s.lab.SQL(s.ctx, node, "SELECT pg_postmaster_start_time()"); err != nil || now == was[node] {
				return lab.NotYet("the server of %s does not run again (%v)", node, err)
			}
			return nil
		})
		s.settled()
		if p := s.status().Promoted(); !slices.Equal(p, []string{s.old}) {
			t.Errorf("after the end of the server of %s %q are primary, expected %s", node, p, s.old)
		}
		s.noFailures()
		s.stage("the server of %s was killed, and started again", node)
	}
	timeline := s.timeline(s.old)
	s.powerOff(s.old)
	next := s.newPrimary(timeline, "")
	s.stage("%s has no power, %s took over", s.old, next)
	s.must(s.lab.Power(s.ctx, s.old, true))
	s.settled()
	s.stage("%s is back", s.old)
	s.sameRows()
}

// setupRefused: nothing is changed where something is missing.
func (s *scenario) setupRefused() {
	s.t.Helper()
	before := s.run(s.old, "cibadmin", "--query", "--xpath", "//resources")
	was := s.starts()
	unchanged := func(what string) {
		s.t.Helper()
		if now := s.run(s.old, "cibadmin", "--query", "--xpath", "//resources"); strings.ReplaceAll(now, "\n    <meta_attributes id=\"pgsql-ha-meta_attributes\"/>", "") != strings.ReplaceAll(before, "\n    <meta_attributes id=\"pgsql-ha-meta_attributes\"/>", "") {
			s.t.Errorf("%s: the resources are not what they were:\n%s\nbefore:\n%s", what, now, before)
		}
		s.is("pgsqlms", what)
		s.sameStarts(was, what)
		s.noFailures()
		s.stage("%s", what)
	}
	code, text := s.pgbaton(s.old, "setup", "--from-paf", "--back")
	s.expect(code, 2, text)
	code, text = s.pgbaton(s.old, "setup", "--back", "--apply")
	s.expect(code, 0, text, "nothing to do")
	unchanged("nothing to do")

	s.standby(s.others[0], true)
	s.await(healLimit, func() error {
		if st, err := s.lab.View(s.ctx); err != nil || st.Node(s.others[0]).Role == "Unpromoted" {
			return lab.NotYet("%s still runs its instance (%v)", s.others[0], err)
		}
		return nil
	})
	code, text = s.pgbaton(s.old, "setup", "--from-paf", "--apply")
	s.expect(code, 3, text, s.others[0]+" is standby", "Nothing was changed")
	s.standby(s.others[0], false)
	s.settled()
	// The score that pgsqlms keeps is that of before, until the monitor of its primary, every 4 s, has looked at a standby that
	// did not stream yet, and again.
	time.Sleep(6 * time.Second)
	s.settled()
	was = s.starts()
	unchanged("a node in standby")

	hide := func(node string) func() {
		s.run(node, "mv", agentInNode, agentInNode+".away")
		return func() { s.run(node, "mv", agentInNode+".away", agentInNode) }
	}
	back := hide(s.old)
	code, text = s.pgbaton(s.old, "setup", "--from-paf", "--apply")
	s.expect(code, 3, text, "ocf:pgbaton:postgresql is not installed on this node", "Nothing was changed")
	back()
	unchanged("not installed here")

	back = hide(s.others[1])
	code, text = s.setup(s.old, "--from-paf", "--apply")
	s.expect(code, 4, text, "on "+s.others[1]+" answers not installed", "everything is as it was before")
	back()
	unchanged("not installed elsewhere")
}

// kill ends setup with SIGKILL as it begins a step.
func (s *scenario) kill(step, way string) {
	s.t.Helper()
	run := s.start(s.others[0], "setup", way, "--apply")
	if !run.until(". " + step) {
		s.t.Fatalf("setup %s has no step %q:\n%s", way, step, run.text.String())
	}
	// The plan names the steps too, before any is done.
	if !run.until(". " + step) {
		s.t.Fatalf("setup %s did not begin the step %q:\n%s", way, step, run.text.String())
	}
	run.signal(syscall.SIGKILL)
	run.wait()
}

// cutShort kills it, and runs it again on another node.
func (s *scenario) cutShort(step, way string) {
	s.t.Helper()
	was := s.starts()
	s.kill(step, way)
	code, text := s.pgbaton(s.old, "setup", way, "--apply")
	s.expect(code, 0, text, "Done")
	s.sameStarts(was, fmt.Sprintf("setup %s killed at %q and run again", way, step))
	s.noFailures()
	s.stage("setup %s, killed at %q and run again", way, step)
}

// Ensure a cluster that knows nothing of the PostgreSQL that runs on its nodes, with plain streaming replication, comes under
// pgbaton, by the commands of either tool, without a restart and without a client that notices.
func TestSetup_New(t *testing.T) {
	c := otherCluster(t, "plain", "none")
	for _, tool := range []string{"pcs", "crm"} {
		t.Run(tool, func(t *testing.T) {
			s := c.plain(t, 4*time.Minute)
			before := s.run(s.old, "cibadmin", "--query", "--scope", "configuration")
			code, text := s.pgbaton(s.others[0], "setup", "--tool", tool, "--vip", lab.VIP+"/24")
			s.expect(code, 3, text, "run this on the node of the primary", "Nothing was changed")
			code, text = s.setup(s.old, "--tool", tool, "--vip", lab.VIP+"/24")
			s.expect(code, 0, text, "Nothing was changed", "bindir=", "/etc/postgresql/", "maintenance-mode=true", "systemctl disable postgresql")
			if tool == "pcs" {
				s.run(s.others[1], "mv", agentInNode, agentInNode+".away")
				code, text = s.setup(s.old, "--tool", tool, "--vip", lab.VIP+"/24", "--apply")
				s.expect(code, 4, text, "on "+s.others[1]+" answers not installed", "everything is as it was before")
				s.run(s.others[1], "mv", agentInNode+".away", agentInNode)
			}
			// Each change counts itself, and writes when and by whom.
			if now := s.run(s.old, "cibadmin", "--query", "--scope", "resources"); strings.Contains(now, lab.Resource) || strings.Contains(before, lab.Resource) {
				t.Errorf("the plan, or what was taken back, left something:\n%s", now)
			}
			code, text = s.setup(s.old, "--tool", tool, "--vip", lab.VIP+"/24", "--apply")
			s.expect(code, 0, text, "Done")
			s.is("postgresql", "set up")
			if st := s.status(); !slices.Equal(st.Promoted(), []string{s.old}) || st.VIP != s.old {
				t.Errorf("%q are primary, the virtual IP is on %q, expected both on %s", st.Promoted(), st.VIP, s.old)
			}
			code, text = s.pgbaton(s.old, "setup")
			s.expect(code, 0, text, "nothing to do")
			s.handBaton(s.others[0])
			s.onlyPacemaker()
			for _, f := range s.check(s.others[0]) {
				if f.ID != "start-conf" { // what the system does is a person's to see to, on every node
					t.Errorf("check finds %+v", f)
				}
				s.run(s.others[0], "sh", "-c", f.Do)
			}
			s.found(s.others[0], "once all is done that check says")
			s.finish()
		})
	}
}

// plain is a scenario on plain streaming replication.
func (c *cluster) plain(t *testing.T, limit time.Duration) *scenario {
	t.Helper()
	_, _, code, err := c.lab.Exec(t.Context(), c.lab.Names[0], "cibadmin", "--query", "--xpath", "//primitive[@id='"+lab.Resource+"']")
	if err != nil {
		t.Fatal(err)
	}
	if code == 0 {
		s := c.begin(t, limit, false)
		s.settled()
		s.forget()
		return s
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	t.Cleanup(func() {
		if t.Failed() {
			c.lab.Dump(context.Background(), t.Output())
		}
	})
	s := &scenario{t: t, lab: c.lab, ctx: ctx, last: time.Now(), old: c.lab.Names[0], others: c.lab.Names[1:], fenced: fencings(t, c.lab)}
	t.Cleanup(func() {
		if s.load != nil {
			s.load.Stop()
		}
	})
	return s
}

// forget takes PostgreSQL and the virtual IP out of Pacemaker's hands, and leaves both as they are.
func (s *scenario) forget() {
	s.t.Helper()
	was := s.starts()
	on := s.old
	s.run(on, "crm_attribute", "--name", "maintenance-mode", "--update", "true")
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	for _, xpath := range []string{"//constraints/*", "//constraints/*", "//constraints/*", "//clone", "//primitive[@id='" + lab.VIPResource + "']", "//rsc_defaults/meta_attributes"} {
		s.run(on, "cibadmin", "--delete", "--xpath", xpath)
	}
	for _, n := range s.lab.Names {
		s.run(on, "crm_attribute", "--node", n, "--name", "master-"+lab.Resource, "--lifetime", "forever", "--delete")
		s.run(on, "attrd_updater", "--node", n, "--name", "master-"+lab.Resource, "--delete")
	}
	for _, n := range s.lab.Names {
		for _, r := range []string{lab.Resource, lab.VIPResource} {
			_, _, _, err := s.lab.Exec(s.ctx, on, "crm_resource", "--refresh", "--resource", r, "--node", n)
			s.must(err)
		}
	}
	s.await(healLimit, func() error {
		_, _, code, err := s.lab.Exec(s.ctx, on, "cibadmin", "--query", "--xpath", "//lrm_resource[@id='"+lab.Resource+"']")
		if err != nil || code == 0 {
			return lab.NotYet("Pacemaker still remembers it (%v)", err)
		}
		return nil
	})
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	s.run(on, "crm_attribute", "--name", "maintenance-mode", "--delete")
	time.Sleep(2 * time.Second)
	s.must(s.lab.WaitIdle(s.within(healLimit)))
	s.sameStarts(was, "without Pacemaker")
	s.stage("plain streaming replication, Pacemaker knows nothing of it")
}
