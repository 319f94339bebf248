package e2e

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// consoleCluster is a lab with the operator's command on its nodes.
func consoleCluster(t *testing.T) *cluster {
	t.Helper()
	command := built(t, buildCommand)
	o := ordinary()
	o.Files = map[string]string{"/usr/bin/pgbaton": command}
	// As the README asks for it; the nodes' names come from cluster_name.
	o.Conf["primary_conninfo"] = "host=" + lab.VIP + " user=replicator tcp_user_timeout=3000"
	return testCluster(t, "console", o)
}

// command is the operator's command while it runs on a node.
type command struct {
	s     *scenario
	node  string
	args  string
	cmd   *exec.Cmd
	lines chan string
	done  chan struct{}
	code  int
	text  strings.Builder // all that it wrote; to be read after done
}

// start runs the command on a node. What it writes comes line by line.
func (s *scenario) start(node string, args ...string) *command {
	s.t.Helper()
	cmd, err := s.lab.Command(s.ctx, node, append([]string{"pgbaton"}, args...)...)
	s.must(err)
	out, err := cmd.StdoutPipe()
	s.must(err)
	cmd.Stderr = cmd.Stdout
	s.must(cmd.Start())
	c := &command{s: s, node: node, args: strings.Join(args, " "), cmd: cmd, lines: make(chan string, 1000), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		for in := bufio.NewScanner(out); in.Scan(); {
			c.text.WriteString(in.Text() + "\n")
			c.lines <- in.Text()
		}
		close(c.lines)
		_ = cmd.Wait()
		c.code = cmd.ProcessState.ExitCode()
	}()
	return c
}

// until waits for a line with this text. It reports whether there was one.
func (c *command) until(text string) bool {
	for line := range c.lines {
		if strings.Contains(line, text) {
			return true
		}
	}
	return false
}

// wait waits for the end and returns exit code and output.
func (c *command) wait() (int, string) {
	c.s.t.Helper()
	select {
	case <-c.done:
	case <-c.s.within(2 * time.Minute).Done():
		c.s.t.Fatalf("pgbaton on %s does not end", c.node)
	}
	return c.code, c.text.String()
}

// signal sends a signal to the command itself, not to the program that put it into the node.
func (c *command) signal(sig syscall.Signal) {
	c.s.t.Helper()
	procs, err := c.s.lab.Processes(c.node)
	c.s.must(err)
	for _, p := range procs {
		if p.Name == "pgbaton" && strings.Contains(p.Args, c.args) {
			c.s.must(c.s.lab.Signal(sig, p.PID))
			return
		}
	}
	c.s.t.Errorf("no pgbaton %s runs on %s", c.args, c.node)
}

// pgbaton runs the command to its end.
func (s *scenario) pgbaton(node string, args ...string) (code int, text string) {
	s.t.Helper()
	return s.start(node, args...).wait()
}

// moves are the constraints of moves and bans that stand in the configuration.
func (s *scenario) moves() []string {
	s.t.Helper()
	st, err := s.lab.Status(s.ctx)
	s.must(err)
	return slices.DeleteFunc(st.Location, func(id string) bool { return !strings.HasPrefix(id, "cli-") })
}

func (s *scenario) noMoves() {
	s.t.Helper()
	if m := s.moves(); len(m) > 0 {
		s.t.Errorf("constraints of moves and bans are left: %q", m)
	}
}

// asBefore ends a scenario in which the role stayed, or came back: nothing is left of it once its target is reached again.
func (s *scenario) asBefore(target string) {
	s.t.Helper()
	s.noMoves()
	s.must(s.lab.HealAll(s.ctx))
	s.lifted(target)
	s.promoted(s.old)
	s.finish()
}

func (s *scenario) expect(code, want int, text string, words ...string) {
	s.t.Helper()
	if code != want {
		s.t.Errorf("exit code %d, want %d:\n%s", code, want, text)
	}
	flat := strings.Join(strings.Fields(text), " ")
	for _, w := range words {
		if !strings.Contains(flat, w) {
			s.t.Errorf("no %q in\n%s", w, text)
		}
	}
}

// statusTakes is the median of nine.
func (s *scenario) statusTakes(node string) time.Duration {
	var took []time.Duration
	for range 9 {
		began := time.Now()
		s.pgbaton(node, "status")
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took[4]
}

// Ensure a person gets the cluster on one screen, from the primary's node and from a standby's, and soon.
func TestConsole_Status(t *testing.T) {
	c := consoleCluster(t)
	c.useFaults(t, false)
	s := c.begin(t, 4*time.Minute, false)
	for _, n := range c.lab.Names {
		s.await(30*time.Second, func() error { // every agent has looked since all of them stream
			if code, text := s.pgbaton(n, "status"); code != 0 || strings.Count(text, " streams ") != len(s.others) {
				return lab.NotYet("%s", text)
			}
			return nil
		})
		code, text := s.pgbaton(n, "status")
		s.expect(code, 0, text, "pgsql-ha: healthy", "seen from "+n, s.old+" primary runs", "Handover: possible now, to")
		for _, o := range s.others {
			s.expect(code, 0, text, o+" standby streams")
		}
		var st struct {
			Version  int
			Primary  []string
			Handover struct{ To []string }
		}
		code, text = s.pgbaton(n, "status", "--json")
		s.must(json.Unmarshal([]byte(text), &st))
		if code != 0 || st.Version != 1 || !slices.Equal(st.Primary, []string{s.old}) || len(st.Handover.To) != len(s.others) {
			t.Errorf("on %s: got %+v, code %d", n, st, code)
		}
		took := s.statusTakes(n)
		t.Logf("a status on %s takes %s in the median, with what it takes to run it in the node", n, took.Round(time.Millisecond))
		if limit := here(150 * time.Millisecond); took > limit {
			t.Errorf("a status on %s takes %s in the median, more than %s", n, took, limit)
		}
	}

	// Half of the cluster is away: it does not take longer and says so.
	gone := s.others[1]
	s.must(c.lab.Power(s.ctx, gone, false))
	s.await(20*time.Second, func() error { // until its fencing has ended it is unclean, which is worse than offline
		code, text := s.pgbaton(s.others[0], "status")
		if !strings.Contains(text, gone+" is offline") {
			if strings.Contains(text, gone+" is unclean") {
				s.expect(code, 1, text, "IN TROUBLE", gone+" is unclean: it must be fenced", "not possible now")
			}
			return lab.NotYet("a status on %s says\n%s", s.others[0], text)
		}
		return nil
	})
	code, text := s.pgbaton(s.others[0], "status")
	s.expect(code, 1, text, gone+" is offline", "needs attention", "possible now, to "+s.others[0])
	if took := s.statusTakes(s.others[0]); took > here(300*time.Millisecond) {
		t.Errorf("with a dead node a status takes %s in the median", took)
	}
	code, text = s.pgbaton(s.old, "switchover", "--to", gone, "--yes")
	s.expect(code, 3, text, "nothing was changed: "+gone+" is offline")
	s.must(c.lab.Power(s.ctx, gone, true))

	code, text = s.pgbaton(s.old, "switchover", "--to", "m1", "--yes")
	s.expect(code, 3, text, `there is no node "m1" in this cluster: its nodes are n1, n2, n3, did you mean n1?`)
	code, text = s.pgbaton(s.old, "switchover", "--to", s.others[0])
	s.expect(code, 3, text, "nobody can be asked")
	code, text = s.pgbaton(s.old, "-r", "pgsqlx", "status")
	s.expect(code, 3, text, "did you mean pgsqld?")
	code, text = s.pgbaton(s.old, "statsu")
	s.expect(code, 2, text)
	cmd, err := c.lab.CommandAs(s.ctx, s.old, "nobody", "pgbaton", "status")
	s.must(err)
	out, _ := cmd.CombinedOutput()
	s.expect(cmd.ProcessState.ExitCode(), 6, string(out), "no permission to ask Pacemaker")
	s.noMoves()
	s.streaming()
	s.must(c.lab.StopCluster(s.ctx, s.others[0]))
	code, text = s.pgbaton(s.others[0], "status")
	s.expect(code, 6, text, "the cluster does not run on this node")
	s.must(c.lab.StartCluster(s.ctx, s.others[0]))
	s.streaming()
}

// Ensure a switchover from each node ends with its exit code when the role has come to rest, and leaves no constraint.
//
// Trap 20: the command follows a switchover to its end and says how it ended.
func TestConsole_Switchover(t *testing.T) {
	c := consoleCluster(t)

	t.Run("done", func(t *testing.T) {
		c.useFaults(t, false)
		s := c.begin(t, 4*time.Minute, true)
		from, timeline := s.old, s.timeline(s.old)
		for n, on := range []string{s.old, s.others[0], s.others[1]} {
			args := []string{"switchover", "--yes"}
			if n != 2 { // the last time it chooses by itself
				args = append(args, "--to", s.others[n])
			}
			code, text := s.pgbaton(on, args...)
			s.expect(code, 0, text, "Done:", "nothing is lost", "removed the constraint")
			to := s.status().Promoted()
			if len(to) != 1 || to[0] == from || n != 2 && to[0] != s.others[n] {
				t.Fatalf("%q are primary after\n%s", to, text)
			}
			s.noMoves()
			s.noFailuresIn(s.highest(to[0]))
			timeline = s.proven(from, timeline, to[0])
			s.stage("%s to %s, from %s", from, to[0], on)
			from = to[0]
			s.streaming()
		}
		code, text := s.pgbaton(from, "switchover", "--to", from, "--yes")
		s.expect(code, 0, text, from+" is the primary already")
		s.finish()
	})

	t.Run("rolled back", func(t *testing.T) {
		c.useFaults(t, true)
		s := c.begin(t, 3*time.Minute, true)
		target := s.others[0]
		var cmd *command
		s.pause(s.old, "demote/fast-stop before", func() {
			cmd = s.start(s.others[1], "switchover", "--to", target, "--yes")
		}, func() { s.cutStandby(target) })
		code, text := cmd.wait()
		s.expect(code, 4, text, "Rolled back:", s.old+" is the primary", "bytes of WAL", "removed the constraint")
		s.asBefore(target)
	})

	t.Run("called off", func(t *testing.T) {
		c.useFaults(t, false)
		s := c.begin(t, 3*time.Minute, true)
		target := s.others[0]
		s.cutStandby(target) // its connections hang, which nobody has noticed yet
		code, text := s.pgbaton(s.old, "switchover", "--to", target, "--yes")
		s.expect(code, 4, text, "called off before anything was stopped", "the reason: "+target)
		s.asBefore(target)
	})

	t.Run("two at once", func(t *testing.T) {
		c.useFaults(t, false)
		s := c.begin(t, 3*time.Minute, true)
		a := s.start(s.others[0], "switchover", "--to", s.others[0], "--yes")
		b := s.start(s.others[1], "switchover", "--to", s.others[1], "--yes")
		codeA, textA := a.wait()
		codeB, textB := b.wait()
		codes := []int{codeA, codeB}
		slices.Sort(codes)
		if !slices.Equal(codes, []int{0, 3}) {
			t.Errorf("exit codes %d and %d, want one done and one refused:\n%s\n%s", codeA, codeB, textA, textB)
		}
		want := s.others[0]
		if codeB == 0 {
			want = s.others[1]
		}
		s.promoted(want)
		s.noMoves()
		s.finish()
	})
}

// Ensure that in a pause PostgreSQL serves on and Pacemaker touches nothing, also when the server is restarted by hand, and
// that after it all is as it was.
func TestConsole_Pause(t *testing.T) {
	c := consoleCluster(t)
	c.useFaults(t, false)
	s := c.begin(t, 3*time.Minute, false)
	standby := s.others[0]
	code, text := s.pgbaton(standby, "pause")
	s.expect(code, 0, text, "pgsql-ha is paused")
	s.must(c.lab.WaitIdle(s.within(30 * time.Second)))
	code, text = s.pgbaton(s.old, "status")
	s.expect(code, 1, text, "maintenance YES", "pgbaton resume", "not possible now")
	code, text = s.pgbaton(s.old, "switchover", "--yes")
	s.expect(code, 3, text, "Pacemaker would do nothing")
	code, text = s.pgbaton(s.old, "pause")
	s.expect(code, 0, text, "already paused")

	ctl := func(args ...string) {
		t.Helper()
		cmd, err := c.lab.CommandAs(s.ctx, standby, "postgres", append([]string{filepath.Join(c.lab.Bindir, "pg_ctl"), "-D", c.lab.DataDir(), "-w", "-l", "/dev/null"}, args...)...)
		s.must(err)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("pg_ctl %q: %v: %s", args, err, out)
		}
	}
	ctl("stop", "-m", "fast")
	time.Sleep(8 * time.Second) // more than a monitor's interval
	if _, err := c.lab.Postmaster(standby); err == nil {
		t.Errorf("somebody started the server of %s in the pause", standby)
	}
	code, text = s.pgbaton(standby, "resume")
	s.expect(code, 3, text, "does not answer", "nothing was changed")
	ctl("start")
	code, text = s.pgbaton(standby, "resume")
	s.expect(code, 0, text, "pgsql-ha is managed again")
	s.promoted(s.old)
	s.await(30*time.Second, func() error {
		if code, text := s.pgbaton(standby, "status"); code != 0 {
			return lab.NotYet("%s", text)
		}
		return nil
	})
	s.finish()
}

// switchoverSteps are what the command shows on its way, in this order. It is ended right after each.
var switchoverSteps = []string{"constraint cli-prefer", "is being shut down", "asks the others", "is the primary", "begins at", "removed the constraint"}

// Ensure that after the command was killed at each of its steps, or lost its node, no constraint is in effect after 60 s
// that was not there before, nothing moves the role when it ends, and there is a primary.
//
// Each takes a minute, so only two of the steps are tried, others from day to day; PGBATON_KILL_ALL=1 tries all.
func TestConsole_Killed(t *testing.T) {
	c := consoleCluster(t)
	steps := slices.Clone(switchoverSteps)
	if os.Getenv("PGBATON_KILL_ALL") == "" {
		day := time.Now().YearDay()
		steps = []string{steps[day%len(steps)], steps[(day+2)%len(steps)]}
	}
	for n, step := range steps {
		t.Run(step, func(t *testing.T) {
			c.useFaults(t, false)
			s := c.begin(t, 3*time.Minute, true)
			on := c.lab.Names[n%len(c.lab.Names)]
			cmd := s.start(on, "switchover", "--to", s.others[0], "--yes")
			if !cmd.until(step) {
				code, text := cmd.wait()
				t.Fatalf("never came to %q: exit code %d\n%s", step, code, text)
			}
			killed := time.Now()
			cmd.signal(syscall.SIGKILL)
			cmd.wait()
			s.stage("killed on %s after %q", on, step)
			s.staysPut(killed)
			// The next one finds nothing in its way.
			from := s.status().Promoted()[0]
			code, text := s.pgbaton(on, "switchover", "--yes")
			s.expect(code, 0, text, "Done:")
			if now := s.status().Promoted(); len(now) != 1 || now[0] == from {
				t.Errorf("%q are primary after\n%s", now, text)
			}
			s.noMoves()
			s.finish()
		})
	}

	t.Run("loss of its node", func(t *testing.T) {
		c.useFaults(t, false)
		s := c.begin(t, 4*time.Minute, true)
		on := s.others[1] // neither the old primary nor the new one
		cmd := s.start(on, "switchover", "--to", s.others[0], "--yes")
		if !cmd.until("is being shut down") {
			t.Fatal("the handover did not begin")
		}
		killed := time.Now()
		s.must(c.lab.Power(s.ctx, on, false))
		s.stage("%s has lost power", on)
		s.staysPut(killed)
		s.must(c.lab.Power(s.ctx, on, true))
		s.streaming()
		s.fenced = fencings(t, c.lab) // it was fenced, as it must be
		s.finish()
	})

	t.Run("interrupted", func(t *testing.T) {
		c.useFaults(t, false)
		s := c.begin(t, 3*time.Minute, true)
		cmd := s.start(s.old, "switchover", "--to", s.others[0], "--yes")
		cmd.until("is being shut down")
		interrupted := time.Now()
		cmd.signal(syscall.SIGINT)
		code, text := cmd.wait()
		if took := time.Since(interrupted); took > 2*time.Second {
			t.Errorf("ended %s after Ctrl-C", took)
		}
		if code != 0 && code != 5 {
			t.Errorf("exit code %d, want 5, or 0 if it was over by then:\n%s", code, text)
		}
		s.staysPut(interrupted)
		s.promoted(s.others[0])
		s.finish()
	})

	t.Run("lost terminal", func(t *testing.T) {
		c.useFaults(t, false)
		s := c.begin(t, 3*time.Minute, true)
		cmd := s.start(s.old, "switchover", "--to", s.others[0], "--yes")
		cmd.until("is being shut down")
		cmd.signal(syscall.SIGHUP)
		code, text := cmd.wait()
		s.expect(code, 0, text, "Done:", "removed the constraint")
		s.finish()
	})
}

// staysPut waits until no constraint of a move is in effect, at most 60 s from then, and checks that there is a primary
// which stays where it is.
func (s *scenario) staysPut(from time.Time) {
	s.t.Helper()
	primary := s.promoted("")
	s.highest(primary)
	s.must(s.lab.WaitIdle(s.within(30 * time.Second)))
	primary = s.promoted("")
	timeline := s.timeline(primary)
	node := primary
	s.await(time.Until(from.Add(60*time.Second)), func() error {
		_, text := s.pgbaton(node, "status", "-o", "wide")
		if strings.Contains(text, "cli-prefer") {
			return lab.NotYet("a constraint is in effect: %s", text)
		}
		return nil
	})
	s.stage("no constraint is in effect")
	time.Sleep(5 * time.Second) // Pacemaker looks again when it ends
	s.must(s.lab.WaitIdle(s.within(30 * time.Second)))
	if now := s.status().Promoted(); !slices.Equal(now, []string{primary}) {
		s.t.Fatalf("%q are primary after the end of the constraint, %s was before", now, primary)
	}
	if now := s.timeline(primary); now != timeline {
		s.t.Errorf("%s writes timeline %d after the end of the constraint, %d before: the role moved", primary, now, timeline)
	}
}
