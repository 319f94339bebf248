package console

import (
	"context"
	"errors"
	"strings"

	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// setupMeta is a meta attribute of the clone for as long as a setup is under way, so that one that was cut short is
// known for what it is, on every node. Its value says which way it goes, who ran what when it began, the primary first (in
// the middle of it Pacemaker does not know), and whose it is: of two runs the one that wrote it last goes on, since the
// other one may be alive and none can tell.
const setupMeta = "pgbaton-setup"

// note is what is known of a setup that is under way, the value of setupMeta.
type note struct {
	kind    string
	members []string
	run     string // nonce of the run that wrote it, "" in one of an earlier release
	// resumed: the setup has ended its maintenance and only waited for the monitors. Whatever is in maintenance since is somebody
	// else's, and who ran what then may be long past.
	resumed bool
}

// No node has such a name, and an earlier release takes it for one that is not there.
const (
	runPrefix   = "run:" // stands before the nonce
	resumedMark = "resumed:"
)

func (n note) String() string {
	words := append([]string{n.kind}, n.members...)
	if n.resumed {
		words = append(words, resumedMark)
	}
	return strings.Join(append(words, runPrefix+n.run), ",")
}

func parseNote(text string) note {
	words := strings.Split(text, ",")
	n := note{kind: words[0], members: words[1:]}
	if last := len(n.members) - 1; last >= 0 && strings.HasPrefix(n.members[last], runPrefix) {
		n.run, n.members = strings.TrimPrefix(n.members[last], runPrefix), n.members[:last]
	}
	if last := len(n.members) - 1; last >= 0 && n.members[last] == resumedMark {
		n.resumed, n.members = true, n.members[:last]
	}
	return n
}

// setupCommand is how a setup is gone on with.
func setupCommand(meta string) string {
	kind := parseNote(meta).kind
	if kind == fromReplication {
		return "pgbaton setup --apply"
	}
	return "pgbaton setup --" + kind + " --apply"
}

// setupWay is the command that goes on with a setup that is under way or was cut short, "" if there is none. Until it has ended, the
// cluster's maintenance must not: a running primary may have no score, or another agent than Pacemaker knows it by.
func (s *Snapshot) setupWay() string {
	way := s.Config.Meta(s.Clone, setupMeta)
	if way == "" || s.foreignMaintenance(way) {
		return ""
	}
	return setupCommand(way)
}

// foreignMaintenance reports whether the cluster is in a maintenance that is not the one of the setup which left this note.
func (s *Snapshot) foreignMaintenance(note string) bool {
	return parseNote(note).resumed && s.State.MaintenanceMode
}

// unfinishedSetup is what is said of it, and how it ends.
const (
	unfinishedSetup = "a pgbaton setup is under way, or was cut short"
	endSetup        = "wait for its end, or run it again: "
	// notItsMaintenance takes the clone.
	notItsMaintenance = "a setup of %s has not seen all monitors yet, and the cluster is in a maintenance mode that is not that setup's: end that first (crm_attribute --name maintenance-mode --delete). Nothing was changed"
)

// mark makes the setup known, on the clone.
func (s *Setup) mark() setupStep {
	return setupStep{
		title: "Make a note of it in the cluster's configuration",
		why:   "if this is cut short, also by the loss of this node, it is known for what it is, and the same command goes on",
		commands: [][]string{
			{"crm_resource", "--resource", s.Clone, "--meta", "--set-parameter", setupMeta, "--parameter-value", s.note()},
		},
		wait:  s.awaitNote,
		marks: true,
	}
}

// note is the value of setupMeta that this run writes.
func (s *Setup) note() string { return s.noteOf(s.resumed) }

func (s *Setup) noteOf(resumed bool) string {
	members := s.members
	if len(s.noted) > 0 {
		members = s.noted
	}
	return note{s.kind, members, s.run, resumed}.String()
}

// awaitNote waits until this node's copy of the configuration has the note of this run.
func (s *Setup) awaitNote(ctx context.Context) error {
	return s.await(ctx, func() error {
		config, err := pacemaker.ReadConfiguration(ctx, s.world.Run)
		if err != nil {
			return err
		}
		switch config.Meta(s.Clone, setupMeta) {
		case s.note():
			return nil
		case s.was:
			return errors.New("the note is not in the configuration yet")
		}
		return notOurs("another pgbaton setup has begun at the same moment")
	})
}

func (s *Setup) unmark() setupStep {
	return setupStep{
		title: "Remove the note",
		commands: [][]string{
			{"crm_resource", "--resource", s.Clone, "--meta", "--delete-parameter", setupMeta},
		},
	}
}
