package console

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

func (s *Setup) pause() setupStep {
	return setupStep{
		title:    "Put the cluster into maintenance mode",
		why:      "Pacemaker then starts, stops and moves nothing, whatever it believes, while it is told who looks after PostgreSQL. Clients write on; until it ends no failure is acted upon",
		commands: [][]string{{"crm_attribute", "--name", "maintenance-mode", "--update", "true"}},
		until:    "nothing is under way any more",
		wait:     s.awaitPaused,
		pauses:   true,
	}
}

func (s *Setup) awaitPaused(ctx context.Context) error {
	return s.await(ctx, func() error {
		st, err := pacemaker.ReadState(ctx, s.world.Run)
		if err != nil {
			return err
		}
		if !st.MaintenanceMode {
			return errors.New("the cluster is not in maintenance mode yet")
		}
		return s.idle(ctx, st)
	})
}

func (s *Setup) idle(ctx context.Context, st pacemaker.ClusterState) error {
	if st.DC == "" {
		return errors.New("the cluster has no coordinator")
	}
	ok, err := pacemaker.Idle(ctx, s.world.Run, st.DC)
	if err == nil && !ok {
		err = errors.New("the coordinator is busy")
	}
	return err
}

// probe has every node's agent say what it finds.
func (s *Setup) probe() setupStep {
	return setupStep{
		title:      "Have the agent look at PostgreSQL on every node",
		why:        "Pacemaker forgets what it was told before, and learns from its new agent what runs where. The agent only looks",
		commands:   [][]string{{"crm_resource", "--refresh", "--resource", s.Clone}},
		until:      "it has found the primary on " + s.primary + others(" and standbys on ", s.members[1:]),
		wait:       func(ctx context.Context) error { return s.awaitProbes(ctx, s.to) },
		reversible: true,
	}
}

// others names nodes behind words, if there are any.
func others(words string, nodes []string) string {
	if len(nodes) == 0 {
		return ""
	}
	return words + strings.Join(nodes, ", ")
}

// expected is the exit code that a monitor must have on a node.
func (s *Setup) expected(node string) int {
	if node == s.primary {
		return int(ocf.RunningPromoted)
	}
	return int(ocf.Success)
}

func (s *Setup) awaitProbes(ctx context.Context, agent string) error {
	return s.await(ctx, func() error {
		status, err := pacemaker.ReadStatus(ctx, s.world.Run)
		if err != nil {
			return err
		}
		return s.answers(status, agent, pacemaker.History.Probe)
	})
}

// answers checks what the agent has answered last on every node. That it has not is no wrong answer.
func (s *Setup) answers(status pacemaker.Status, agent string, last func(pacemaker.History) (pacemaker.DoneOperation, bool)) error {
	histories := status.Histories(s.Resource)
	for _, node := range s.members {
		h := histories[node]
		op, ok := last(h)
		switch {
		case h.Agent != agent || !ok || op.Pending:
			return fmt.Errorf("%s on %s has not answered", agent, node)
		case op.Code != s.expected(node):
			return wrong("%s on %s answers %s: expected %s", agent, node, answerText(op), codeText(s.expected(node)))
		}
	}
	return nil
}

func answerText(op pacemaker.DoneOperation) string {
	text := codeText(op.Code)
	if op.Reason != "" {
		text += " (" + op.Reason + ")"
	}
	return text
}

func codeText(code int) string {
	switch ocf.ExitCode(code) {
	case ocf.RunningPromoted:
		return "a running primary"
	case ocf.Success:
		return "a running standby"
	case ocf.NotRunning:
		return "nothing runs"
	case ocf.ErrInstalled:
		return "not installed: is the agent on that node, and the data directory?"
	}
	return fmt.Sprintf("exit code %d", code)
}

// foresee asks the scheduler what the end of the maintenance would bring about.
func (s *Setup) foresee() setupStep {
	return setupStep{
		title:      "Ask the scheduler what it would do if maintenance ended now",
		why:        "it must want to do nothing but monitor" + others(", and to start ", s.mayDo) + ". It is asked on a copy of the configuration, by crm_simulate",
		wait:       s.harmless,
		reversible: true,
	}
}

func (s *Setup) harmless(ctx context.Context) error {
	return s.await(ctx, func() error {
		list, err := pacemaker.SimulateResume(ctx, s.world.Run)
		if errors.Is(err, pacemaker.ErrNotPaused) {
			return notOurs("the maintenance is over, somebody else has ended it")
		}
		if err != nil {
			return err
		}
		var bad []string
		for _, a := range list {
			if a.Alters() && !(a.Name == "start" && slices.Contains(s.mayDo, a.Resource)) {
				bad = append(bad, a.String())
			}
		}
		if len(bad) > 0 {
			return wrong("if maintenance ended now, Pacemaker would %s", strings.Join(bad, ", "))
		}
		return nil
	})
}

// resume ends the maintenance.
func (s *Setup) resume(until string, settled func(ctx context.Context) error) setupStep {
	return setupStep{
		title: "End the maintenance mode",
		why:   "Pacemaker monitors and acts again, through " + s.to + ". The note says so from then on: a maintenance after that is not this setup's",
		commands: [][]string{
			{"crm_attribute", "--name", "maintenance-mode", "--delete"},
			{"crm_resource", "--resource", s.Clone, "--meta", "--set-parameter", setupMeta, "--parameter-value", s.noteOf(true)},
		},
		until:   until,
		wait:    settled,
		resumes: true,
	}
}

// awaitMonitors waits until every node's agent was asked again by the running cluster, and the scores are those of want.
func (s *Setup) awaitMonitors(ctx context.Context, scores func(pacemaker.Status) (map[string]string, error), standby int) error {
	return s.await(ctx, func() error {
		status, err := pacemaker.ReadStatus(ctx, s.world.Run)
		if err != nil {
			return err
		}
		if err := s.answers(status, s.to, pacemaker.History.Monitor); err != nil {
			return fmt.Errorf("monitor: %v", err) // not wrapped, so not final: the next one may see it otherwise
		}
		values, err := scores(status)
		if err != nil {
			return err
		}
		return s.ranked(values, standby)
	})
}

// ranked tells whether the primary's score is on top of all others, and each standby's high enough.
func (s *Setup) ranked(values map[string]string, standby int) error {
	of := func(node string) pacemaker.Score {
		score, err := pacemaker.ParseScore(values[node])
		if err != nil {
			return pacemaker.NegInfinity
		}
		return score
	}
	for _, node := range s.members {
		switch {
		case node == s.primary && of(node) < baton.ScorePrimary:
			return fmt.Errorf("the promotion score of the primary %s is %q: expected %d", node, values[node], baton.ScorePrimary)
		case node != s.primary && (of(node) < pacemaker.Score(standby) || of(node) >= of(s.primary)):
			return fmt.Errorf("the promotion score of the standby %s is %q: expected %d or more, and less than that of the primary", node, values[node], standby)
		}
	}
	return nil
}

// transientScores are those that pgbaton sets.
func (s *Setup) transientScores(st pacemaker.Status) (map[string]string, error) {
	return st.Transient(pacemaker.ScoreAttribute(s.Resource)), nil
}

// permanentScores are those that pgsqlms sets.
func (s *Setup) permanentScores(ctx context.Context) func(pacemaker.Status) (map[string]string, error) {
	return func(pacemaker.Status) (map[string]string, error) {
		return pacemaker.Permanent(ctx, s.world.Run, pacemaker.ScoreAttribute(s.Resource))
	}
}
