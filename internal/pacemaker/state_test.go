package pacemaker_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pgbaton/pgbaton/internal/golden"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// offline runs Pacemaker's real commands on a CIB file.
func offline(t *testing.T, cib string) pacemaker.ExecRunner {
	t.Helper()
	path, err := filepath.Abs(cib)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	return pacemaker.ExecRunner{Env: []string{"CIB_file=" + path}}
}

// dump writes a state down, without what changes from run to run.
func dump(s pacemaker.ClusterState) string {
	var b strings.Builder
	fmt.Fprintf(&b, "dc=%q quorum=%v maintenance=%v stop-all=%v fencing=%v\n", s.DC, s.Quorum, s.MaintenanceMode, s.StopAllResources, s.FencingEnabled)
	for _, n := range s.Nodes {
		fmt.Fprintf(&b, "node %s usable=%v %+v\n", n.Name, n.Usable(), n)
	}
	for _, in := range s.Of("pgsqld") {
		fmt.Fprintf(&b, "instance %+v\n", in)
	}
	fmt.Fprintf(&b, "promoted %q\n", s.Promoted("pgsqld"))
	for _, f := range s.Failures {
		f.When = ""
		fmt.Fprintf(&b, "failure %+v\n", f)
	}
	for _, f := range s.FailCounts {
		fmt.Fprintf(&b, "fail count %s %s %s\n", f.Node, f.Resource, f.Count)
	}
	for _, ban := range s.Bans {
		fmt.Fprintf(&b, "ban %+v\n", ban)
	}
	for _, n := range s.Nodes {
		if score, ok := s.Score(n.Name, "pgsqld"); ok {
			fmt.Fprintf(&b, "score %s %s\n", n.Name, score)
		}
	}
	return b.String()
}

func xmlFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", dir, "*.xml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("testdata/%s: no files (%v)", dir, err)
	}
	slices.Sort(files)
	return files
}

// Ensure every state is read from what the installed crm_mon prints.
func TestReadState(t *testing.T) {
	var b strings.Builder
	for _, file := range xmlFiles(t, "cib") {
		s, err := pacemaker.ReadState(t.Context(), offline(t, file))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		fmt.Fprintf(&b, "%s\n%s\n", filepath.Base(file), dump(s))
	}
	golden.Compare(t, "testdata/states.golden", b.String())
}

// Ensure a failed action is that of its own resource, whose name may begin as that of another one, hold what looks like an
// action, or carry the number of a clone's instance.
func TestFailuresOf(t *testing.T) {
	for _, tc := range []struct{ key, resource, action string }{
		{"pgsql_monitor_15000", "pgsql", "monitor"},
		{"pgsql:1_start_0", "pgsql", "start"},
		{"pgsql_post_notify_promote_0", "pgsql", "post_notify_promote"},
		{"pgsql-vip_monitor_10000", "pgsql-vip", "monitor"},
		{"pgsql_start_start_0", "pgsql_start", "start"},
		{"pgsql_5_stop_0", "pgsql_5", "stop"},
		{"pgsql-vm_migrate_to_0", "pgsql-vm", "migrate_to"},
	} {
		s, err := pacemaker.ParseState([]byte(`<crm_mon><summary/><failures><failure op_key="` + tc.key + `" node="n1"/></failures></crm_mon>`))
		if err != nil {
			t.Fatal(err)
		}
		if f := s.FailuresOf(tc.resource); len(f) != 1 || f[0].Action != tc.action {
			t.Errorf("%s: got %+v, want %q of %q", tc.key, s.Failures, tc.action, tc.resource)
		}
		if f := s.FailuresOf("pgsql"); (len(f) == 1) != (tc.resource == "pgsql") {
			t.Errorf("%s: of pgsql got %+v", tc.key, f)
		}
	}
}

// Ensure the oldest and the newest form are read.
func TestParseState_OtherVersions(t *testing.T) {
	var b strings.Builder
	for _, file := range xmlFiles(t, "crm_mon") {
		out, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		s, err := pacemaker.ParseState(out)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		fmt.Fprintf(&b, "%s\n%s\n", filepath.Base(file), dump(s))
	}
	golden.Compare(t, "testdata/states-other-versions.golden", b.String())
}

// Ensure no answer is ever taken for an empty cluster.
func TestParseState_Wrong(t *testing.T) {
	for _, tt := range []struct{ out, want string }{
		{"", "not XML"},
		{"crm_mon: Error: cluster is not available on this node", "not XML"},
		{"<pacemaker-result/>", "no <summary>"},
		{"<cib/>", "expected <pacemaker-result>"},
		{`<pacemaker-result><status code="102" message="Not connected"/></pacemaker-result>`, "Not connected"},
		{"<pacemaker-result><summary>", "not XML"},
	} {
		if _, err := pacemaker.ParseState([]byte(tt.out)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: error %v, want one with %q", tt.out, err, tt.want)
		}
	}
}

// Ensure that where there is no CIB there is an error, not an empty cluster:
// crm_mon of 2.1.5 exits with 0 then.
func TestReadState_NoCIB(t *testing.T) {
	r := pacemaker.ExecRunner{Env: []string{"CIB_file=" + filepath.Join(t.TempDir(), "absent.xml")}}
	if s, err := pacemaker.ReadState(t.Context(), r); err == nil {
		t.Fatalf("no error, but %+v", s)
	}
}
