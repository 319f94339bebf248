package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

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

func (a *Agent) rewindCommand() string {
	conninfo, shown := a.conninfoForRewind()
	if !shown {
		return "set rewind_conninfo (its primary_conninfo holds a secret, or is not understood, and is not shown)"
	}
	return commands([]string{"crm_resource", "-r", a.inv.Resource, "-p", "rewind_conninfo", "-v", conninfo})
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
	if names := a.keptNames(); len(names) > 0 {
		// Nobody else has them, and they belong into the archive.
		list = append(list, []string{"mv", filepath.Join(a.walDir(), keepDir), filepath.Join(a.store.Dir, "not-archived-"+names[len(names)-1])})
	}
	source, shown := a.source()
	if !shown {
		return "(by hand, README.md, Coming back: its primary_conninfo holds a secret, or is not understood, and is not shown)"
	}
	backup := []string{"runuser", "-u", a.pg.Owner.Name, "--", filepath.Join(a.pg.BinDir, "pg_basebackup"), "-D", a.pg.DataDir, "-d", source, "-X", "stream", "-c", "fast"}
	// pg_basebackup takes an empty directory only, for each tablespace, too, and makes a pg_wal of its own unless told where.
	for _, place := range a.tablespaces() {
		list = append(list, []string{"find", "-H", place, "-mindepth", "1", "-path", filepath.Join(place, "PG_*"), "-delete"})
	}
	if wal, err := filepath.EvalSymlinks(a.walDir()); err == nil && wal != filepath.Join(a.pg.RealDataDir(), "pg_wal") {
		list = append(list, []string{"find", wal, "-mindepth", "1", "-delete"})
		backup = append(backup, "--waldir", wal)
	}
	list = append(list, []string{"find", "-H", a.pg.DataDir, "-mindepth", "1", "-delete"}, backup)
	if len(own) > 0 {
		list = append(list, []string{"tar", "-C", a.pg.DataDir, "-xpf", aside + ".tar"})
	}
	if a.rewinding() {
		list = append(list, []string{"rm", a.store.RewindPath()})
	}
	return commands(append(list, []string{"crm_resource", "--clear", "-r", a.inv.Resource, "-N", a.inv.Node})...)
}

// tablespaces are the places of those outside of the data directory (pg_tblspc, "Database File Layout").
func (a *Agent) tablespaces() (places []string) {
	links, _ := filepath.Glob(filepath.Join(a.pg.DataDir, "pg_tblspc", "*"))
	for _, l := range links {
		if place, err := os.Readlink(l); err == nil {
			places = append(places, place)
		}
	}
	return places
}

// source is how a base backup reaches the primary, without a password: as the standby does, and not by its name, or commits would
// wait for it as for a synchronous standby. shown is false if it must not be seen, in a command line neither: there is another secret in
// it, or what may be one.
func (a *Agent) source() (info string, shown bool) {
	rest, _ := postgres.SplitPassword(a.pg.Settings()["primary_conninfo"])
	named, ok := postgres.SetConninfo(rest, "application_name", "pg_basebackup")
	_, secret := postgres.ShownConninfo(rest)
	return named, ok && !secret
}

// conninfoForRewind reaches the primary as the standby does, without a password. See source for the rest.
func (a *Agent) conninfoForRewind() (info string, shown bool) {
	source, shown := a.source()
	rest, _ := postgres.SplitPassword(source, [2]string{"dbname", "postgres"})
	return strings.Join(slices.DeleteFunc(strings.Split(rest, " "), func(s string) bool { return strings.HasPrefix(s, "application_name=") }), " "), shown
}

// commands joins command lines so that a person, or pgbaton status, can tell where each begins. What is said between two
// stands behind a #, so that a line can be copied as it is.
func commands(lines ...[]string) string {
	var b strings.Builder
	for _, words := range lines {
		b.WriteString(" $ " + ocf.JoinArgs(words...))
	}
	return strings.TrimSpace(b.String())
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}
