package console

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Ensure each misconfiguration of the cluster is found, and nothing else, with a reason and a command for either tool; and
// that a good cluster has none. e2e plants these, and those of PostgreSQL, on a real one, and runs the commands.
func TestCheck_Cluster(t *testing.T) {
	const (
		monitor1 = `<op id="pgsqld-monitor-promoted" timeout="10s" name="monitor" interval="4s" role="Promoted"/>`
		monitor2 = `<op id="pgsqld-monitor-unpromoted" timeout="10s" name="monitor" interval="5s" role="Unpromoted"/>`
		order2   = `<rsc_order id="demote-then-vip" first="pgsql-ha" first-action="demote" then="pgsql-vip" then-action="stop" kind="Mandatory" symmetrical="false"/>`
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
		{"vip-order-promote", promote, ""},
		{"vip-order-demote", order2, ""},
		{"vip-order-symmetrical", order2, strings.Replace(order2, ` symmetrical="false"`, "", 1)},
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
	golden(t, "check.commands", all.String())
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

// Ensure no password is shown.
func TestRedact(t *testing.T) {
	for _, info := range []string{"host=a password=geheim user=b", "password='ge heim' host=a", `sslpassword = geheim`, `password='ge\'heim'`} {
		if got := redact(info); strings.Contains(got, "heim") {
			t.Errorf("redact(%q) = %q", info, got)
		}
	}
}
