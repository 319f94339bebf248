package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/durable"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// rewind takes what the cluster passed over out of this instance, and starts it. Whatever it needs is checked before
// anything is touched. What a second run needs is put aside first: pg_rewind overwrites the very WAL in which it finds
// the blocks to replace, and is not made to be run twice.
func (a *Agent) rewind(ctx context.Context, lock *os.File) error {
	r, err := a.store.LoadRewind()
	if err != nil {
		return err
	}
	src := a.rewindSource(lock)
	if r == nil {
		if r, err = a.prepareRewind(ctx, src); err != nil {
			return err
		}
	} else if !r.Done {
		a.pg.BinDir = r.BinDir // PG_VERSION, by which it is found, may be half written
		if err := a.sameTarget(r); err != nil {
			return err
		}
		a.say("the rewind was cut short: beginning again")
		if err := a.checkSource(ctx, src); err != nil {
			return err
		}
		if err := a.restoreTarget(r); err != nil {
			return fmt.Errorf("a rewind was cut short, and what a second run needs cannot be put back (%w): make this instance anew: %s", err, a.cloneCommands())
		}
	}
	if !r.Done {
		doing := "pg_rewind is at work since " + a.clock.Now().Format(time.TimeOnly)
		if a.params.RewindKeep > 0 {
			doing += "; what is lost is kept in " + r.Keep
		}
		a.say(doing)
		var out string
		if err := a.do("pg-rewind", func() (err error) { out, err = a.pgRewind(ctx, src); return err }); err != nil {
			return src.why(out, err)
		}
		if strings.Contains(out, unneeded) {
			if !r.Unneeded {
				return fmt.Errorf("a rewind was cut short, and the primary of now needs none of it: make this instance anew: %s", a.cloneCommands())
			}
			if err := a.cutWAL(r); err != nil {
				return err
			}
		}
		r.Done = true
		if err := a.do("rewound", func() error { return a.store.SaveRewind(*r) }); err != nil {
			return err
		}
	}
	return a.finishRewind(ctx, r)
}

// unneeded is how pg_rewind says that this instance's data are on the source's line (perform_rewind in pg_rewind.c).
const unneeded = "no rewind required"

// rewindSource is how the programs of a rewind reach the primary.
type rewindSource struct {
	conninfo string
	password string
	tool     postgres.Tool
}

func (a *Agent) rewindSource(lock *os.File) rewindSource {
	conninfo, password := postgres.SplitPassword(
		a.params.RewindConninfo,
		[2]string{"dbname", "postgres"}, [2]string{"connect_timeout", "10"}, [2]string{"target_session_attrs", "read-write"},
	)
	if password == "" && a.env[asStandby] != "" {
		_, password = postgres.SplitPassword(a.pg.Settings()["primary_conninfo"])
	}
	s := rewindSource{conninfo: conninfo, password: password, tool: postgres.Tool{Files: []*os.File{lock}}}
	if password != "" {
		s.tool.Env = []string{"PGPASSWORD=" + password} // not in a command line, which everybody may read
	}
	return s
}

// complaintLine is how PostgreSQL's programs begin what matters: "pg_rewind: error: …", "psql: error: …", "FATAL:  …".
var complaintLine = regexp.MustCompile(`(?m)^(?:[a-z_]+: )?(?:error|fatal|detail|ERROR|FATAL|DETAIL):\s+(.*)$`)

// why makes an error of what a program said; no password is repeated.
func (s rewindSource) why(out string, err error) error {
	var said []string
	for _, m := range complaintLine.FindAllStringSubmatch(out, -1) {
		said = append(said, strings.TrimSpace(m[1]))
	}
	text := strings.Join(said, "; ")
	if text == "" {
		lines := strings.Split(strings.TrimSpace(out), "\n")
		text = lines[len(lines)-1]
	}
	if s.password != "" {
		text = strings.ReplaceAll(text, s.password, "***")
	}
	if len(text) > 400 {
		text = text[:400] + "..."
	}
	return fmt.Errorf("%w: %s", err, text)
}

// query runs one statement on the primary, with the very connection that pg_rewind will make.
func (a *Agent) query(ctx context.Context, src rewindSource, sql string) (string, error) {
	limited, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	out, err := src.tool.Run(limited, a.pg, "psql", "-XAtqw", "-v", "ON_ERROR_STOP=1", "-d", src.conninfo, "-c", sql)
	if err != nil {
		return "", src.why(out, err)
	}
	return out, nil
}

// pgRewind runs pg_rewind against the primary. Crash recovery has been seen to, with this instance's own configuration.
func (a *Agent) pgRewind(ctx context.Context, src rewindSource, args ...string) (string, error) {
	args = append([]string{"-D", a.pg.DataDir, "--source-server=" + src.conninfo, "--no-ensure-shutdown"}, args...)
	if a.pg.ConfigDir == a.pg.DataDir || a.majorVersion() >= 15 {
		if cmd, err := a.pg.ConfiguredValue(ctx, "restore_command"); err == nil && cmd != "" {
			args = append(args, "--restore-target-wal")
			if a.pg.ConfigDir != a.pg.DataDir {
				args = append(args, "--config-file="+a.pg.ConfigFile())
			}
		}
	}
	return src.tool.Run(ctx, a.pg, "pg_rewind", args...)
}

// cutWAL is for an instance whose data are on the cluster's line, and whose WAL is not: it received what it has not
// replayed. pg_rewind sees no need; the server would replay it.
func (a *Agent) cutWAL(r *journal.Rewind) error {
	return a.do("cut-wal", func() error {
		entries, err := os.ReadDir(r.Keep)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if len(e.Name()) != segmentName {
				continue
			}
			if err := os.Remove(filepath.Join(a.walDir(), e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return durable.SyncDirs(a.walDir())
	})
}

// finishRewind puts the user's files back, takes the marker away and starts the instance.
func (a *Agent) finishRewind(ctx context.Context, r *journal.Rewind) error {
	if err := a.do("own-files", func() error { return errors.Join(a.restoreOwn(r), a.dropForeign()) }); err != nil {
		return err
	}
	if err := a.do("standby-signal", a.pg.SetStandbySignal); err != nil {
		return err
	}
	release, err := a.hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	a.state.Rewound = newestClaim(a.state.Claims)
	if err := a.save("save-rewound"); err != nil {
		return err
	}
	if err := a.do("unmark-rewind", a.store.DropRewind); err != nil {
		return err
	}
	a.dropAside(r)
	if a.vol.Out == nil {
		return nil // stopped meanwhile
	}
	a.resting, a.restless = nil, nil
	limited, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	a.say("rewound, starting")
	if err := a.startAsStandby(limited); err != nil {
		return err
	}
	a.noteKept(r)
	a.record(journal.Rewound, r.Reason, true)
	a.log.Info("rewound and started", "was", r.Reason, "kept", a.details["kept"], "ms", a.clock.Now().Sub(r.Began).Milliseconds())
	return nil
}
