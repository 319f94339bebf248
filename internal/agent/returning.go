package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// heardLimit is how long an instance that starts waits for the word of nodes that are up: their attributes come to a node
// that has just joined a little after it.
const heardLimit = time.Second

// primaryHeardLimit is how long it waits for the word of a primary that runs: who was away may have diverged from it, and
// nothing but this start waits meanwhile.
const primaryHeardLimit = 5 * time.Second

// attemptLimit is how long it waits for the end of an attempt that it would not fit: what would be a standby with a score
// now, is diverged a moment later. It waits only for a node that is there.
const attemptLimit = 5 * time.Second

// unended says that the primary is one of which it is not known yet which timeline it began, and where.
const unended = "somebody's attempt to be promoted has not ended yet"

// learnAtStart is learnAll for an instance that starts.
func (a *Agent) learnAtStart(ctx context.Context, ctl pgdisk.Control) (changed bool) {
	if !a.state.Away && a.primaryStays() {
		a.state.Away, changed = true, true // until it has caught up
	}
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
	if hear(a.plan.Promoted, primaryHeardLimit) {
		hear(a.plan.Active, heardLimit)
	} else {
		a.unjudged = "not heard from the primary yet"
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
		// If that has succeeded, and nobody has said so yet, this instance may have diverged.
		a.unjudged = unended
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

// restShare is the part of an action in which the WAL of a crashed instance is read. A start that times out bans the node, and
// the server has to read all of it, too; a demote that does has it fenced. What a start did not get to is seen once the server
// runs; a primary that leaves no note is found by its position, and nobody is preferred to it before that is known.
const restShare = 0.4

// readRest reads where an instance ends that is down, so that [Agent.atRest] knows it.
func (a *Agent) readRest(ctx context.Context, ctl pgdisk.Control) {
	limited, cancel := a.share(ctx, restShare)
	defer cancel()
	if _, err := a.atRest(limited, ctl); err != nil && limited.Err() != nil {
		a.resting, a.restless, a.restingControl = nil, err, ctl
	}
}

// atRest is this instance as it lies on disk. Nothing of its server may run.
func (a *Agent) atRest(ctx context.Context, ctl pgdisk.Control) (baton.Candidate, error) {
	if a.restingControl == ctl {
		switch {
		case a.resting != nil:
			return *a.resting, nil
		case a.restless != nil:
			return baton.Candidate{}, a.restless
		}
	}
	c, err := a.candidate(ctx, nil, nil, false)
	if errors.Is(err, fs.ErrNotExist) {
		c, err = a.atRestAlone(ctx, ctl)
	}
	if err == nil && c.Last == nil && (c.Position.LSN == ctl.Redo || c.Position.LSN == ctl.CheckPoint) {
		err = fmt.Errorf("there is no valid record at %s in %s, where pg_control says that there is one", c.Position.LSN, a.walDir())
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

// mendHistory gets the history file of this instance's timeline if it is missing here, as a standby gets those of newer
// ones: the server does not start without.
func (a *Agent) mendHistory(ctx context.Context, ctl pgdisk.Control) error {
	return a.takeHistory(ctl, func(t pgdisk.TimelineID, _ string) (string, error) {
		conninfo, password := postgres.SplitPassword(a.pg.Settings()["primary_conninfo"], [2]string{"connect_timeout", "3"}, [2]string{"replication", "true"})
		src := rewindSource{conninfo: conninfo, password: password}
		if password != "" {
			src.tool.Env = []string{"PGPASSWORD=" + password}
		}
		limited, cancel := a.share(ctx, 0.3)
		defer cancel()
		out, err := a.query(limited, src, fmt.Sprintf("TIMELINE_HISTORY %d", t))
		_, content, _ := strings.Cut(out, "|") // its name comes first
		return content, err
	})
}

// takeHistory writes the history file of this instance's timeline if it is missing here, as the primary gives it when it
// is asked.
func (a *Agent) takeHistory(ctl pgdisk.Control, ask func(t pgdisk.TimelineID, name string) (string, error)) error {
	t := max(ctl.CheckPointTimeline, ctl.MinRecoveryTimeline)
	name := pgdisk.HistoryFileName(t)
	if _, err := os.Stat(filepath.Join(a.walDir(), name)); t <= 1 || !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	content, err := ask(t, name)
	if err == nil {
		var h pgdisk.History
		if h, err = pgdisk.ParseHistory(strings.NewReader(content)); err == nil && len(h) == 0 {
			err = errors.New("it gave an empty one")
		}
	}
	if err != nil {
		return fmt.Errorf("pg_wal/%s is missing, and the primary does not give it: copy it from another node or from the archive: %w", name, err)
	}
	a.log.Warn("took over a missing history file from the primary", "file", name)
	return a.do("history-file", func() error { return a.pg.WriteWAL(name, []byte(content)) })
}

// returning asks the rule what becomes of this instance, which is down, by what is known on this node.
func (a *Agent) returning(ctx context.Context, ctl pgdisk.Control) baton.Return {
	self, err := a.atRest(ctx, ctl)
	if err != nil {
		// The server will say what is wrong with its WAL; nothing that is known speaks against its start.
		a.unjudged = "where its WAL ends is not known"
		a.log.Warn(a.unjudged, "error", err)
		return baton.Return{}
	}
	newest := "none"
	if n := len(a.state.Claims); n > 0 {
		newest = a.state.Claims[n-1].String()
	}
	a.log.Info("where this instance stands", "ends", self.Position, "pg_control", ctl.State, "newest_claim", newest)
	return a.judge(ctx, self, ctl)
}

// judge asks the rule about an instance: by the claims, then by the history files that lie in pg_wal.
func (a *Agent) judge(ctx context.Context, self baton.Candidate, ctl pgdisk.Control) baton.Return {
	r := baton.Returning{Candidate: self, Note: a.state.Note}
	if last := self.Last; last != nil && ctl.State == pgdisk.ShutDown && !a.state.Recovered {
		r.Closed = last.ShutdownCheckpoint && last.Start == ctl.CheckPoint && self.Position.Timeline == ctl.CheckPointTimeline
	}
	switch ctl.State {
	case pgdisk.ShutDown, pgdisk.ShuttingDown, pgdisk.InProduction, pgdisk.InCrashRecovery:
		r.WasPrimary = true
	}
	line, known := baton.LineOf(a.state.Claims)
	_, trespassed := r.Trespassed(a.state.Claims)
	if trespassed || known && r.WasPrimary && self.Position.Timeline > line.Timeline {
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

// passedOver reports whether Pacemaker has promoted a node whose attempt this instance would not fit, and which has not said yet how
// that ended: it has as good as diverged.
func (a *Agent) passedOver(ctx context.Context, at pgdisk.Position) bool {
	c, ok := baton.Attempted(baton.Candidate{Node: a.inv.Node, Position: at}, a.state.Claims)
	if !ok {
		return false
	}
	primary, err := a.primaryElsewhere(ctx)
	if err != nil {
		a.log.Warn("whether there is a primary is not known", "error", err)
	}
	return primary == c.Node
}

// primaryElsewhere is the other node that is primary, "" if none is known: by Pacemaker's word, or by its own. After a parameter was
// changed Pacemaker holds a primary for a standby, until it has promoted or monitored it again: a reload-agent stands in its history
// as a start (seen with 2.1.5). The score alone would not do: that of a primary also has
// whoever holds its own unused note.
func (a *Agent) primaryElsewhere(ctx context.Context) (string, error) {
	node, err := a.cluster.PromotedBut(ctx, a.inv.Node)
	if err != nil || node != "" {
		return node, err
	}
	scores, err := a.cluster.Scores(ctx)
	if err != nil {
		return "", err
	}
	list, err := a.others(ctx)
	if err != nil {
		return "", err
	}
	note, _ := baton.Gather(list, "").Usable("")
	for _, b := range list {
		if b.Node != a.inv.Node && scores[b.Node] == baton.ScorePrimary && (note == nil || note.Node != b.Node) {
			return b.Node, nil
		}
	}
	return "", nil
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
