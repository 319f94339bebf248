package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// killPart is the part that a node has in a change of roles.
type killPart string

const (
	partOld    killPart = "old primary"
	partTarget killPart = "target"
	partThird  killPart = "third node"
)

// killPoint is where the agent is killed: on one node, before or after one effect.
type killPoint struct {
	plan   string // the section of docs/effects.md
	part   killPart
	effect string // ACTION/EFFECT
	when   string // before, after
	always bool   // every such change comes here; otherwise it depends on timing
}

func (p killPoint) String() string {
	return fmt.Sprintf("%s: %s %s on the %s", p.plan, p.when, p.effect, p.part)
}

// killPlan is a kind of change of roles in which the agent is killed.
type killPlan struct {
	name string // the section of docs/effects.md
	// pause is where the old primary's agent waits until meanwhile returned, "" if nowhere: it makes certain what would
	// be a matter of timing.
	pause     string
	meanwhile func(ctx context.Context, l *lab.Lab, roles map[killPart]string) error
	before    func(ctx context.Context, l *lab.Lab, roles map[killPart]string) error
	start     func(ctx context.Context, l *lab.Lab, roles map[killPart]string) error
	fences    string // an action whose death costs the node, by Pacemaker's rules
}

func killPlans() []killPlan {
	cut := func(ctx context.Context, l *lab.Lab, roles map[killPart]string) error {
		return l.Cut(ctx, lab.Link{From: roles[partTarget], To: "*", Port: 5432})
	}
	return []killPlan{
		{name: "A handover by move", start: killMove},
		{
			// As on a slow machine: the old postmaster has gone before demote looks.
			name: "A handover by move, the old postmaster gone at once", start: killMove,
			pause: "demote/save-note before", meanwhile: killAwaitPostmaster,
		},
		{
			name: "A handover by move, the old postmaster lingers", start: killMove,
			pause: "demote/fast-stop after", meanwhile: killSilentClient,
		},
		{name: "A roll-back", start: killMove, pause: "demote/fast-stop before", meanwhile: cut},
		{name: "A ban, and only the third node has the proof", before: killPrefer, start: killBan, pause: "demote/fast-stop before", meanwhile: cut},
		{name: "A handover called off", start: killMove, before: cut},
		{name: "The primary's node leaves", start: killStandby, fences: "stop"},
	}
}

func killMove(ctx context.Context, l *lab.Lab, roles map[killPart]string) error {
	_, err := l.Run(ctx, roles[partThird], "crm_resource", "--move", "-r", lab.Clone, "--node", roles[partTarget], "--promoted")
	return err
}

// killPrefer makes it known who would be promoted instead of the primary. The id is one that crm_resource --clear removes.
func killPrefer(ctx context.Context, l *lab.Lab, roles map[killPart]string) error {
	rule := fmt.Sprintf(`<rsc_location id="cli-prefer-%s" rsc="%s" role="Promoted" node="%s" score="200"/>`, lab.Clone, lab.Clone, roles[partTarget])
	if _, err := l.Run(ctx, roles[partThird], "cibadmin", "-C", "-o", "constraints", "-X", rule); err != nil {
		return err
	}
	return l.WaitIdle(ctx)
}

func killBan(ctx context.Context, l *lab.Lab, roles map[killPart]string) error {
	_, err := l.Run(ctx, roles[partThird], "crm_resource", "--ban", "-r", lab.Clone, "--promoted", "--node", roles[partOld])
	return err
}

func killStandby(ctx context.Context, l *lab.Lab, roles map[killPart]string) error {
	// A preference, so that the parts are known.
	_, err := l.Run(ctx, roles[partThird], "crm_attribute", "-N", roles[partOld], "-n", "standby", "-v", "on")
	return err
}

// killAwaitPostmaster waits until no process of the server runs on the old primary: a postmaster removes its pid file some
// time before it is gone.
func killAwaitPostmaster(ctx context.Context, l *lab.Lab, roles map[killPart]string) error {
	return lab.Poll(ctx, 5*time.Millisecond, func() error {
		procs, err := l.Processes(roles[partOld])
		if err != nil {
			return err
		}
		for _, p := range procs {
			if p.Name == "postgres" && p.State != "Z" {
				return lab.NotYet("%s of %s still runs: pid %d", p.Args, roles[partOld], p.PID)
			}
		}
		return nil
	})
}

// killSilentClient connects to the old primary while it shuts down, and says nothing: such a client holds an ended
// postmaster up. It goes away after a while.
func killSilentClient(ctx context.Context, l *lab.Lab, roles map[killPart]string) error {
	root, err := l.Root(roles[partOld])
	if err != nil {
		return err
	}
	var conns []net.Conn
	for range 100 { // those of before the server knows that it stops are ended by it
		c, err := net.DialTimeout("unix", filepath.Join(root, "run/postgresql/.s.PGSQL.5432"), 50*time.Millisecond)
		if err != nil {
			break
		}
		conns = append(conns, c)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
	time.AfterFunc(20*time.Second, func() {
		for _, c := range conns {
			c.Close()
		}
	})
	if len(conns) == 0 {
		return fmt.Errorf("no connection to %s", roles[partOld])
	}
	return nil
}

// faults is the fault directory of a node, as an agent with the tag "faults" reads it.
type faults struct{ dir string }

func openFaults(l *lab.Lab, node string) (faults, error) {
	root, err := l.Root(node)
	if err != nil {
		return faults{}, err
	}
	f := faults{filepath.Join(root, "run/pgbaton/faults")}
	return f, os.MkdirAll(f.dir, 0o755)
}

// plant makes a file appear with its content.
func (f faults) plant(name, content string) error {
	tmp := filepath.Join(f.dir, name+".new")
	if err := os.WriteFile(tmp, []byte(content), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(f.dir, name))
}

// remove takes a file away. It reports whether it was there.
func (f faults) remove(name string) (bool, error) {
	err := os.Remove(filepath.Join(f.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (f faults) exists(name string) bool {
	_, err := os.Stat(filepath.Join(f.dir, name))
	return err == nil
}

// clear takes everything away and begins a new trace.
func (f faults) clear() error {
	for _, name := range []string{"kill", "killed", "pause", "paused"} {
		if _, err := f.remove(name); err != nil {
			return err
		}
	}
	return f.plant("trace", "")
}

// trace returns the effects so far, each once, without their "before" and "after".
func (f faults) trace() ([]string, error) {
	data, err := os.ReadFile(filepath.Join(f.dir, "trace"))
	if err != nil {
		return nil, err
	}
	var list []string
	for line := range strings.Lines(string(data)) {
		effect, when, _ := strings.Cut(strings.TrimSpace(line), " ")
		if when == "after" && !slices.Contains(list, effect) {
			list = append(list, effect)
		}
	}
	return list, nil
}

// effectsTable reads the tables of docs/effects.md: of every section whose title a plan has, the points; and every
// effect named anywhere in a table, as ACTION/EFFECT.
func effectsTable(t testing.TB) (points []killPoint, named map[string]bool) {
	t.Helper()
	data, err := os.ReadFile("../docs/effects.md")
	if err != nil {
		t.Fatal(err)
	}
	named = map[string]bool{}
	plan := ""
	for line := range strings.Lines(string(data)) {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			plan = strings.TrimSpace(title)
			continue
		}
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) < 6 || !strings.Contains(cells[2], "`") {
			continue
		}
		effect := strings.Trim(strings.TrimSpace(cells[2]), "`")
		if strings.Count(effect, "/") != 1 {
			t.Fatalf("docs/effects.md: %q is not of the form ACTION/EFFECT", effect)
		}
		named[effect] = true
		part := strings.TrimSpace(cells[1])
		sometimes := strings.HasSuffix(part, "*")
		part = strings.TrimSpace(strings.TrimSuffix(part, "*"))
		switch killPart(part) {
		case partOld, partTarget, partThird:
		default:
			continue // named for completeness; happens in another change
		}
		for _, when := range []string{"before", "after"} {
			points = append(points, killPoint{plan: plan, part: killPart(part), effect: effect, when: when, always: !sometimes})
		}
	}
	return points, named
}
