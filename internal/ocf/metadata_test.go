package ocf_test

import (
	"bytes"
	"encoding/xml"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/pgbaton/pgbaton/internal/golden"
	"github.com/pgbaton/pgbaton/internal/ocf"
)

func TestMetaData_Golden(t *testing.T) {
	golden.Compare(t, "testdata/metadata.golden.xml", ocf.MetaData("1.2.3"))
}

// Ensure the DTD of the installed ocf-tester accepts the meta-data, by the command
// that ocf-tester uses.
func TestMetaData_DTD(t *testing.T) {
	cmd := exec.Command("xmllint", "--noout", "--valid", "-")
	cmd.Dir = "/usr/share/resource-agents"
	cmd.Stdin = strings.NewReader(ocf.MetaData("1.2.3"))
	if out, err := cmd.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) != 0 {
		t.Errorf("%v: %s", err, out)
	}
}

// Ensure everything that is described is read, and everything that is read is
// described, with the default that is used.
func TestMetaData_Parameters(t *testing.T) {
	var agent struct {
		Parameters []struct {
			Name    string `xml:"name,attr"`
			Content struct {
				Default *string `xml:"default,attr"`
			} `xml:"content"`
		} `xml:"parameters>parameter"`
		Actions []struct {
			Name     string `xml:"name,attr"`
			Interval string `xml:"interval,attr"`
			Role     string `xml:"role,attr"`
		} `xml:"actions>action"`
	}
	if err := xml.Unmarshal([]byte(ocf.MetaData("1.2.3")), &agent); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range agent.Parameters {
		names = append(names, p.Name)
		// A control character is wrong for every parameter.
		if _, err := ocf.ParseParams(ocf.Env{"OCF_RESKEY_" + p.Name: "\x00"}); err == nil {
			t.Errorf("%s is described but not read", p.Name)
		}
		if p.Content.Default == nil {
			continue
		}
		explicit, err := ocf.ParseParams(ocf.Env{"OCF_RESKEY_" + p.Name: *p.Content.Default})
		implicit, _ := ocf.ParseParams(ocf.Env{})
		if err != nil {
			t.Errorf("%s: its default is wrong: %v", p.Name, err)
		} else if explicit.PGData != implicit.PGData || explicit.SystemUser != implicit.SystemUser || explicit.PGHost != implicit.PGHost ||
			explicit.PGPort != implicit.PGPort || explicit.MaxLag != implicit.MaxLag || explicit.RewindKeep != implicit.RewindKeep || explicit.StartOpts != implicit.StartOpts {
			t.Errorf("%s: described default %q gives %+v, no value gives %+v", p.Name, *p.Content.Default, explicit, implicit)
		}
	}
	want := []string{"system_user", "bindir", "pgdata", "datadir", "pghost", "pgport", "start_opts", "maxlag", "crash_recovery_limit", "rewind_conninfo", "rewind_keep", "logfile"}
	if !slices.Equal(names, want) {
		t.Errorf("parameters %q, want %q", names, want)
	}

	intervals := map[string]string{}
	for _, a := range agent.Actions {
		if _, err := ocf.ParseInvocation([]string{a.Name}, nil); err != nil {
			t.Errorf("action %s is advertised: %v", a.Name, err)
		}
		if a.Interval == "" {
			continue
		}
		if other, dup := intervals[a.Interval]; dup {
			t.Errorf("monitors of %s and %s have the same interval %s", other, a.Role, a.Interval)
		}
		intervals[a.Interval] = a.Role
	}
	if len(intervals) != 2 {
		t.Errorf("monitors %v, want one for each role", intervals)
	}
}
