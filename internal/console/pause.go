package console

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// Pause and resume set the meta attribute maintenance of the clone: Pacemaker then monitors and acts on nothing of this
// resource, and everything else of the cluster goes on.
const maintenanceMeta = "maintenance"

// Paused tells whether Pacemaker is told to leave the resource alone, and by what.
func (s *Snapshot) Paused() (by string, paused bool) {
	switch {
	case isTrue(s.Config.Meta(s.Clone, maintenanceMeta)) || isTrue(s.Config.Meta(s.Resource, maintenanceMeta)):
		return s.Clone + " has maintenance=true", true
	case s.State.MaintenanceMode:
		return "the whole cluster is in maintenance mode", true
	}
	return "", false
}

// Pause tells Pacemaker to leave the resource alone. It writes what that means.
func (w World) Pause(ctx context.Context, resource string, out io.Writer) error {
	s, err := w.Take(ctx, resource)
	if err != nil {
		return err
	}
	if by, paused := s.Paused(); paused {
		return fail(Done, "already paused, nothing was changed: %s", by)
	}
	if s, err = w.atRest(ctx, resource, s); err != nil {
		return err
	}
	serves := "PostgreSQL serves on, on every node, as primary and standby, and may be stopped and started by hand."
	if s.Primary() == "" {
		serves = "There is no primary, and nobody is promoted before pgbaton resume. PostgreSQL may be stopped and started by hand."
	}
	if err := s.setMeta(ctx, w, "--set-parameter", maintenanceMeta, "--parameter-value", "true"); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s is paused.\n", s.Clone)
	for _, line := range []string{
		serves,
		"Pacemaker monitors nothing of it: a failure is not noticed, nobody takes over, no handover is possible.",
		"The virtual IP and all else of the cluster are managed on. A node that fails is fenced, and the role comes back only after pgbaton resume.",
		"Before you resume, start what you stopped: the primary where it was, the others as standbys (standby.signal).",
	} {
		indented(out, "- ", 2, line)
	}
	return nil
}

// restLimit is how long a coordinator that has something to do is waited for.
const restLimit = 5 * time.Second

// atRest makes sure that no change of roles is under way: between a demote and a promote no action of an instance is, and whoever
// stopped Pacemaker there would leave a cluster without a primary.
func (w World) atRest(ctx context.Context, resource string, s *Snapshot) (*Snapshot, error) {
	for end := time.Now().Add(restLimit); ; {
		busy := s.underWay()
		for _, m := range s.Config.Moves(s.Resource) {
			if m.InForce(s.Taken) && strings.HasPrefix(m.Rule, rulePrefix) {
				busy = "a pgbaton switchover begun on " + ruleNode(m.Rule)
			}
		}
		idle, err := pacemaker.Idle(ctx, w.Run, s.State.DC)
		if err != nil {
			return nil, explain(err)
		}
		if busy == "" && idle {
			return s, nil
		}
		if time.Now().After(end) {
			return nil, fail(Refused, "a change is under way (%s), nothing was changed: wait for its end", or(busy, "the coordinator "+s.State.DC+" is at work"))
		}
		select {
		case <-ctx.Done():
			return nil, explain(ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
		if s, err = w.Take(ctx, resource); err != nil {
			return nil, err
		}
	}
}

// Resume lets Pacemaker manage the resource again. It refuses where Pacemaker would at once take for failed what a person
// has stopped, unless forced.
func (w World) Resume(ctx context.Context, resource string, force bool, out io.Writer) error {
	s, err := w.Take(ctx, resource)
	if err != nil {
		return err
	}
	by, paused := s.Paused()
	switch way := s.setupWay(); {
	case way != "":
		return fail(Refused, "%s, nothing was changed: %s%s", unfinishedSetup, endSetup, way)
	case !paused:
		return fail(Done, "not paused, nothing was changed")
	case s.State.MaintenanceMode:
		return fail(Refused, "%s, which is not for this resource alone, nothing was changed: %s", by, resumeHow(true))
	}
	var bad []string
	if in, ok := s.Instance(s.Here); ok && in.Active {
		v := s.Views[s.Here]
		switch {
		case s.LocalErr != nil:
			bad = append(bad, fmt.Sprintf("the server on %s does not answer (%v): Pacemaker would recover it", s.Here, s.LocalErr))
		case v.Primary != (in.Role == pacemaker.RolePromoted):
			bad = append(bad, fmt.Sprintf("the server on %s is not what Pacemaker takes it for, %s", s.Here, roleWord(in)))
		}
	}
	if len(bad) > 0 && !force {
		return fail(Refused, "%s; nothing was changed: start it as it was, or resume with --force", strings.Join(bad, "; "))
	}
	if err := s.setMeta(ctx, w, "--delete-parameter", maintenanceMeta); err != nil {
		return err
	}
	indented(out, "", 0, fmt.Sprintf("%s is managed again. Only the server of %s was looked at; what was stopped elsewhere is recovered now: pgbaton status --watch", s.Clone, s.Here))
	return nil
}

func (s *Snapshot) setMeta(ctx context.Context, w World, args ...string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, askLimit, errHangs)
	defer cancel()
	if _, err := w.Run.Run(ctx, append([]string{"crm_resource", "--resource", s.Clone, "--meta"}, args...)...); err != nil {
		return explain(err)
	}
	return nil
}
