package console

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// Ensure each misconfiguration of the cluster is found, and nothing else, with a reason and a command for either tool; and
// that a good cluster has none. e2e plants these, and those of PostgreSQL, on a real one, and runs the commands.
func TestCheck_Cluster(t *testing.T) {
	const (
		monitor1 = `<op id="pgsqld-monitor-promoted" timeout="10s" name="monitor" interval="4s" role="Promoted"/>`
		monitor2 = `<op id="pgsqld-monitor-unpromoted" timeout="10s" name="monitor" interval="5s" role="Unpromoted"/>`
		order2   = `<rsc_order id="demote-then-vip" first="pgsql-ha" first-action="demote" then="pgsql-vip" then-action="stop" kind="Optional" symmetrical="false"/>`
		promote  = `<rsc_order id="promote-then-vip" first="pgsql-ha" first-action="promote" then="pgsql-vip" then-action="start" kind="Mandatory" symmetrical="false"/>`
		near     = `<rsc_colocation id="vip-with-primary" rsc="pgsql-vip" with-rsc="pgsql-ha" with-rsc-role="Promoted" score="INFINITY"/>`
		notify   = `<nvpair id="meta-notify" name="notify" value="true"/>`
		property = `</cluster_property_set>`
	)
	set := func(name, value string) string {
		return `<nvpair id="planted" name="` + name + `" value="` + value + `"/>`
	}
	var all bytes.Buffer
	for _, tc := range []struct{ id, old, now string }{
		{"", "", ""},
		{"fencing-off", `stonith-enabled="true"`, `stonith-enabled="false"`},
		{"fencing-no-device", `class="stonith"`, `class="ocf"`},
		{"startup-fencing-off", property, set("startup-fencing", "false") + property},
		{"quorum-ignored", property, set("no-quorum-policy", "ignore") + property},
		{"quorum-freeze", property, set("no-quorum-policy", "freeze") + property},
		{"maintenance", `maintenance-mode="false"`, `maintenance-mode="true"`},
		{"stop-all", `stop-all-resources="false"`, `stop-all-resources="true"`},
		{"migration-threshold", `name="migration-threshold" value="5"`, `name="migration-threshold" value="1"`},
		{"notify-missing", notify, ""},
		{"promoted-max", notify, notify + set("promoted-max", "2")},
		{"clone-max", notify, notify + set("clone-max", "2")},
		{"clone-node-max", notify, notify + set("clone-node-max", "2")},
		{"globally-unique", notify, notify + set("globally-unique", "true")},
		{"interleave-missing", `name="interleave" value="true"`, `name="interleave" value="false"`},
		{"target-role", notify, notify + set("target-role", "Unpromoted")},
		{"unmanaged", notify, notify + set("is-managed", "false")},
		{"monitor-promoted-missing", monitor1, ""},
		{"monitor-unpromoted-missing", monitor2, ""},
		{"monitor-intervals-equal", monitor2, strings.Replace(monitor2, "5s", "4s", 1)},
		{"timeout-demote", `<op id="pgsqld-demote" timeout="120s"`, `<op id="pgsqld-demote" timeout="20s"`},
		{"timeout-notify", `<op id="pgsqld-notify" timeout="20s"`, `<op id="pgsqld-notify" timeout="5"`},
		{"timeout-start", `<op id="pgsqld-start" timeout="60s"`, `<op id="pgsqld-start" timeout="3000ms"`},
		{"timeout-stop", `<op id="pgsqld-stop" timeout="60s" name="stop" interval="0s"/>`, ``},
		{"promote-on-fail", ` on-fail="demote"`, ``},
		{"on-fail-stop", `<op id="pgsqld-stop" timeout="60s"`, `<op id="pgsqld-stop" timeout="60s" on-fail="ignore"`},
		{"on-fail-monitor", `<op id="pgsqld-monitor-promoted" timeout="10s"`, `<op id="pgsqld-monitor-promoted" timeout="10s" on-fail="ignore"`},
		{"vip-colocation-missing", near, ""},
		{"vip-colocation", ` with-rsc-role="Promoted"`, ``},
		{"", near, strings.Replace(near, `with-rsc-role="Promoted" score="INFINITY"`, `with-rsc-role="Unpromoted" score="100"`, 1)}, // for readers
		{"", near, strings.Replace(near, `"INFINITY"`, `"-INFINITY"`, 1)},
		{"vip-order-promote", promote, ""},
		{"vip-order-demote", order2, ""},
		{"vip-order-symmetrical", order2, strings.Replace(order2, ` symmetrical="false"`, "", 1)},
		{"vip-order-kind", order2, strings.Replace(order2, "Optional", "Mandatory", 1)},
		{"vip-order-kind", promote, strings.Replace(promote, "Mandatory", "Optional", 1)},
		{"move-left", `</constraints>`, `<rsc_location id="cli-ban-pgsql-ha-on-n1" rsc="pgsql-ha" role="Promoted" node="n1" score="-INFINITY"/></constraints>`},
		{"permanent-score", `<node id="3" uname="n3"/>`, `<node id="3" uname="n3"><instance_attributes id="nodes-3">` + set("master-pgsqld", "1001") + `</instance_attributes></node>`},
	} {
		for _, tool := range []string{"pcs", "crm"} {
			w, r := replay(t, "healthy")
			if tc.old != "" {
				r.replace = map[string]string{tc.old: tc.now}
			}
			snap, err := w.Take(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			s := &Site{Snapshot: snap, Tool: tool}
			s.checkCluster()
			var ids []string
			for _, f := range s.findings {
				ids = append(ids, f.ID)
				if f.Why == "" || f.Do == "" || f.Text == "" {
					t.Errorf("%s: %+v lacks something", tc.id, f)
				}
			}
			var want []string
			if tc.id != "" {
				want = []string{tc.id}
			}
			if !slices.Equal(ids, want) {
				t.Errorf("planted %q: found %q", tc.id, ids)
			}
			for _, f := range s.findings {
				all.WriteString(f.ID + ": " + f.Text + "\n    " + f.Do + "\n")
			}
		}
	}
	goldenPage(t, "check.commands", all.String())
}

// Ensure two faults of one operation have commands that mend both, whichever is run last, and that a time-out which the cluster's
// defaults give counts, but is not written as one of 0 s.
func TestCheck_Operations(t *testing.T) {
	const (
		stop     = `<op id="pgsqld-stop" timeout="60s" name="stop" interval="0s"/>`
		promote  = `<op id="pgsqld-promote" timeout="30s" name="promote" interval="0s" on-fail="demote"/>`
		monitor2 = `<op id="pgsqld-monitor-unpromoted" timeout="10s" name="monitor" interval="5s" role="Unpromoted"/>`
		end      = `</configuration>`
	)
	defaults := func(timeout string) string {
		return `<op_defaults><meta_attributes id="d"><nvpair id="d-t" name="timeout" value="` + timeout + `"/></meta_attributes></op_defaults>` + end
	}
	for _, tc := range []struct {
		name    string
		replace map[string]string
		ids     []string
		pcs     string
		crm     string
	}{
		{
			"stop",
			map[string]string{stop: `<op id="pgsqld-stop" timeout="20s" name="stop" interval="0s" on-fail="ignore"/>`},
			[]string{"timeout-stop", "on-fail-stop"},
			"pcs resource update pgsqld op stop interval=0s timeout=30s on-fail=fence",
			`cibadmin --modify --xml-text '<op id="pgsqld-stop" interval="0s" timeout="30s" on-fail="fence"/>'`,
		},
		{
			"monitor",
			map[string]string{monitor2: `<op id="m" timeout="5s" name="monitor" interval="4s" role="Unpromoted" on-fail="ignore"/>`},
			[]string{"monitor-intervals-equal", "timeout-monitor", "on-fail-monitor"},
			"pcs resource update pgsqld op monitor interval=5s timeout=10s role=Unpromoted on-fail=restart",
			`cibadmin --modify --xml-text '<op id="m" interval="5s" timeout="10s" on-fail="restart"/>'`,
		},
		{
			"no time-out",
			map[string]string{stop: `<op id="pgsqld-stop" name="stop" interval="0s"/>`},
			[]string{"timeout-stop"},
			"pcs resource update pgsqld op stop interval=0s timeout=30s", `cibadmin --modify --xml-text '<op id="pgsqld-stop" interval="0s" timeout="30s"/>'`,
		},
		{"a default", map[string]string{stop: `<op id="pgsqld-stop" name="stop" interval="0s"/>`, end: defaults("90s")}, nil, "", ""},
		{"a default, and no operation", map[string]string{stop: ``, end: defaults("90s")}, nil, "", ""},
		{
			"a default, and another fault",
			map[string]string{stop: `<op id="pgsqld-stop" name="stop" interval="0s" on-fail="block"/>`, end: defaults("90s")},
			[]string{"on-fail-stop"},
			"pcs resource update pgsqld op stop interval=0s on-fail=fence", `cibadmin --modify --xml-text '<op id="pgsqld-stop" interval="0s" on-fail="fence"/>'`,
		},
		{
			"a default, and nobody to promote",
			map[string]string{promote: ``, end: defaults("90s")},
			[]string{"promote-on-fail"},
			"pcs resource op add pgsqld promote interval=0s timeout=60s on-fail=demote --force",
			`cibadmin --create --xpath "//primitive[@id='pgsqld']/operations" --xml-text '<op id="pgsqld-promote-on-fail" name="promote" interval="0s" timeout="60s" on-fail="demote"/>'`,
		},
	} {
		for tool, want := range map[string]string{"pcs": tc.pcs, "crm": tc.crm} {
			w, r := replay(t, "healthy")
			r.replace = tc.replace
			snap, err := w.Take(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			s := &Site{Snapshot: snap, Tool: tool}
			s.checkCluster()
			if !slices.Equal(s.ids(), tc.ids) {
				t.Errorf("%s: found %q, want %q", tc.name, s.ids(), tc.ids)
			}
			for _, f := range s.findings {
				if f.Do != want {
					t.Errorf("%s, %s:\ngot  %s\nwant %s", tc.name, f.ID, f.Do, want)
				}
			}
		}
	}
}

// Ensure the commands have the words of the cluster's version: before 2.1 nothing is called Promoted.
func TestCheck_OldWords(t *testing.T) {
	for _, tool := range []string{"pcs", "crm"} {
		w, r := replay(t, "healthy")
		r.replace = map[string]string{
			`version="2.1.5-a3f44794f94"`: `version="2.0.5-ba59be7122"`, ` with-rsc-role="Promoted"`: ``,
			`<op id="pgsqld-monitor-promoted" timeout="10s" name="monitor" interval="4s" role="Promoted"/>`:     ``,
			`<op id="pgsqld-monitor-unpromoted" timeout="10s" name="monitor" interval="5s" role="Unpromoted"/>`: ``,
		}
		snap, err := w.Take(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		s := &Site{Snapshot: snap, Tool: tool}
		s.checkCluster()
		if want := []string{"monitor-promoted-missing", "monitor-unpromoted-missing", "vip-colocation"}; !slices.Equal(s.ids(), want) {
			t.Fatalf("found %q, want %q", s.ids(), want)
		}
		for _, f := range s.findings {
			if strings.Contains(f.Do, "romoted ") || strings.Contains(f.Do, `romoted"`) || strings.HasSuffix(f.Do, "romoted") || !strings.Contains(f.Do, "Master") && !strings.Contains(f.Do, "Slave") {
				t.Errorf("%s: %s", f.ID, f.Do)
			}
		}
	}
}

// Ensure a constraint is cleared by the name of the resource that it is about, and that nobody is told to end the maintenance of a
// setup that was cut short.
func TestCheck_NamesTheWay(t *testing.T) {
	for _, tc := range []struct{ old, now, id, do, check string }{
		{`</constraints>`, `<rsc_location id="cli-ban-pgsqld-on-n1" rsc="pgsqld" node="n1" score="-INFINITY"/></constraints>`, "move-left", "crm_resource --clear -r pgsqld", "constraints"},
		{`</constraints>`, `<rsc_location id="cli-ban-pgsql-vip-on-n2" rsc="pgsql-vip" node="n2" score="-INFINITY"/></constraints>`, "move-left", "crm_resource --clear -r pgsql-vip", "constraints"},
		{`</constraints>`, `<rsc_location id="cli-ban-pgsql-ha-on-n1" rsc="pgsql-ha" node="n1" score="-INFINITY"/></constraints>`, "move-left", "crm_resource --clear -r pgsql-ha", "constraints"},
		{
			`<nvpair id="meta-notify" name="notify" value="true"/>`, `<nvpair id="meta-notify" name="notify" value="true"/><nvpair id="s" name="pgbaton-setup" value="from-paf,n1,n2,n3,run:ab12cd34"/>`,
			"setup-unfinished", "wait for its end, or run it again: pgbaton setup --from-paf --apply", "maintenance",
		},
	} {
		w, r := replay(t, "healthy")
		r.replace = map[string]string{tc.old: tc.now, `maintenance-mode="false"`: `maintenance-mode="false"`}
		if tc.id == "setup-unfinished" {
			r.replace[`maintenance-mode="false"`] = `maintenance-mode="true"`
		}
		snap, err := w.Take(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		s := &Site{Snapshot: snap, Tool: "pcs"}
		s.checkCluster()
		if len(s.findings) != 1 || s.findings[0].ID != tc.id || s.findings[0].Do != tc.do {
			t.Errorf("%s: found %+v", tc.id, s.findings)
		}
		if !slices.ContainsFunc(snap.problems(), func(p Problem) bool { return p.Do == tc.do }) {
			t.Errorf("%s: status says %+v", tc.id, snap.problems())
		}
		var do []string
		for _, c := range snap.ClusterChecks() {
			if c.Result == Failed && c.Name == tc.check {
				do = append(do, c.Do)
			}
		}
		if !slices.Equal(do, []string{tc.do}) {
			t.Errorf("%s: the pre-flight says %q", tc.id, do)
		}
	}
}

// Ensure a node whose PostgreSQL could not be looked at does not pass for one without findings, unless none is meant to be there.
func TestCheck_Unseen(t *testing.T) {
	for name, tc := range map[string]struct {
		ban  string
		want bool
	}{
		"no control file":              {"", true},
		"a node without the role only": {`<ban id="b" resource="pgsql-ha" node="n1" promoted-only="true"/>`, true},
		"a node without PostgreSQL":    {`<ban id="b" resource="pgsql-ha" node="n1" promoted-only="false"/>`, false},
	} {
		w, r := replay(t, "healthy")
		r.replace = map[string]string{"/var/lib/pgha/data": t.TempDir(), "<node_history>": "<bans>" + tc.ban + "</bans><node_history>"}
		review, err := w.Check(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		if review.Incomplete != tc.want || !strings.HasPrefix(review.Skipped[0], "PostgreSQL on n1: ") {
			t.Errorf("%s: incomplete is %v, skipped %q", name, review.Incomplete, review.Skipped)
		}
		review.Findings = nil // of the machine that this runs on
		var b strings.Builder
		review.Text(&b, Style{})
		if first, _, _ := strings.Cut(b.String(), "\n"); strings.Contains(first, "could not") != tc.want {
			t.Errorf("%s: the first line is %q", name, first)
		}
	}
}

// Ensure the system is looked at also where the control file cannot be read.
func TestCheck_SystemWithoutControlFile(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	wants := filepath.Join(root, "etc/systemd/system/multi-user.target.wants")
	if err := errors.Join(os.MkdirAll(wants, 0o755), os.WriteFile(filepath.Join(wants, "postgresql.service"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	s := &Site{Snapshot: &Snapshot{Here: "n1"}, Root: root, Params: map[string]string{"system_user": me.Username, "pgdata": filepath.Join(root, "data")}}
	if err := s.checkNode(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want an error of the control file", err)
	}
	if len(s.findings) != 1 || s.findings[0].ID != "systemd-unit" {
		t.Errorf("found %+v, want systemd-unit", s.findings)
	}
}

// conf is a site whose PostgreSQL has this configuration and nothing else, in a directory of its own.
func conf(t *testing.T, text string) *Site {
	t.Helper()
	w, _ := replay(t, "healthy")
	snap, err := w.Take(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"postgresql.conf": text + "\n", "postgresql.auto.conf": "", "postmaster.pid": "0\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := &Site{Snapshot: snap, Inst: &postgres.Instance{ConfigDir: dir, DataDir: dir}}
	s.Conf = s.Inst.Settings()
	return s
}

// mend runs the command of a finding, but for the reload, and has the files read again.
func (s *Site) mend(t *testing.T, f Finding) {
	t.Helper()
	do, reload := strings.CutSuffix(f.Do, " && "+s.reload())
	if !reload {
		t.Fatalf("%s: no reload at the end of %s", f.ID, f.Do)
	}
	if out, err := exec.Command("sh", "-c", do).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", do, err, out)
	}
	s.Conf, s.findings = s.Inst.Settings(), nil
}

func (s *Site) ids() (list []string) {
	for _, f := range s.findings {
		list = append(list, f.ID)
	}
	return list
}

// Ensure what is wrong with primary_conninfo is found in either of its forms, that the printed command mends it and leaves the
// rest as it is, and that where there is a password none of it is printed.
func TestCheck_Conninfo(t *testing.T) {
	const vip = "10.77.0.10"
	for _, tc := range []struct {
		info string
		want []string
		then string // after the command of the last one that has one
	}{
		{"host=n2 application_name=n1", nil, ""},
		{"postgresql://u@n2/?application_name=n1", nil, ""},
		{"host=n2 user=u application_name=other", []string{"application-name"}, "host=n2 user=u application_name=n1"},
		{`host=n2 options='-c a=\'b\\c\''`, []string{"application-name"}, `host=n2 options='-c a=\'b\\c\'' application_name=n1`},
		{"postgresql://u@n2:5432/?application_name=other&sslmode=require", []string{"application-name"}, "postgresql://u@n2:5432/?sslmode=require&application_name=n1"},
		{"host=" + vip + " user=u", []string{"application-name", "tcp-user-timeout", "status-interval"}, "host=" + vip + " user=u application_name=n1 tcp_user_timeout=3000"},
		{"postgresql://u@" + vip + ",n2/", []string{"application-name", "tcp-user-timeout", "status-interval"}, "postgresql://u@" + vip + ",n2/?application_name=n1&tcp_user_timeout=3000"},
		{"postgresql://u:geheim@" + vip + "/?application_name=other", []string{"application-name", "conninfo-password", "tcp-user-timeout", "status-interval"}, ""},
		{"postgresql://u@n2/?password=geheim", []string{"application-name", "conninfo-password"}, ""},
		{`host=n2 password=ge\ heim`, []string{"application-name", "conninfo-password"}, ""},
		{"postgresql://u:ge/heim@n2/", []string{"application-name"}, ""},
	} {
		line := "primary_conninfo = '" + strings.NewReplacer("'", "''", `\`, `\\`).Replace(tc.info) + "'"
		s := conf(t, line)
		s.checkConninfo()
		if !slices.Equal(s.ids(), tc.want) {
			t.Errorf("%s: found %q, want %q", tc.info, s.ids(), tc.want)
		}
		var last Finding
		for _, f := range s.findings {
			if text := f.Text + f.Why + f.Do; strings.Contains(text, "heim") {
				t.Errorf("%s: shows the password: %s", tc.info, text)
			}
			if strings.HasPrefix(f.Do, "sed ") && f.ID != "status-interval" {
				last = f
			}
		}
		if (tc.then != "") != (last.Do != "") {
			t.Errorf("%s: the command is %q", tc.info, last.Do)
		}
		if tc.then == "" || last.Do == "" {
			continue
		}
		if s.mend(t, last); s.Conf["primary_conninfo"] != tc.then {
			t.Errorf("%s: after %s\ngot  %s\nwant %s", tc.info, last.Do, s.Conf["primary_conninfo"], tc.then)
		}
	}
}

// Ensure a list with which a takeover could be without a commit that was confirmed is found where there are five nodes, that the
// printed command asks for enough and keeps the method, and that lists which ask for enough, or for none, are left alone.
func TestCheck_SyncNamesFew(t *testing.T) {
	for _, tc := range []struct {
		nodes       int
		names, then string
	}{
		{5, "", ""},
		{5, "*", "FIRST 2 (*)"},
		{5, "n2, n3", `FIRST 2 ("n2", "n3")`},
		{5, "n2", `FIRST 2 ("n2", "n3", "n4", "n5")`},
		{5, "ANY 1 (n1, n2, n3, n4, n5)", `ANY 2 ("n2", "n3", "n4", "n5")`},
		{5, "ANY 2 (n1, n2, n3, n4, n5)", ""},
		{5, "3 (n2, n3, n4)", ""},
		{6, "1 (n2, n3)", `2 ("n2", "n3")`},
		{7, "FIRST 2 (n2, *)", `FIRST 3 ("n2", *)`},
		{4, "n2", ""},
		{2, "n2", ""},
	} {
		s := conf(t, "wal_log_hints = on\nsynchronous_standby_names = '"+tc.names+"'")
		s.State.Nodes = nil
		for i := range tc.nodes {
			s.State.Nodes = append(s.State.Nodes, pacemaker.NodeState{Name: fmt.Sprintf("n%d", i+1)})
		}
		s.checkDurability()
		if tc.then == "" {
			if len(s.findings) > 0 {
				t.Errorf("%d nodes, %s: found %+v", tc.nodes, tc.names, s.findings)
			}
			continue
		}
		if !slices.Equal(s.ids(), []string{"sync-names-few"}) {
			t.Errorf("%d nodes, %s: found %+v", tc.nodes, tc.names, s.findings)
			continue
		}
		s.mend(t, s.findings[0])
		if s.checkDurability(); s.Conf["synchronous_standby_names"] != tc.then || len(s.findings) > 0 {
			t.Errorf("%d nodes, %s: afterwards it is %s, want %s, and found is %q", tc.nodes, tc.names, s.Conf["synchronous_standby_names"], tc.then, s.ids())
		}
	}
}

// Ensure a node that would wait for itself is found, and no other list; and that the printed command keeps method, number and
// order, so that no commit waits for fewer than before.
func TestCheck_SyncNames(t *testing.T) {
	const words = "words"
	for _, tc := range []struct{ names, then string }{
		{"", ""},
		{"*", ""},
		{"n2", ""},
		{"n1, n2", ""},
		{"n1, *", ""},
		{"ANY 1 (n1, n2, n3)", ""},
		{"ANY 2 (n1, n2, n3)", ""},
		{`FIRST 1 ("n1", "far away")`, ""},
		{`2 (n1, "*")`, ""},
		{"ANY 5 (n2, n3)", ""},
		{"n1", `"n2", "n3"`},
		{"FIRST 1 (N1)", `FIRST 1 ("n2", "n3")`},
		{"any 2(n3,n1)", `any 2 ("n3", "n2")`},
		{`2 ("n1", "far ""away""")`, `2 ("far ""away""", "n2", "n3")`},
		{"ANY 3 (n1, n2, n3)", words},
		{"FIRST 3 (n1, n3)", words},
	} {
		s := conf(t, "wal_log_hints = on\nsynchronous_standby_names = '"+tc.names+"'")
		s.checkDurability()
		if found := slices.Equal(s.ids(), []string{"sync-names-itself"}); found != (tc.then != "") || !found && len(s.findings) > 0 {
			t.Errorf("%s: found %+v", tc.names, s.findings)
			continue
		}
		switch {
		case tc.then == "":
		case tc.then == words:
			if do := s.findings[0].Do; !strings.HasPrefix(do, "name 3 or more") {
				t.Errorf("%s: the remedy is %s", tc.names, do)
			}
		default:
			s.mend(t, s.findings[0])
			if s.checkDurability(); s.Conf["synchronous_standby_names"] != tc.then || len(s.findings) > 0 {
				t.Errorf("%s: afterwards it is %s, want %s, and found is %q", tc.names, s.Conf["synchronous_standby_names"], tc.then, s.ids())
			}
		}
	}
}
