package console

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// checkVersion is that of the JSON form, which docs/command.md describes.
const checkVersion = 1

// Finding is a misconfiguration: what is, why that is bad, and the command that mends it.
type Finding struct {
	ID       string   `json:"id"` // does not change from release to release
	Severity Severity `json:"severity"`
	Node     string   `json:"node,omitempty"` // of whose configuration; "" for the cluster's
	Text     string   `json:"text"`
	Why      string   `json:"why"`
	Do       string   `json:"do"`
}

// Review is what a check of the configuration found.
type Review struct {
	Version  int       `json:"version"`
	Node     string    `json:"node"` // whose PostgreSQL was looked at
	Resource string    `json:"resource"`
	Findings []Finding `json:"findings"`
	Skipped  []string  `json:"skipped"` // what could not be looked at, and why
	// Incomplete says that PostgreSQL on this node is among that, although it may run there.
	Incomplete bool `json:"incomplete"`
}

// Site is what a check looks at: the cluster's configuration, and the files and the server of this node.
type Site struct {
	*Snapshot
	Tool   string // "pcs" or "crm": what commands are printed for
	Root   string // of this node's file system, "" but in a test
	Params map[string]string
	Inst   *postgres.Instance
	Conf   map[string]string // what the files set
	Auto   map[string]string // what postgresql.auto.conf sets, which wins
	Ctl    pgdisk.Control
	Events []journal.Event
	view   *postgres.Overview

	findings []Finding
}

// Check looks at the configuration. It changes nothing.
func (w World) Check(ctx context.Context, resource string) (Review, error) {
	snap, err := w.Take(ctx, resource)
	if err != nil {
		return Review{}, err
	}
	s := &Site{Snapshot: snap, Tool: tool(), Params: snap.Config.Parameters(snap.Resource), Events: w.Journal(snap.Resource)}
	r := Review{Version: checkVersion, Node: snap.Here, Resource: snap.Resource, Findings: []Finding{}, Skipped: []string{}}
	if v, ok := snap.Views[snap.Here]; ok && snap.Fresh {
		s.view = &v.Overview
	}
	s.checkCluster()
	if err := s.checkNode(); err != nil {
		r.Skipped = append(r.Skipped, "PostgreSQL on "+snap.Here+": "+err.Error())
		r.Incomplete = !snap.banned(snap.Here) // a node that only votes need not have any
	}
	for _, n := range snap.State.Nodes {
		if n.Name != snap.Here {
			r.Skipped = append(r.Skipped, "PostgreSQL on "+n.Name+": run pgbaton check there")
		}
	}
	r.Findings = append(r.Findings, s.findings...)
	slices.SortStableFunc(r.Findings, func(a, b Finding) int { return strings.Compare(string(a.Severity), string(b.Severity)) })
	return r, nil
}

// checkNode looks at PostgreSQL and the system of this node. The error says why PostgreSQL could not be looked at.
func (s *Site) checkNode() (err error) {
	if s.Inst, err = instance(s.Params); err != nil {
		return err
	}
	if s.Ctl, err = pgdisk.ReadControl(s.Inst.DataDir); err == nil {
		s.Conf = s.Inst.Settings()
		s.checkServer()
	}
	s.checkSystem()
	return err
}

// tool is the one with which people configure this cluster, as far as can be told: the one that is installed, pcs if both
// are.
func tool() string {
	for _, name := range []string{"pcs", "crm"} {
		if _, err := exec.LookPath(name); err == nil {
			return name
		}
		if _, err := os.Stat("/usr/sbin/" + name); err == nil {
			return name
		}
	}
	return "pcs"
}

// find adds a finding about the cluster, with the command for either tool.
func (s *Site) find(id string, sev Severity, pcs, crm, why, format string, args ...any) {
	do := pcs
	if s.Tool == "crm" {
		do = crm
	}
	s.findings = append(s.findings, Finding{ID: id, Severity: sev, Text: fmt.Sprintf(format, args...), Why: why, Do: do})
}

// here adds one about this node.
func (s *Site) here(id string, sev Severity, do, why, format string, args ...any) {
	s.findings = append(s.findings, Finding{ID: id, Severity: sev, Node: s.Here, Text: fmt.Sprintf(format, args...), Why: why, Do: do})
}

// setting is the command that makes a parameter of the server's be this, in the file that wins, for the next start; and at
// once where a reload is enough. The value is our own, or a quoted one of the user's.
func (s *Site) setting(name, value string, restart bool) string {
	file := ocf.JoinArgs(s.Inst.ConfigFile())
	auto := ocf.JoinArgs(filepath.Join(s.Inst.DataDir, "postgresql.auto.conf"))
	line := fmt.Sprintf("%s = '%s'", name, strings.NewReplacer("'", "''", `\`, `\\`).Replace(value))
	write := "echo "
	if strings.Contains(line, `\`) {
		write = `printf '%s\n' ` // a shell's own echo may take it for an escape
	}
	do := fmt.Sprintf("sed -i '/^[[:space:]]*%s[[:space:]=]/Id' %s %s && %s%s >> %s", name, file, auto, write, ocf.JoinArgs(line), file)
	if restart {
		return do + " && " + s.restart()
	}
	return do + " && " + s.reload()
}

// reload makes the running server read its configuration.
func (s *Site) reload() string {
	return fmt.Sprintf("kill -HUP $(head -1 %s)", ocf.JoinArgs(filepath.Join(s.Inst.DataDir, "postmaster.pid")))
}

// restart is Pacemaker's: a server that is restarted behind its back looks crashed.
func (s *Site) restart() string {
	if s.Primary() == s.Here {
		return "pgbaton switchover --yes && crm_resource --restart -r " + s.Resource + " --node " + s.Here
	}
	return "crm_resource --restart -r " + s.Resource + " --node " + s.Here
}

// conf is a setting of the files, def if none sets it.
func (s *Site) conf(name, def string) string {
	if v, ok := s.Conf[name]; ok {
		return v
	}
	return def
}

// took is the longest that an action took in the last changes of roles of this node.
func (s *Site) took(action string) time.Duration {
	longest := 0.0
	for _, e := range s.Events {
		if e.Action == action && e.Outcome == "done" {
			longest = max(longest, e.Duration)
		}
	}
	return time.Duration(longest * float64(time.Millisecond))
}

// Count tells how many findings are critical, and how many are not.
func (r Review) Count() (critical, warnings int) {
	for _, f := range r.Findings {
		if f.Severity == Critical {
			critical++
		} else {
			warnings++
		}
	}
	return critical, warnings
}

// Text writes the findings for a person. Commands are written as they stand, also where they are longer than a line.
func (r Review) Text(w io.Writer, y Style) {
	critical, warnings := r.Count()
	switch {
	case critical+warnings == 0 && r.Incomplete:
		fmt.Fprintf(w, "%s: %s, PostgreSQL on %s could not be\n", y.paint(bold, r.Resource), y.paint(yellow, "nothing found in what was looked at"), r.Node)
	case critical+warnings == 0:
		fmt.Fprintf(w, "%s: %s, looked at from %s\n", y.paint(bold, r.Resource), y.paint(green, "nothing found"), r.Node)
	default:
		fmt.Fprintf(w, "%s: %d critical, %d warnings, looked at from %s\n", y.paint(bold, r.Resource), critical, warnings, r.Node)
	}
	for _, f := range r.Findings {
		sign, color := "!", yellow
		if f.Severity == Critical {
			sign, color = "X", red
		}
		fmt.Fprintln(w)
		indented(w, y.paint(color, sign)+" ", 2, f.Text+" ["+f.ID+"]")
		indented(w, "  ", 2, "Why: "+f.Why+".")
		fmt.Fprintf(w, "  -> %s\n", f.Do)
	}
	if len(r.Skipped) > 0 {
		fmt.Fprintln(w)
	}
	for _, line := range r.Skipped {
		indented(w, "not looked at: ", 15, line)
	}
}
