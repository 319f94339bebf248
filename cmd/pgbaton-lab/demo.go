package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/lab/follow"
	"github.com/pgbaton/pgbaton/internal/load"
)

type demoCmd struct {
	Clients int  `short:"c" default:"4" help:"Writing clients."`
	Keep    bool `help:"Leave the cluster running afterwards, to look around in it."`
}

// Help is shown by --help.
func (demoCmd) Help() string {
	return `Starts a real three-node cluster, writes to it, and passes the primary role around:
to each node in turn, away from a node that is put in standby, and to a standby that
cannot receive the last WAL. Shows what each node does, and what became of the rows.
Exit code 1 if anything is not as it should be.`
}

// demo is one run of the demo.
type demo struct {
	*lab.Lab
	out      *stage
	logs     *follow.Follower
	clients  int
	problems []string
	results  []result
}

// result is a line of the table at the end.
type result struct {
	title, end string
	outage     time.Duration
	acked      int
	lost       int
}

func (c demoCmd) Run(ctx context.Context, common *common) error {
	ctx, cancel := context.WithTimeout(ctx, 6*time.Minute)
	defer cancel()
	name := common.Name
	if name == "lab" {
		name = "demo"
	}
	out := newStage(os.Stdout)
	began := time.Now()
	out.title("A cluster", "three nodes, each in namespaces of its own on this machine")
	l, err := lab.Up(ctx, lab.Options{
		Name: name, Dir: common.Dir, Agent: "pgbaton", Replace: true, Lifeline: !c.Keep,
		Log: out, Files: operatorsCommand(),
		// Pacemaker does one thing at a time on a busy machine; here each of three nodes sees the load of all.
		Properties: map[string]string{"load-threshold": "1200%"},
	})
	if l != nil && !c.Keep {
		// However this ends, and also if the context has.
		defer func() { _ = l.Down(context.WithoutCancel(ctx)) }()
	}
	if err != nil {
		return err
	}
	d := &demo{Lab: l, out: out, logs: follow.Start(l), clients: c.Clients}
	defer d.logs.Close()
	d.versions(ctx)
	if err := d.play(ctx); err != nil {
		d.problem("%v", err)
	}
	// The last rows are still on their way to the standbys.
	settled, cancel := context.WithTimeout(ctx, 15*time.Second)
	if err := lab.Poll(settled, 200*time.Millisecond, func() error {
		if err := d.Healthy(settled); err != nil {
			return lab.NotYet("%v", err)
		}
		return nil
	}); err != nil {
		d.problem("%v", err)
	}
	cancel()
	d.status(ctx)
	d.summary(time.Since(began))
	if len(d.problems) > 0 {
		if path, err := keepDump(ctx, d.Lab); err == nil {
			out.plain("all logs and states are in " + path)
		}
	}
	if c.Keep {
		out.plain("the cluster runs on: pgbaton-lab status -n " + name + "; pgbaton-lab down -n " + name)
	} else if err := l.Down(context.WithoutCancel(ctx)); err != nil {
		d.problem("%v", err)
	} else {
		out.plain("The cluster is gone: no process, mount or file of it is left.")
	}
	if len(d.problems) > 0 {
		return fmt.Errorf("%d of the things above are not as they should be", len(d.problems))
	}
	return nil
}

// operatorsCommand copies bin/pgbaton into the nodes, if it was built.
func operatorsCommand() map[string]string {
	exe, err := os.Executable()
	if err != nil {
		return nil
	}
	path := filepath.Join(filepath.Dir(exe), "pgbaton")
	if _, err := os.Stat(path); err != nil {
		return nil
	}
	return map[string]string{"/usr/bin/pgbaton": path}
}

func (d *demo) play(ctx context.Context) error {
	p, err := d.WaitPromoted(ctx, "")
	if err != nil {
		return err
	}
	// To each of the others, and back.
	at := slices.Index(d.Names, p)
	for i := range d.Names {
		to := d.Names[(at+1+i)%len(d.Names)]
		if err := d.handover(ctx, p, to); err != nil {
			return err
		}
		p = to
	}
	if p, err = d.standby(ctx, p); err != nil {
		return err
	}
	to := d.Names[(slices.Index(d.Names, p)+1)%len(d.Names)]
	return d.rollBack(ctx, p, to)
}

// handover moves the role as an operator would.
func (d *demo) handover(ctx context.Context, from, to string) error {
	title := fmt.Sprintf("Handover from %s to %s", from, to)
	return d.act(ctx, title, from+" to "+to, move(to), func(s *step) error {
		if err := s.run(ctx, from, moveCommand(to)...); err != nil {
			return err
		}
		if err := s.promoted(ctx, from, to); err != nil {
			return err
		}
		return d.unconstrain(ctx, to)
	})
}

// standby puts the primary's node in standby, and takes it back.
func (d *demo) standby(ctx context.Context, from string) (to string, err error) {
	title := fmt.Sprintf("The primary's node, %s, is put in standby", from)
	err = d.act(ctx, title, from+" in standby", "crm_standby -N "+from+" -v on", func(s *step) error {
		if err := s.run(ctx, from, "crm_standby", "-N", from, "-v", "on"); err != nil {
			return err
		}
		if err := s.promoted(ctx, from, ""); err != nil {
			return err
		}
		to = s.end.Node
		if err := d.WaitIdle(ctx); err != nil {
			return err
		}
		s.say("operator", "crm_standby -N "+from+" -v off")
		if _, err := d.Lab.Run(ctx, to, "crm_standby", "-N", from, "-v", "off"); err != nil {
			return err
		}
		if err := d.WaitAllStreaming(ctx); err != nil {
			return err
		}
		s.say(from, "is back and streams from "+to)
		return highest(ctx, d.Lab, to)
	})
	return to, err
}

// rollBack cuts the target's replication between the primary's last look at it and the shutdown: nobody can call the
// handover off any more, and the target cannot get the last record.
func (d *demo) rollBack(ctx context.Context, from, to string) error {
	// A standby that has just come back, or that follows another primary since the last step, says so in the middle of this one:
	// Pacemaker plans anew, and the primary looks at its target once more, when it is cut off already.
	standbys := slices.DeleteFunc(slices.Clone(d.Names), func(n string) bool { return n == from })
	if err := scored(ctx, d.Lab, baton.ScoreFollows, standbys...); err != nil {
		return err
	}
	if err := d.WaitIdle(ctx); err != nil {
		return err
	}
	title := fmt.Sprintf("Handover from %s to %s, which will not get the last WAL", from, to)
	return d.act(ctx, title, from+" to "+to+", cut off", move(to), func(s *step) error {
		s.rolledBack = true
		sender, err := d.walsender(ctx, from, to)
		if err != nil {
			return err
		}
		if err := s.run(ctx, from, moveCommand(to)...); err != nil {
			return err
		}
		_, err = d.logs.Await(s.within(ctx, 30*time.Second), s.first, "the last look at "+to, func(l follow.Line) bool {
			return l.Node == from && l.Msg == "prepared the handover"
		})
		if err != nil {
			return err
		}
		// The walsender is held up while the port is cut, which takes longer than a shutdown may.
		link := lab.Link{From: to, To: "*", Port: 5432}
		err = errors.Join(d.Signal(syscall.SIGSTOP, sender), d.Cut(ctx, link), d.Signal(syscall.SIGCONT, sender))
		if err != nil {
			return err
		}
		s.say("network", fmt.Sprintf("port 5432 between %s and the other nodes is cut", to))
		if err := s.promoted(ctx, from, to); err != nil {
			return err
		}
		if err := d.unconstrain(ctx, s.end.Node); err != nil {
			return err
		}
		if err := d.Heal(ctx, link); err != nil {
			return err
		}
		s.say("network", "healed")
		if err := d.WaitAllStreaming(ctx); err != nil {
			return err
		}
		if err := allowed(ctx, d.Lab, to); err != nil {
			return err
		}
		s.say(to, "streams again, and may be promoted again")
		s.journal(ctx, to)
		return nil
	})
}

// walsender is the primary's process that sends to a standby, as the host sees it.
func (d *demo) walsender(ctx context.Context, primary, standby string) (int, error) {
	out, err := d.SQL(ctx, primary, "SELECT pid FROM pg_stat_replication WHERE application_name = '"+standby+"'")
	if err != nil {
		return 0, err
	}
	inner, err := strconv.Atoi(out)
	if err != nil {
		return 0, fmt.Errorf("the walsender of %s on %s: %q: %w", standby, primary, out, err)
	}
	return d.HostPID(primary, inner)
}

func move(to string) string { return "crm_resource --move -r " + lab.Clone + " --promoted -N " + to }

func moveCommand(to string) []string { return strings.Fields(move(to)) }

// unconstrain removes the constraint that a move leaves, once the primary's own score holds the role where it is:
// before that the role would bounce.
func (d *demo) unconstrain(ctx context.Context, primary string) error {
	if err := highest(ctx, d.Lab, primary); err != nil {
		return err
	}
	if _, err := d.Lab.Run(ctx, primary, "crm_resource", "--clear", "-r", lab.Clone); err != nil {
		return err
	}
	return d.WaitIdle(ctx)
}

// score reads a promotion score; none is the lowest.
func score(s string) int {
	switch s {
	case "INFINITY", "+INFINITY":
		return 1_000_000
	case "", "-INFINITY":
		return -1_000_000
	}
	n := 0
	if _, err := fmt.Sscan(s, &n); err != nil {
		return -1_000_000
	}
	return n
}

func (d *demo) problem(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	d.problems = append(d.problems, text)
	d.out.bad(text)
}

// versions says what is really running.
func (d *demo) versions(ctx context.Context) {
	pacemaker := "?"
	if out, err := d.Lab.Run(ctx, d.Names[0], "pacemakerd", "--version"); err == nil {
		if f := strings.Fields(out); len(f) > 1 {
			pacemaker = f[1]
		}
	}
	corosync := "?"
	if out, err := exec.CommandContext(ctx, "corosync", "-v").Output(); err == nil {
		if _, v, ok := strings.Cut(string(out), "version '"); ok {
			corosync, _, _ = strings.Cut(v, "'")
		}
	}
	pg := "?"
	if out, err := d.SQL(ctx, d.Names[0], "SHOW server_version"); err == nil {
		pg = strings.Fields(out)[0]
	}
	d.out.plain(fmt.Sprintf("PostgreSQL %s, Pacemaker %s, Corosync %s, ocf:pgbaton:postgresql", pg, pacemaker, corosync))
	d.out.plain(fmt.Sprintf("%d clients insert numbered rows through the virtual IP, %s, without a", d.clients, lab.VIP))
	d.out.plain("pause. Times are seconds since the operator's command; what the nodes do is")
	d.out.plain("told by their own logs.")
}

// keepDump writes all that explains a failure to a file that stays.
func keepDump(ctx context.Context, l *lab.Lab) (string, error) {
	f, err := os.CreateTemp("", "pgbaton-"+l.Name+"-*.txt")
	if err != nil {
		return "", err
	}
	defer f.Close()
	l.Dump(context.WithoutCancel(ctx), f)
	return f.Name(), nil
}

// status shows how the cluster is afterwards, with the operator's command.
func (d *demo) status(ctx context.Context) {
	d.out.title("The cluster afterwards", "pgbaton status")
	// A node says how its server stands when its monitor has looked at it again: a standby that has just come back to the
	// primary is one that does not stream until then.
	looked, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var out, errout string
	var exit int
	err := lab.Poll(looked, time.Second, func() (err error) {
		if out, errout, exit, err = d.Exec(ctx, d.Names[0], "pgbaton", "status"); err == nil && exit == 1 {
			return lab.NotYet("it shows something for a person to do")
		}
		return err
	})
	for line := range strings.Lines(out) {
		d.out.plain(strings.TrimRight(line, "\n"))
	}
	if err != nil || exit != 0 {
		d.problem("pgbaton status: exit code %d %v %s", exit, err, strings.TrimSpace(errout))
	}
}

func (d *demo) summary(took time.Duration) {
	d.out.title("What became of it", "outage, rows acknowledged meanwhile")
	acked, lost := 0, 0
	for _, r := range d.results {
		d.out.plain(fmt.Sprintf("%-23s %6.2f s  %6d rows, %d lost  %s", r.title, r.outage.Seconds(), r.acked, r.lost, r.end))
		acked, lost = acked+r.acked, lost+r.lost
	}
	text := fmt.Sprintf("%d rows acknowledged, %d lost; never two writable nodes; %.0f s in all", acked, lost, took.Seconds())
	if len(d.problems) == 0 {
		d.out.good(text)
		return
	}
	d.out.bad(fmt.Sprintf("%d rows acknowledged, %d lost; %d problems, see above", acked, lost, len(d.problems)))
}

// act plays one step under load, and judges it.
func (d *demo) act(ctx context.Context, title, short, command string, play func(*step) error) error {
	begin, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	run, err := load.Start(begin, d.Lab, load.Options{Clients: d.clients, ProbeEvery: 50 * time.Millisecond})
	if err != nil {
		return err
	}
	d.out.title(title, command)
	time.Sleep(500 * time.Millisecond) // rows before it
	s := &step{demo: d, load: run, first: d.logs.Count(), start: time.Now()}
	telling := s.tell()
	err = play(s)
	telling()
	time.Sleep(500 * time.Millisecond) // and after it
	report := run.Stop()
	if err != nil {
		return fmt.Errorf("%s: %w", title, err)
	}
	s.judge(ctx, short, report)
	return nil
}
