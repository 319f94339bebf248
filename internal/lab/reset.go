package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// StopCluster stops Pacemaker on a node in good order, as "systemctl stop pacemaker"
// would; the node stays on. It returns when Pacemaker is gone.
func (l *Lab) StopCluster(ctx context.Context, node string) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	pids, err := l.named(node, "pacemakerd")
	if err != nil || len(pids) == 0 {
		return err
	}
	if err := l.Signal(syscall.SIGTERM, pids...); err != nil {
		return err
	}
	return Poll(ctx, 50*time.Millisecond, func() error {
		if pids, err := l.named(node, "pacemakerd"); err != nil || len(pids) > 0 {
			return NotYet("pacemakerd on %s has not ended (%v)", node, err)
		}
		return nil
	})
}

// StartCluster starts Corosync and Pacemaker on a node where they were stopped. It
// returns at once.
func (l *Lab) StartCluster(_ context.Context, node string) error {
	pid, err := l.InitPID(node)
	if err != nil {
		return err
	}
	// tini passes it on.
	return l.Signal(syscall.SIGUSR1, pid)
}

func (l *Lab) named(node, name string) ([]int, error) {
	procs, err := l.Processes(node)
	var pids []int
	for _, p := range procs {
		if p.Name == name && p.State != "Z" {
			pids = append(pids, p.PID)
		}
	}
	return pids, err
}

// WaitIdle waits until the coordinator has nothing to do, twice in a row: between two
// transitions it looks idle for a moment.
func (l *Lab) WaitIdle(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	calm := 0
	return Poll(ctx, 250*time.Millisecond, func() error {
		s, err := l.View(ctx)
		if err != nil || s.DC == "" || l.busy(ctx, s) {
			calm = 0
			return NotYet("lab %s: the coordinator is busy, or there is none (%v)", l.Name, err)
		}
		if calm++; calm < 2 {
			return NotYet("lab %s: the coordinator was busy until now", l.Name)
		}
		return nil
	})
}

// Reset brings the lab back to health between tests, whatever the last one did: links
// healed, stopped processes continued, nodes on and joined, constraints, standby,
// maintenance mode, failures and the agents' extra environment cleared, one primary,
// all others streaming. A node that cannot follow is made anew from the primary. The
// error says what is not healthy.
func (l *Lab) Reset(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := l.HealAll(ctx); err != nil {
		return err
	}
	for _, n := range l.all() {
		if err := l.Power(ctx, n, true); err != nil {
			return err
		}
	}
	for _, n := range l.Names {
		if err := l.revive(ctx, n); err != nil {
			return err
		}
	}
	if err := l.waitMembers(ctx); err != nil {
		return err
	}
	if err := l.clear(ctx); err != nil {
		return err
	}
	primary, err := l.WaitPromoted(ctx, "")
	if err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	if err := l.clear(ctx); err != nil { // what failed on the way
		return err
	}
	patience, done := context.WithTimeout(ctx, 15*time.Second)
	defer done()
	if err := l.WaitAllStreaming(patience); err != nil {
		if err := l.rebuildBroken(ctx, primary); err != nil {
			return fmt.Errorf("reset: %w", err)
		}
	}
	if err := l.WaitAllStreaming(ctx); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	if err := l.WaitIdle(ctx); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	return l.Healthy(ctx)
}

// revive continues stopped processes of a node and starts its cluster software.
func (l *Lab) revive(ctx context.Context, node string) error {
	procs, err := l.Processes(node)
	if err != nil {
		return err
	}
	running := false
	for _, p := range procs {
		if p.State == "T" {
			if err := l.Signal(syscall.SIGCONT, p.PID); err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
		}
		running = running || p.Name == "pacemakerd" && p.State != "Z"
	}
	if l.Wrap {
		if err := l.SetAgentEnv(ctx, node, nil); err != nil {
			return err
		}
	}
	if running {
		return nil
	}
	return l.StartCluster(ctx, node)
}

func (l *Lab) waitMembers(ctx context.Context) error {
	return Poll(ctx, 200*time.Millisecond, func() error {
		s, err := l.View(ctx)
		if err != nil {
			return NotYet("reset: %v", err)
		}
		for _, n := range s.Nodes {
			if !n.Power {
				// Fenced while it came back: once more.
				if err := l.Power(ctx, n.Name, true); err != nil {
					return err
				}
			}
			if !n.Online {
				return NotYet("reset: %s is not online in the cluster", n.Name)
			}
		}
		if s.DC == "" || !s.Quorum {
			return NotYet("reset: no coordinator or no quorum")
		}
		return nil
	})
}

// clear removes what tests and their failures leave in the CIB.
func (l *Lab) clear(ctx context.Context) error {
	s, err := l.Status(ctx)
	if err != nil {
		return err
	}
	run := func(argv ...string) {
		if err == nil {
			_, err = l.Run(ctx, s.Asked, argv...)
		}
	}
	for _, id := range s.Location { // the lab itself has none
		run("cibadmin", "-D", "-X", fmt.Sprintf("<rsc_location id=%q/>", id))
	}
	for _, n := range s.Nodes {
		for _, attr := range []string{"standby", "maintenance"} {
			run("crm_attribute", "-N", n.Name, "-n", attr, "-D")
			run("crm_attribute", "-N", n.Name, "-n", attr, "-l", "reboot", "-D")
		}
	}
	if l.Properties["maintenance-mode"] == "" {
		run("crm_attribute", "-n", "maintenance-mode", "-D")
	}
	for _, r := range []string{Clone, VIPResource, "power"} {
		for _, m := range []string{"target-role", "is-managed", "maintenance"} {
			run("crm_resource", "-r", r, "--meta", "-d", m)
		}
	}
	dirty := len(s.Failed) > 0
	for _, n := range s.Nodes {
		dirty = dirty || n.FailCount != "" && n.FailCount != "0"
	}
	if dirty {
		run("crm_resource", "--cleanup")
	}
	if err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	return nil
}

// rebuildBroken makes anew what does not stream from the primary.
func (l *Lab) rebuildBroken(ctx context.Context, primary string) error {
	out, err := l.SQL(ctx, primary, "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'")
	if err != nil {
		return err
	}
	streaming := strings.Fields(out)
	for _, n := range l.Names {
		if n == primary || slices.Contains(streaming, n) {
			continue
		}
		l.logf("reset: %s does not stream from %s: it is made anew", n, primary)
		if err := l.Rebuild(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// Rebuild replaces a node's data directory by a base backup of the primary. The node
// is without power meanwhile: a running agent would only see a broken instance, and
// get the node fenced.
func (l *Lab) Rebuild(ctx context.Context, node string) error {
	if err := l.Power(ctx, node, false); err != nil {
		return err
	}
	// The others fence it first: back before that, it would be killed in the middle. They have to notice before they do.
	if err := Poll(ctx, 100*time.Millisecond, func() error {
		s, err := l.View(ctx)
		if err != nil || s.Node(node).Online {
			return NotYet("the others still see %s online (%v)", node, err)
		}
		return nil
	}); err != nil {
		return err
	}
	if err := l.WaitIdle(ctx); err != nil {
		return err
	}
	if _, err := l.WaitPromoted(ctx, ""); err != nil {
		return err
	}
	if err := l.replaceData(ctx, node); err != nil {
		return fmt.Errorf("make %s anew: %w", node, err)
	}
	if err := l.Power(ctx, node, true); err != nil {
		return err
	}
	if err := l.waitMembers(ctx); err != nil {
		return err
	}
	return Poll(ctx, 500*time.Millisecond, func() error {
		s, err := l.View(ctx)
		if err != nil {
			return NotYet("%v", err)
		}
		// Not a node that is only just there: its CIB may not take connections yet.
		if _, err := l.Run(ctx, or(s.DC, node), "crm_resource", "--cleanup"); err != nil {
			return NotYet("%v", err)
		}
		return nil
	})
}

func (l *Lab) replaceData(ctx context.Context, node string) error {
	data := l.nodeDir(node, "data")
	keep := map[string][]byte{}
	if l.Layout == "datadir" {
		for _, f := range []string{"postgresql.conf", "pg_hba.conf"} {
			b, err := os.ReadFile(filepath.Join(data, f))
			if err != nil {
				return err
			}
			keep[f] = b
		}
	}
	entries, err := os.ReadDir(data)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(data, e.Name())); err != nil {
			return err
		}
	}
	s, err := l.View(ctx)
	if err != nil {
		return err
	}
	p := s.Promoted()
	if len(p) != 1 || p[0] == node {
		return fmt.Errorf("expected another node as primary, found %v", p)
	}
	psql, err := l.CommandAs(ctx, p[0], "postgres", l.client("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", "/var/run/postgresql", "-d", "postgres")
	if err != nil {
		return err
	}
	if err := baseBackup(ctx, l.Major, psql, l.nodeDir(p[0], "data"), data); err != nil {
		return err
	}
	keep["standby.signal"] = nil
	for f, b := range keep {
		p := filepath.Join(data, f)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			return err
		}
		if err := chown(p, "postgres"); err != nil {
			return err
		}
	}
	return nil
}

// Healthy returns an error that says all that is not as it should be: nodes, links,
// failures, constraints, roles, replication.
func (l *Lab) Healthy(ctx context.Context) error {
	s, err := l.Status(ctx)
	if err != nil {
		return err
	}
	var bad []string
	add := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	for _, n := range s.Nodes {
		switch {
		case !n.Power:
			add("%s is off", n.Name)
		case !n.Online:
			add("%s is not online in the cluster", n.Name)
		case n.Standby:
			add("%s is in standby", n.Name)
		}
		if n.FailCount != "" && n.FailCount != "0" {
			add("%s has a fail count of %s", n.Name, n.FailCount)
		}
	}
	for _, f := range s.Failed {
		add("failed action: %s", f)
	}
	for _, c := range s.Cut {
		add("cut: %s", c)
	}
	for _, id := range s.Location {
		add("location constraint %s", id)
	}
	p := s.Promoted()
	switch {
	case len(p) != 1:
		add("expected one primary, found %v", p)
	case s.VIP != p[0]:
		add("%s is primary, the virtual IP is on %q", p[0], s.VIP)
	default:
		soon, cancel := context.WithTimeout(ctx, 2*time.Second) // to replay what was flushed just now
		defer cancel()
		if err := Poll(soon, 100*time.Millisecond, func() error { return l.allStream(soon, p[0]) }); err != nil {
			add("%v", err)
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("lab %s is not healthy: %s", l.Name, strings.Join(bad, "; "))
	}
	return nil
}
