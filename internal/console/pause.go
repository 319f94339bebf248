package console

import (
	"context"
	"fmt"
	"io"
	"strings"

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
	if busy := s.underWay(); busy != "" {
		return fail(Refused, "a change of roles is under way (%s), nothing was changed: wait for its end", busy)
	}
	if err := s.setMeta(ctx, w, "--set-parameter", maintenanceMeta, "--parameter-value", "true"); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s is paused.\n", s.Clone)
	for _, line := range []string{
		"PostgreSQL serves on, on every node, as primary and standby, and may be stopped and started by hand.",
		"Pacemaker monitors nothing of it: a failure is not noticed, nobody takes over, no handover is possible.",
		"The virtual IP and all else of the cluster are managed on. A node that fails is fenced, and the role comes back only after pgbaton resume.",
		"Before you resume, start what you stopped: the primary where it was, the others as standbys (standby.signal).",
	} {
		indented(out, "- ", 2, line)
	}
	return nil
}

// Resume lets Pacemaker manage the resource again. It refuses where Pacemaker would at once take for failed what a person
// has stopped, unless forced.
func (w World) Resume(ctx context.Context, resource string, force bool, out io.Writer) error {
	s, err := w.Take(ctx, resource)
	if err != nil {
		return err
	}
	by, paused := s.Paused()
	switch way := s.Config.Meta(s.Clone, setupMeta); {
	case way != "":
		return fail(Refused, "a pgbaton setup is under way, or was cut short, nothing was changed: wait for its end, or run it again: %s", setupCommand(way))
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
