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
	"github.com/pgbaton/pgbaton/internal/view"
)

// pafName is how Pacemaker names the Perl agent of PostgreSQL Automatic Failover.
const pafName = "ocf:heartbeat:pgsqlms"

// The ways of a takeover, as setupMeta has them.
const (
	fromPAF = "from-paf"
	backTo  = "back"
)

// Scores that pgsqlms gives: to the primary that of pgbaton, to standbys these, the best first, ten apart.
const (
	pafStandby     = 1000
	pafStandbyStep = 10
)

// Takeover prepares to hand a running resource from pgsqlms to pgbaton, or back. Neither touches PostgreSQL. It refuses
// where the cluster is not what it should be.
// whose are the commands of pcs or crm, "" for the one that is installed.
func (w World) Takeover(ctx context.Context, asked string, back bool, whose string) (*Setup, error) {
	s, from := w.setup(fromPAF, agentName, whose), pafName
	if back {
		s, from = w.setup(backTo, pafName, whose), agentName
	}
	if err := s.look(ctx); err != nil {
		return nil, err
	}
	now, err := s.findEither(asked, from)
	if err != nil {
		return nil, err
	}
	s.was = s.Config.Meta(s.Clone, setupMeta)
	was := parseNote(s.was)
	if s.was != "" && was.kind != fromPAF && was.kind != backTo {
		return nil, fail(Refused, "another setup of %s is under way, or was cut short: end that first (%s). Nothing was changed", s.Clone, setupCommand(s.was))
	}
	if s.foreignMaintenance(s.was) {
		return nil, fail(Refused, notItsMaintenance, s.Clone)
	}
	s.goingOn, s.resumed = s.was != "", was.resumed
	if now == s.to && !s.goingOn && !s.leftBehind() {
		return nil, fail(Done, "%s is %s already: nothing to do", s.Resource, s.to)
	}
	reasons := s.unfit(ctx)
	var params [2]map[string]string // of the agent that has it now, and of the one that is to have it
	for n, agent := range []string{from, s.to} {
		// What is left to do needs the agent that gave it away no more.
		if params[n], err = w.agentMetadata(ctx, agent); err != nil && (agent == s.to || now == from) {
			reasons = append(reasons, err.Error())
		}
	}
	if s.goingOn && s.State.MaintenanceMode {
		reasons = append(reasons, s.recall(was.members)...)
	} else {
		reasons = append(reasons, s.instances()...)
	}
	// Of one that was cut short the scores may be half of either.
	if !s.goingOn && now == from && len(reasons) == 0 {
		standby := 1
		if back {
			standby = baton.ScoreFollows
		}
		if err := s.ranked(s.shownScores(), standby); err != nil {
			reasons = append(reasons, err.Error()+": every standby must stream")
		}
	}
	if err := refuse(reasons); err != nil {
		return nil, err
	}
	s.plan(from, now, params)
	return s, nil
}

// look takes what a setup goes by. No agent of ours need be there to be asked.
func (s *Setup) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, askLimit, errHangs)
	defer cancel()
	w := s.world
	err := together(
		func() (err error) { s.State, err = pacemaker.ReadState(ctx, w.Run); return err },
		func() (err error) { s.Config, err = pacemaker.ReadConfiguration(ctx, w.Run); return err },
		func() (err error) { s.Here, err = thisNode(ctx, w.Run); return err },
	)
	if err != nil {
		return explain(err)
	}
	return nil
}

// findEither chooses the resource: the one asked for, or the only one of the agent that is to give it away, or else the
// only one of the agent that is to have it. It tells which of the two has it now.
func (s *Setup) findEither(asked, from string) (now string, err error) {
	has := map[string]bool{}
	for _, now = range []string{from, s.to} {
		if s.Resource, s.Clone, err = findOf(s.State, now, asked); err == nil {
			return now, nil
		}
		has[now] = len(namesOf(s.State, now)) > 0
		if has[now] && asked == "" {
			return "", err // several, or not in a clone
		}
	}
	if has[from] {
		_, _, err = findOf(s.State, from, asked)
		return "", err
	}
	if has[s.to] {
		return "", err
	}
	return "", fail(Refused, "there is no resource of %s in this cluster. Nothing was changed", from)
}

// leftBehind tells whether the other agent's scores are still there.
func (s *Setup) leftBehind() bool {
	return s.kind == fromPAF && len(s.Config.PermanentScores(s.Resource)) > 0
}

// shownScores are those that Pacemaker goes by, permanent or transient.
func (s *Setup) shownScores() map[string]string {
	values := map[string]string{}
	for node, attrs := range s.State.Attributes {
		values[node] = attrs[pacemaker.ScoreAttribute(s.Resource)]
	}
	return values
}

func (s *Setup) plan(from, now string, params [2]map[string]string) {
	s.intro = append([]string{
		fmt.Sprintf("%s: from %s to %s", s.Clone, from, s.to),
		fmt.Sprintf("%s is the primary%s. PostgreSQL is neither stopped nor started, and clients write on.", s.primary, others(", standbys are on ", s.members[1:])),
	}, s.intro...)
	if s.goingOn {
		s.intro = append(s.intro, "A setup was cut short here: this goes on from there.")
	}
	s.outro = []string{"Then: pgbaton status, and pgbaton check on every node. The way back: pgbaton setup --back."}
	if s.kind == backTo {
		s.outro = []string{"What pgbaton set besides (on-fail, time-outs) does no harm to pgsqlms, and stays. The state below /var/lib/pgbaton stays too, and is of use if you come again."}
	}
	handed := now == s.to && !s.State.MaintenanceMode // only what is left behind is still to be done
	if !handed {
		mark := s.mark()
		if now == from {
			mark.wait = func(ctx context.Context) (err error) {
				if err := s.awaitNote(ctx); err != nil {
					return err
				}
				s.original, err = pacemaker.ResourceText(ctx, s.world.Run, s.Clone)
				return err
			}
		}
		s.steps = append(s.steps, mark, s.pause())
		if s.kind == backTo {
			s.steps = append(s.steps, s.givePermanent())
		}
		s.steps = append(s.steps, s.give(from, params), s.probe())
		if s.kind == fromPAF {
			s.steps = append(s.steps, s.mend()...)
		} else {
			s.steps = append(s.steps, s.dropTransient())
		}
		s.steps = append(s.steps, s.foresee())
	} else if s.goingOn {
		s.steps = append(s.steps, s.mark())
	}
	if s.kind == fromPAF {
		settled := func(ctx context.Context) error { return s.awaitMonitors(ctx, s.transientScores, baton.ScoreFollows) }
		s.steps = append(s.steps, s.resume("every node's monitor has answered, and has set the scores of pgbaton: "+fmt.Sprint(baton.ScorePrimary)+" for the primary, less for the others", settled), s.dropPermanent())
	} else {
		settled := func(ctx context.Context) error { return s.awaitMonitors(ctx, s.permanentScores(ctx), 1) }
		s.steps = append(s.steps, s.resume("every node's monitor has answered, and the primary's score is on top", settled))
	}
	s.steps = append(s.steps, s.unmark())
}

// give is the step that it is all about: the resource keeps its name, operations, constraints and history of roles, and
// gets another agent.
func (s *Setup) give(from string, params [2]map[string]string) setupStep {
	parts := strings.Split(s.to, ":")
	text := fmt.Sprintf(`<primitive id="%s" class="%s" provider="%s" type="%s">`, s.Resource, parts[0], parts[1], parts[2])
	set := or(s.Config.ParameterSet(s.Resource), s.Resource+"-instance_attributes")
	have := s.Config.Parameters(s.Resource)
	why := "the clone, its operations, constraints and parameters stay"
	// What both agents know, and take for something else where it is not set.
	pairs := ""
	for _, p := range [][2]string{
		{"system_user", ocf.DefaultSystemUser}, {"pgdata", ocf.DefaultPGData}, {"pghost", ocf.DefaultPGHost}, {"pgport", fmt.Sprint(ocf.DefaultPGPort)},
	} {
		name, def := p[0], p[1]
		if was, ok := params[0][name]; ok && s.kind == fromPAF && have[name] == "" && was != "" && was != def {
			pairs += nvpair(set+"-"+name, name, was)
			why += fmt.Sprintf("; %s is set to %s, the default of the old agent", name, was)
		}
	}
	modify := []string{"cibadmin", "--modify", "--scope", "resources", "--xml-text"}
	if pairs != "" {
		modify = slices.Insert(modify, 2, "--allow-create")
		text += fmt.Sprintf(`<instance_attributes id="%s">%s</instance_attributes>`, set, pairs)
	}
	modify = append(modify, text+"</primitive>")
	step := setupStep{
		title: "Give the resource to " + s.to, reversible: true,
		commands: [][]string{modify},
	}
	for _, name := range sorted(have) {
		if _, known := params[1][name]; known || params[0] == nil {
			continue
		}
		step.commands = append(step.commands, []string{
			"cibadmin", "--delete", "--xpath",
			fmt.Sprintf("//primitive[@id='%s']/instance_attributes/nvpair[@name='%s']", s.Resource, name),
		})
		why += fmt.Sprintf("; %s is removed, which it does not know", name)
	}
	step.why = why
	if !s.resumed { // what has run since is not taken back
		s.undo = func(ctx context.Context) error { return s.takeBack(ctx, from) }
	}
	return step
}

// mend is what check would find in the resource's own configuration: each with its reason and its command.
func (s *Setup) mend() []setupStep {
	site := &Site{Snapshot: s.Snapshot, Tool: s.tool}
	site.checkClone()
	site.checkOperations()
	var steps []setupStep
	for _, f := range site.findings {
		steps = append(steps, setupStep{title: "Mend: " + f.Text, why: f.Why, commands: [][]string{{"sh", "-c", f.Do}}, optional: true})
	}
	return steps
}

// dropPermanent removes what pgsqlms left for ever.
func (s *Setup) dropPermanent() setupStep {
	step := setupStep{
		title: "Remove the promotion scores that pgsqlms left for ever",
		why:   "they outlive the leaving of their node, which would stay the best candidate; pgbaton's own are in force by now",
		until: s.primary + " still is the primary, and nothing is under way",
		wait: func(ctx context.Context) error {
			return s.await(ctx, func() error {
				st, err := pacemaker.ReadState(ctx, s.world.Run)
				if err != nil {
					return err
				}
				if p := st.Promoted(s.Resource); !slices.Equal(p, []string{s.primary}) {
					return fmt.Errorf("primary is %s: expected %s", or(strings.Join(p, ", "), "nobody"), s.primary)
				}
				return s.idle(ctx, st)
			})
		},
	}
	for _, node := range s.Config.PermanentScores(s.Resource) {
		step.commands = append(step.commands, deletePermanent(node, pacemaker.ScoreAttribute(s.Resource)))
	}
	return step
}

func deletePermanent(node, name string) []string {
	return []string{"crm_attribute", "--node", node, "--name", name, "--lifetime", "forever", "--delete"}
}

// givePermanent sets the scores that pgsqlms would have given.
func (s *Setup) givePermanent() setupStep {
	step := setupStep{
		title: "Set the promotion scores that pgsqlms goes by", reversible: true,
		why: "it keeps them for ever in the configuration, and sets those of standbys only by the primary's monitor",
	}
	for n, node := range s.members {
		score := baton.ScorePrimary
		if n > 0 {
			score = pafStandby - pafStandbyStep*(n-1)
		}
		step.commands = append(step.commands, []string{
			"crm_attribute", "--node", node, "--name", pacemaker.ScoreAttribute(s.Resource), "--lifetime", "forever", "--update", fmt.Sprint(score),
		})
	}
	return step
}

// dropTransient removes what pgbaton says in attributes.
func (s *Setup) dropTransient() setupStep {
	step := setupStep{
		title: "Remove what pgbaton said in the cluster's attributes", reversible: true,
		why: "its scores would hide those of pgsqlms",
		wait: func(ctx context.Context) error {
			return s.await(ctx, func() error {
				status, err := pacemaker.ReadStatus(ctx, s.world.Run)
				if err == nil && len(status.Transient(pacemaker.ScoreAttribute(s.Resource))) > 0 {
					err = errors.New("a score of pgbaton is still there")
				}
				return err
			})
		},
		until: "no score of pgbaton is left",
	}
	for _, n := range s.State.Nodes {
		for _, name := range []string{pacemaker.ScoreAttribute(s.Resource), view.StatusAttribute(s.Resource)} {
			step.commands = append(step.commands, []string{"attrd_updater", "--node", n.Name, "--name", name, "--delete"})
		}
		for _, name := range []string{baton.BulletinAttribute(s.Resource), view.Attribute(s.Resource), view.HistoryAttribute(s.Resource), baton.OrderAttribute(s.Resource)} {
			step.commands = append(step.commands, []string{"attrd_updater", "--private", "--node", n.Name, "--name", name, "--delete"})
		}
		if s.hasPermanent(n.Name, baton.ClaimAttribute(s.Resource)) {
			step.commands = append(step.commands, deletePermanent(n.Name, baton.ClaimAttribute(s.Resource)))
		}
	}
	return step
}

func (s *Setup) hasPermanent(node, name string) bool {
	return s.State.Attributes[node][name] != ""
}

// takeBack gives the resource back as it was, while maintenance lasts, and ends that once the old agent sees what it saw.
func (s *Setup) takeBack(ctx context.Context, from string) error {
	if err := s.stillPaused(ctx); err != nil {
		return err // a managed resource would be given to another agent
	}
	parts := strings.Split(from, ":")
	restore := []string{"cibadmin", "--modify", "--scope", "resources", "--xml-text", fmt.Sprintf(`<primitive id="%s" class="%s" provider="%s" type="%s"/>`, s.Resource, parts[0], parts[1], parts[2])}
	if s.original != "" {
		restore = []string{"cibadmin", "--replace", "--scope", "resources", "--xml-text", s.original}
	}
	if err := s.command(ctx, restore...); err != nil {
		return err
	}
	if s.kind == backTo {
		// Its own first, which may have been removed: without any score the primary would be demoted.
		for n, node := range s.members {
			score := baton.ScorePrimary
			if n > 0 {
				score = baton.ScoreFollows
			}
			name := pacemaker.ScoreAttribute(s.Resource)
			if err := s.command(ctx, "attrd_updater", "--node", node, "--name", name, "--update", fmt.Sprint(score)); err != nil {
				return err
			}
			if err := s.command(ctx, deletePermanent(node, name)...); err != nil {
				return err
			}
		}
	}
	if err := s.command(ctx, "crm_resource", "--refresh", "--resource", s.Clone); err != nil {
		return err
	}
	limited, cancel := context.WithTimeoutCause(ctx, setupLimit, errHangs)
	defer cancel()
	if err := s.awaitProbes(limited, from); err != nil {
		return err
	}
	if err := s.harmless(limited); err != nil {
		return err
	}
	if err := s.command(ctx, "crm_attribute", "--name", "maintenance-mode", "--delete"); err != nil {
		return err
	}
	return s.do(ctx, s.unmark())
}
