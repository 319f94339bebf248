package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// An instance whose history is not the cluster's is kept out: its server is down, so that it serves nobody, and its score
// is -INFINITY. For Pacemaker it is started all the same, with a monitor that says "degraded": a start that failed would
// ban the node until a person comes, one that waited for a rewind would hold up every other change in the cluster.

// rejoinAction is a hidden action: it stops a server that was found to have diverged while it ran, and rewinds it where
// rewind_conninfo allows it. It runs detached, one a resource.
const rejoinAction = "rejoin"

// retryRejoin is how long a rewind that did not come about waits for somebody to mend what was missing.
const retryRejoin = 20 * time.Second

// rewindStopped is how what is shown begins when a rewind did not come about.
const rewindStopped = "the rewind stopped: "

// heardLimit is how long an instance that starts waits for the word of nodes that are up: their attributes come to a node
// that has just joined a little after it.
const heardLimit = time.Second

// primaryHeardLimit is how long it waits for the word of a primary that runs: who was away may have diverged from it, and
// nothing but this start waits meanwhile.
const primaryHeardLimit = 5 * time.Second

// attemptLimit is how long it waits for the end of an attempt that it would not fit: what would be a standby with a score
// now, is diverged a moment later. It waits only for a node that is there.
const attemptLimit = 5 * time.Second

// learnAtStart is learnAll for an instance that starts.
func (a *Agent) learnAtStart(ctx context.Context, ctl pgdisk.Control) (changed bool) {
	a.learnRecorded(ctx)
	var silent []string
	hear := func(nodes []string, limit time.Duration) bool {
		wait, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		err := a.poll(wait, "the word of the other nodes", 50*time.Millisecond, func() (bool, error) {
			list, err := a.others(ctx)
			if err != nil {
				return false, err
			}
			changed = a.learn(list) || changed
			silent = slices.DeleteFunc(slices.Clone(nodes), func(n string) bool {
				// Who goes in this plan may be gone already.
				return a.plan.Leaves(n) || slices.ContainsFunc(list, func(b baton.Bulletin) bool { return b.Node == n })
			})
			return len(silent) == 0, nil
		})
		if err != nil {
			a.log.Warn("not everybody's word", "silent", silent, "error", err)
		}
		return err == nil
	}
	a.unheard = !hear(a.plan.Promoted, primaryHeardLimit)
	if !a.unheard {
		hear(a.plan.Active, heardLimit)
	}
	self, err := a.atRest(ctx, ctl)
	if _, ok := baton.Attempted(self, a.state.Claims); err != nil || !ok || a.inv.Action != "start" {
		return changed
	}
	limited, stop := context.WithTimeout(ctx, attemptLimit)
	defer stop()
	err = a.poll(limited, "the end of somebody's attempt to be promoted", 100*time.Millisecond, func() (bool, error) {
		list, err := a.others(ctx)
		if err != nil {
			return false, err
		}
		changed = a.learn(list) || changed
		c, ok := baton.Attempted(self, a.state.Claims)
		there := slices.ContainsFunc(list, func(b baton.Bulletin) bool { return b.Node == c.Node })
		return !ok || !there, nil
	})
	if err != nil {
		a.log.Warn("started all the same", "error", err)
	}
	return changed
}

// learnAll takes over what the other nodes know.
func (a *Agent) learnAll(ctx context.Context) error {
	list, err := a.others(ctx)
	if err != nil {
		return err
	}
	if a.learn(list) {
		return a.save("learn")
	}
	return nil
}

// atRest is this instance as it lies on disk. Nothing of its server may run.
func (a *Agent) atRest(ctx context.Context, ctl pgdisk.Control) (baton.Candidate, error) {
	if a.resting != nil && a.restingControl == ctl {
		return *a.resting, nil
	}
	c, err := a.candidate(ctx, nil, nil, false)
	if errors.Is(err, fs.ErrNotExist) {
		c, err = a.atRestAlone(ctx, ctl)
	}
	if err == nil {
		a.resting, a.restingControl = &c, ctl
	}
	return c, err
}

// atRestAlone is atRest for an instance that lost the history file of its own timeline.
func (a *Agent) atRestAlone(ctx context.Context, ctl pgdisk.Control) (baton.Candidate, error) {
	at := ctl.Replayed()
	h := baton.AncestorsOf(a.state.Claims, at.Timeline)
	end, err := pgdisk.OpenWAL(a.pg.DataDir, ctl).FindEndAlong(ctx, at.Timeline, h, at.LSN)
	if err != nil {
		return baton.Candidate{}, err
	}
	a.log.Warn("the history file of this instance's timeline is missing", "file", filepath.Join(a.walDir(), pgdisk.HistoryFileName(at.Timeline)))
	c := baton.Candidate{Node: a.inv.Node, SystemID: ctl.SystemIdentifier, Position: end.Position, History: h}
	if end.HasLast {
		c.Last = lastRecord(end.Last)
	}
	return c, nil
}

// mendHistory gets the history file of this instance's timeline from the primary if it is missing here, as a standby
// gets those of newer ones: the server does not start without.
func (a *Agent) mendHistory(ctx context.Context, ctl pgdisk.Control) error {
	t := max(ctl.CheckPointTimeline, ctl.MinRecoveryTimeline)
	name := pgdisk.HistoryFileName(t)
	if _, err := os.Stat(filepath.Join(a.walDir(), name)); t <= 1 || !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	conninfo, password := postgres.SplitPassword(a.pg.Settings()["primary_conninfo"], [2]string{"connect_timeout", "3"}, [2]string{"replication", "true"})
	src := rewindSource{conninfo: conninfo, password: password}
	if password != "" {
		src.tool.Env = []string{"PGPASSWORD=" + password}
	}
	limited, cancel := a.share(ctx, 0.3)
	defer cancel()
	out, err := a.query(limited, src, fmt.Sprintf("TIMELINE_HISTORY %d", t))
	if err == nil {
		_, out, _ = strings.Cut(out, "|") // its name, its content
		_, err = pgdisk.ParseHistory(strings.NewReader(out))
	}
	if err != nil {
		return fmt.Errorf("pg_wal/%s is missing, and the primary does not give it: copy it from another node or from the archive: %w", name, err)
	}
	a.log.Warn("took over a missing history file from the primary", "file", name)
	return a.do("history-file", func() error { return a.pg.WriteWAL(name, []byte(out)) })
}

// returning asks the rule what becomes of this instance, which is down, by what is known on this node.
func (a *Agent) returning(ctx context.Context, ctl pgdisk.Control) baton.Return {
	self, err := a.atRest(ctx, ctl)
	if err != nil {
		// The server will say what is wrong with its WAL; nothing that is known speaks against its start.
		a.log.Warn("where the WAL of this instance ends is not known", "error", err)
		return baton.Return{}
	}
	return a.judge(ctx, self, ctl)
}

// judge asks the rule about an instance: by the claims, then by the history files that lie in pg_wal.
func (a *Agent) judge(ctx context.Context, self baton.Candidate, ctl pgdisk.Control) baton.Return {
	r := baton.Returning{Candidate: self}
	switch ctl.State {
	case pgdisk.ShutDown, pgdisk.ShuttingDown, pgdisk.InProduction, pgdisk.InCrashRecovery:
		r.WasPrimary = true
	}
	if line, ok := baton.LineOf(a.state.Claims); ok && r.WasPrimary && self.Position.Timeline > line.Timeline {
		other, err := a.primaryElsewhere(ctx)
		if err != nil {
			a.log.Warn("who is primary is not known", "error", err)
		}
		r.Elsewhere = other
	}
	v := baton.Returns(r, a.state.Claims)
	for _, t := range a.startedTimelines() {
		if v.Rejoin != baton.Follow || t <= self.Position.Timeline {
			break
		}
		if h, err := pgdisk.ReadHistory(a.walDir(), t); err == nil {
			v = baton.Line{Timeline: t, History: h}.Returns(r)
		}
	}
	if v.Rejoin == baton.Rewind && a.state.Rewound != "" && a.state.Rewound == newestClaim(a.state.Claims) {
		v.Rejoin, v.Reason = baton.Clone, v.Reason+"; it was rewound, and that was of no use"
	}
	if v.Rejoin != baton.Follow && a.orderedHere(ctx) {
		a.log.Warn("let in although it has diverged: a person ordered it", "reason", v.Reason)
		return baton.Return{}
	}
	return v
}

// judgeRunning asks the rule about a standby that runs and has replayed up to at. What the others know is asked for where
// something may have changed: while it does not stream the newest timeline that it knows of, and before its score rises.
func (a *Agent) judgeRunning(ctx context.Context, f facts, at pgdisk.Position, streams bool) baton.Return {
	line, known := baton.LineOf(a.state.Claims)
	if !a.unlocked && (!streams || a.vol.Score != pacemaker.Score(baton.ScoreFollows).String() || !known || line.Timeline != at.Timeline) {
		if err := a.learnAll(ctx); err != nil {
			a.log.Warn("no word from the other nodes", "error", err)
		}
	}
	self := baton.Candidate{Node: a.inv.Node, SystemID: f.control.SystemIdentifier, Position: at}
	self.Identity = a.identity(pgdisk.OpenWAL(a.pg.DataDir, f.control), at.Timeline)
	if h, err := pgdisk.ReadHistory(a.walDir(), at.Timeline); err == nil {
		self.History = h
	}
	return a.judge(ctx, self, f.control)
}

// claimByHand claims the timeline of a primary that a person promoted, without the cluster (in maintenance mode, say), or
// another agent, once Pacemaker has it in that role and no other node is primary: without a claim it would leave no note
// of a crash, nor would a handover from it have a proof where other claims are known.
func (a *Agent) claimByHand(ctx context.Context, f facts, timeline pgdisk.TimelineID) error {
	if role := a.env["OCF_RESKEY_CRM_meta_role"]; role != "Promoted" && role != "Master" {
		return nil
	}
	if err := a.learnAll(ctx); err != nil {
		return err
	}
	if other, err := a.primaryElsewhere(ctx); err != nil || other != "" || !a.unclaimed(timeline) {
		return err
	}
	return a.claimTimeline(f.control, timeline)
}

// unclaimed reports whether nobody claimed the timeline of a primary: it was started by hand, or by another agent before
// any claim was made. The first timeline needs none, since there is nothing before it.
func (a *Agent) unclaimed(timeline pgdisk.TimelineID) bool {
	open := func(c baton.Claim) bool { return c.Open() }
	return baton.Unclaimed(a.state.Claims, timeline) || timeline > 1 && !slices.ContainsFunc(a.state.Claims, open)
}

// claimTimeline makes the claim that should have come before the promotion.
func (a *Agent) claimTimeline(ctl pgdisk.Control, timeline pgdisk.TimelineID) error {
	h, err := pgdisk.ReadHistory(a.walDir(), timeline)
	if err != nil {
		return err
	}
	c := baton.Claim{
		Seq: baton.NextSeq(a.state.Claims), Timeline: timeline, Node: a.inv.Node, Nonce: nonce(), State: baton.Effective,
		CRC: a.identity(pgdisk.OpenWAL(a.pg.DataDir, ctl), timeline),
	}
	if len(h) > 0 {
		c.Parent, c.Switch = h[len(h)-1].Timeline, h[len(h)-1].Switch
	}
	a.state.Claims = baton.MergeClaims(a.state.Claims, []baton.Claim{c})
	if err := a.save("claim-by-hand"); err != nil {
		return err
	}
	a.vol.Asserted = 0 // publish it
	a.log.Warn("this primary was not promoted by this agent: its timeline is claimed now", "claim", c)
	a.record("claimed", "promoted by hand, or before this agent had the resource: "+c.String(), true)
	return nil
}

// primaryElsewhere is the other node that is primary for Pacemaker, "" if none is known. Its score would not do: that of a
// primary also has whoever holds its own unused note.
func (a *Agent) primaryElsewhere(ctx context.Context) (string, error) {
	return a.cluster.PromotedBut(ctx, a.inv.Node)
}

// orderedHere reports whether a person ordered this node to be promoted in spite of what is known to be at stake now.
func (a *Agent) orderedHere(ctx context.Context) bool {
	order, err := a.cluster.Order(ctx, a.inv.Node)
	if err != nil || order == nil {
		return false
	}
	list, err := a.others(ctx)
	return err == nil && order.Stake == baton.Gather(list, "").Stake("")
}

// newestClaim names the newest timeline that took effect.
func newestClaim(claims []baton.Claim) string {
	for n := len(claims) - 1; n >= 0; n-- {
		if claims[n].State == baton.Effective {
			return claims[n].Nonce
		}
	}
	return ""
}

// keepOut leaves the instance down.
func (a *Agent) keepOut(ctx context.Context, ctl pgdisk.Control, v baton.Return) error {
	was := a.vol.Out
	a.vol.Out = &journal.Out{Rejoin: v.Rejoin, Reason: v.Reason, Basis: a.basis(ctl)}
	a.vol.Parked, a.vol.Stopped = false, false
	if err := a.do("keep-out", func() error { return journal.SaveVolatile(a.inv.Resource, a.vol) }); err != nil {
		return err
	}
	if was == nil || was.Reason != v.Reason {
		a.log.Warn("kept out: the server is not started", "verdict", v.Rejoin, "reason", v.Reason)
		a.record("kept out", v.Reason, true)
	}
	if !a.rewinding() {
		if kept, err := a.keepUnarchived(ctl); err != nil {
			a.log.Error("keeping WAL that is not archived yet", "error", err)
		} else if kept {
			a.spawnAftercare()
		}
	}
	return a.sayOut(ctx)
}

// basis tells apart what a verdict rests on: the claims, and how the server ended.
func (a *Agent) basis(ctl pgdisk.Control) string {
	return fmt.Sprintf("%s %s %s %d", newestClaim(a.state.Claims), ctl.CheckPoint, ctl.State, ctl.Time.Unix())
}

// sayOut shows why the instance is kept out, and that it cannot be promoted.
func (a *Agent) sayOut(ctx context.Context) error {
	err := a.assertScore(ctx, 0, true)
	a.assertStatus(ctx, a.outStatus())
	return err
}

// outStatus is the sentence for crm_mon -A, with the commands that end it.
func (a *Agent) outStatus() string {
	o := a.vol.Out
	doing, _ := a.doing()
	switch {
	case o.Rejoin == baton.Await:
		return "kept out: " + o.Reason + "; if it is not settled by itself, and what this node has is what counts: " + commands([]string{"pgbaton", "promote", "--accept-data-loss", a.inv.Node})
	case o.Rejoin == baton.Rewind && (a.params.RewindConninfo != "" || a.rejoining()): // or by pgbaton rejoin
		return "diverged: " + o.Reason + "; " + or(doing, "about to be rewound")
	case o.Rejoin == baton.Rewind && a.rewinding():
		return "diverged: " + o.Reason + "; a rewind was cut short and rewind_conninfo is not set any more: set it again: " + a.rewindCommand() + a.orByHand()
	case o.Rejoin == baton.Rewind:
		return "diverged: " + o.Reason + "; to have it rewound: " + a.rewindCommand() + a.orByHand()
	}
	return "diverged: " + o.Reason + "; pg_rewind is no help, it must be made anew, as root on " + a.inv.Node + ": " + a.cloneCommands()
}

// orByHand are the other ways out of where a rewind is possible, behind the first one.
func (a *Agent) orByHand() string {
	return " # or this once, as root on " + a.inv.Node + ": " + commands([]string{"pgbaton", "rejoin"}) + " # or to make it anew there: " + a.cloneCommands()
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// plainWord needs no quotes in a shell.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

func shellQuote(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// commands joins command lines so that a person, or pgbaton status, can tell where each begins. What is said between two
// stands behind a #, so that a line can be copied as it is.
func commands(lines ...[]string) string {
	var b strings.Builder
	for _, words := range lines {
		b.WriteString(" $")
		for _, w := range words {
			b.WriteString(" " + shellQuote(w))
		}
	}
	return strings.TrimSpace(b.String())
}

// source is how the standby reaches the primary, without its password.
func (a *Agent) source() string {
	rest, _ := postgres.SplitPassword(a.pg.Settings()["primary_conninfo"])
	return rest
}

// conninfoForRewind reaches the primary as the standby does, without a password.
func (a *Agent) conninfoForRewind() string {
	rest, _ := postgres.SplitPassword(a.source(), [2]string{"dbname", "postgres"})
	return strings.Join(slices.DeleteFunc(strings.Split(rest, " "), func(s string) bool { return strings.HasPrefix(s, "application_name=") }), " ")
}

func (a *Agent) rewindCommand() string {
	return commands([]string{"crm_resource", "-r", a.inv.Resource, "-p", "rewind_conninfo", "-v", a.conninfoForRewind()})
}

// cloneCommands make the instance anew. What is the node's own in the data directory survives in a directory beside the
// agent's state.
func (a *Agent) cloneCommands() string {
	aside := filepath.Join(a.store.Dir, "own-configuration")
	var own []string
	if files, err := a.ownFiles(); err == nil {
		for _, f := range files {
			own = append(own, f.name)
		}
	}
	tar := append([]string{"tar", "-C", a.pg.DataDir, "-cf", aside + ".tar"}, own...)
	list := [][]string{{"crm_resource", "--ban", "-r", a.inv.Resource, "-N", a.inv.Node}, {"crm_resource", "--wait"}}
	if len(own) > 0 {
		list = append(list, tar)
	}
	list = append(
		list,
		[]string{"find", a.pg.DataDir, "-mindepth", "1", "-delete"},
		[]string{"runuser", "-u", a.pg.Owner.Name, "--", filepath.Join(a.pg.BinDir, "pg_basebackup"), "-D", a.pg.DataDir, "-d", a.source(), "-X", "stream", "-c", "fast"},
	)
	if len(own) > 0 {
		list = append(list, []string{"tar", "-C", a.pg.DataDir, "-xpf", aside + ".tar"})
	}
	if a.rewinding() {
		list = append(list, []string{"rm", a.store.RewindPath()})
	}
	return commands(append(list, []string{"crm_resource", "--clear", "-r", a.inv.Resource, "-N", a.inv.Node})...)
}

// monitorOut is the monitor of an instance that is kept out. It goes on to the ordinary one (false) if the instance is
// not kept out any more.
func (a *Agent) monitorOut(ctx context.Context) (bool, error) {
	o := a.vol.Out
	if o == nil {
		return false, nil
	}
	degraded := roleCode{ocf.Degraded, "kept out: " + o.Reason}
	if a.unlocked {
		return true, degraded
	}
	busy := a.rejoining()
	if !busy && !o.Running {
		if _, err := a.pg.Postmaster(); err == nil {
			a.log.Warn("the server was started by somebody else, although this instance is kept out")
			a.vol.Out = nil
			a.saveVolatile()
			return false, nil
		}
	}
	if a.inv.Probe {
		return true, nil
	}
	if !busy && !o.Running && !a.rewinding() {
		back, err := a.reconsider(ctx)
		if err != nil {
			a.log.Warn("kept out", "error", err)
		}
		if back {
			return false, nil
		}
	}
	if attrd := a.cluster.Incarnation(a.vol.Attrd); attrd != a.vol.Attrd || a.clock.Now().Sub(time.Unix(a.vol.Asserted, 0)) > assertInterval {
		a.vol.Status = "" // it went with attrd, too
		if err := a.reassert(ctx, attrd); err != nil {
			a.log.Warn("upkeep", "error", err)
		}
	}
	if err := a.sayOut(ctx); err != nil {
		a.log.Warn("promotion score not set", "error", err)
	}
	if a.kept() > 0 {
		a.spawnAftercare()
	}
	a.tell(ctx)
	if !busy && (a.vol.Out.Running || a.mayRewind()) {
		a.spawnDetached(rejoinAction)
	}
	degraded.reason = "kept out: " + a.vol.Out.Reason
	if text, _ := a.doing(); text != "" {
		degraded.reason = "kept out: " + text
	}
	return true, degraded
}

// mayRewind reports whether a rewind is wanted and was not tried just now.
func (a *Agent) mayRewind() bool {
	if a.vol.Out.Rejoin != baton.Rewind || a.params.RewindConninfo == "" {
		return false
	}
	text, at := a.doing()
	return !strings.HasPrefix(text, rewindStopped) || a.clock.Now().Sub(at) > retryRejoin
}

// reconsider asks the rule again where something has changed since, and starts the instance if it may come in.
func (a *Agent) reconsider(ctx context.Context) (bool, error) {
	if err := a.learnAll(ctx); err != nil {
		return false, err
	}
	ctl, err := pgdisk.ReadControl(a.pg.DataDir)
	if err != nil {
		return false, err
	}
	if a.basis(ctl) == a.vol.Out.Basis && a.vol.Out.Rejoin != baton.Await && !a.orderedHere(ctx) {
		return false, nil
	}
	v := a.returning(ctx, ctl)
	if v.Rejoin != baton.Follow {
		return false, a.keepOut(ctx, ctl, v)
	}
	a.log.Info("not kept out any more", "was", a.vol.Out.Reason)
	return true, a.startAsStandby(ctx)
}

// takeOut is for a server that is found to have diverged while it runs: it is stopped by the detached part, since that
// may take longer than a monitor.
func (a *Agent) takeOut(ctx context.Context, ctl pgdisk.Control, v baton.Return) error {
	a.vol.Out = &journal.Out{Rejoin: v.Rejoin, Reason: v.Reason, Basis: a.basis(ctl), Running: true}
	if err := a.do("keep-out", func() error { return journal.SaveVolatile(a.inv.Resource, a.vol) }); err != nil {
		return err
	}
	a.log.Warn("diverged: the server is taken out", "verdict", v.Rejoin, "reason", v.Reason)
	a.record("taken out", v.Reason, true)
	err := a.sayOut(ctx)
	a.spawnDetached(rejoinAction)
	return err
}

// rejoin is the detached part.
func (a *Agent) rejoin(ctx context.Context) error {
	lock, err := a.rejoinLock()
	if err != nil || lock == nil {
		return err // another one is at it
	}
	defer lock.Close()
	if err := a.stopDiverged(ctx); err != nil || a.vol.Out == nil {
		return err
	}
	if a.params.RewindConninfo == "" && a.env[asStandby] != "" {
		a.params.RewindConninfo = a.conninfoForRewind()
	}
	if a.vol.Out.Rejoin != baton.Rewind || a.params.RewindConninfo == "" {
		return nil
	}
	if err := a.rewind(ctx, lock); err != nil {
		a.say(rewindStopped + err.Error())
		a.log.Error("rewind", "error", err)
		return nil
	}
	a.say("")
	return nil
}

// stopDiverged stops a server that was found to have diverged while it ran. Afterwards vol says whether the instance is
// still to be kept out.
func (a *Agent) stopDiverged(ctx context.Context) error {
	release, err := a.flock(ctx, "action.lock")
	if err != nil {
		return err
	}
	defer release()
	if err := a.reload(); err != nil {
		return err
	}
	if a.vol.Out == nil || !a.vol.Out.Running {
		return nil
	}
	f, err := a.look()
	if err != nil {
		return err
	}
	if f.role == primary {
		return errors.New("the server runs as a primary: Pacemaker demotes it")
	}
	if f.postmaster.PID != 0 {
		limited, cancel := context.WithTimeout(ctx, 5*time.Minute)
		defer cancel()
		if f, err = a.endPrimary(limited, f); err != nil {
			return err
		}
		if err := a.awaitLingering(limited, f.postmaster.Process); err != nil {
			if err := a.endLingering(limited, f.postmaster.Process); err != nil {
				return err
			}
		}
	}
	ctl, err := pgdisk.ReadControl(a.pg.DataDir)
	if err != nil {
		return err
	}
	a.vol.Out.Running, a.vol.Out.Basis = false, a.basis(ctl)
	a.saveVolatile()
	return nil
}

// rewinding reports whether a rewind is under way or was cut short: the data directory must not be started.
func (a *Agent) rewinding() bool {
	r, err := a.store.LoadRewind()
	return r != nil || err != nil
}

// halfRewound keeps the instance out because of the marker of a rewind.
func (a *Agent) halfRewound(ctx context.Context) error {
	r, err := a.store.LoadRewind()
	v := baton.Return{Rejoin: baton.Rewind}
	if err != nil {
		v = baton.Return{Rejoin: baton.Clone, Reason: err.Error()}
	} else {
		v.Reason = r.Reason
		if err := a.restoreOwn(r); err != nil {
			a.log.Warn("local configuration not put back yet", "error", err)
		}
	}
	return a.keepOut(ctx, pgdisk.Control{}, v)
}

// The lock of the detached part is also held by the programs that it runs, so that it tells whether any of them is still
// at work if the agent itself was killed. It holds the number of their process group.
func (a *Agent) rejoinLockPath() string {
	return filepath.Join(journal.RunDir(a.inv.Resource), "rejoin.lock")
}

func (a *Agent) rejoinLock() (*os.File, error) {
	f, err := os.OpenFile(a.rejoinLockPath(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if err == syscall.EWOULDBLOCK {
			return nil, nil
		}
		return nil, err
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(syscall.Getpgrp())), 0)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// rejoining reports whether the detached part, or a program of it, is at work.
func (a *Agent) rejoining() bool {
	f, err := os.OpenFile(a.rejoinLockPath(), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == syscall.EWOULDBLOCK
}

// endRejoin ends the detached part and its programs: after a stop nothing may touch the data directory. A rewind goes on
// from its marker later.
func (a *Agent) endRejoin(ctx context.Context) error {
	if !a.rejoining() {
		return nil
	}
	return a.poll(ctx, "the rewind to end", 10*time.Millisecond, func() (bool, error) {
		data, _ := os.ReadFile(a.rejoinLockPath())
		// As long as somebody of the group holds the lock, its number is not given to another.
		if group, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && group > 1 && group != syscall.Getpgrp() && a.rejoining() {
			a.do("end-rejoin", func() error { return syscall.Kill(-group, syscall.SIGKILL) })
		}
		return !a.rejoining(), nil
	})
}

// What the detached part is doing, or why it stopped, for the monitor to show.
func (a *Agent) doingPath() string {
	return filepath.Join(journal.RunDir(a.inv.Resource), "rejoin.txt")
}

func (a *Agent) say(text string) {
	if text == "" {
		os.Remove(a.doingPath())
		return
	}
	a.log.Info("rejoin", "doing", text)
	if err := os.WriteFile(a.doingPath(), []byte(text), 0o600); err != nil {
		a.log.Warn("rejoin", "error", err)
	}
}

func (a *Agent) doing() (string, time.Time) {
	data, err := os.ReadFile(a.doingPath())
	if err != nil {
		return "", time.Time{}
	}
	info, err := os.Stat(a.doingPath())
	if err != nil {
		return "", time.Time{}
	}
	return string(data), info.ModTime()
}

// unfit says why this instance cannot be promoted, if it is kept out.
func (a *Agent) unfit() string {
	if a.vol.Out == nil {
		return ""
	}
	return "kept out: " + a.vol.Out.Reason
}
