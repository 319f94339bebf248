package pacemaker_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// cibWith returns the file of a copy of testdata/cib/normal.xml with more
// constraints.
func cibWith(t *testing.T, constraints string) string {
	t.Helper()
	b, err := os.ReadFile("testdata/cib/normal.xml")
	if err != nil {
		t.Fatal(err)
	}
	s := strings.Replace(string(b), "</constraints>", constraints+"</constraints>", 1)
	file := filepath.Join(t.TempDir(), "cib.xml")
	if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func constraints(t *testing.T, file string) string {
	t.Helper()
	cs, err := pacemaker.RoleConstraints(t.Context(), offline(t, file), "pgsqld")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, c := range cs {
		s := fmt.Sprintf("%s %s %s", c.Node, c.Score, c.Role)
		for name, on := range map[string]bool{" favours": c.Favours(c.Node), " bans": c.Bans(c.Node)} {
			if on {
				s += name
			}
		}
		if c.CLI {
			s += " cli"
		}
		if c.Unsure {
			s += " unsure"
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

// Ensure what the installed crm_resource writes is understood.
func TestRoleConstraints_MoveAndBan(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"--move --promoted --resource pgsql-ha --node n2", "n2 INFINITY Promoted favours cli"},
		{"--ban --promoted --resource pgsql-ha --node n1", "n1 -INFINITY Promoted bans cli"},
		{"--ban --resource pgsql-ha --node n1", "n1 -INFINITY Started bans cli"},
		{"--ban --promoted --resource pgsql-ha --node n1 --lifetime PT1H", "n1 -INFINITY Promoted bans cli"},
		{"--move --promoted --resource pgsql-ha --node n3 --lifetime PT5M", "n3 INFINITY Promoted favours cli"},
		{"--move --resource vip --node n3", ""},
	} {
		file := cibWith(t, "")
		r := offline(t, file)
		if _, err := r.Run(t.Context(), append([]string{"crm_resource"}, strings.Fields(tt.args)...)...); err != nil {
			t.Fatal(err)
		}
		if got := constraints(t, file); got != tt.want {
			t.Errorf("crm_resource %s: got %q, want %q", tt.args, got, tt.want)
		}
	}
}

// Ensure the forms that people and older versions write are understood.
func TestRoleConstraints_Forms(t *testing.T) {
	for _, tt := range []struct{ name, xml, want string }{
		{"none", "", ""},
		{"plain", `<rsc_location id="a" rsc="pgsql-ha" role="Promoted" node="n1" score="50"/>`, "n1 50 Promoted favours"},
		{"old role", `<rsc_location id="a" rsc="pgsql-ha" role="Master" node="n1" score="-INFINITY"/>`, "n1 -INFINITY Promoted bans"},
		{"the primitive", `<rsc_location id="a" rsc="pgsqld" node="n1" score="-5"/>`, "n1 -5 "},
		{"unpromoted", `<rsc_location id="a" rsc="pgsql-ha" role="Unpromoted" node="n1" score="50"/>`, ""},
		{"another resource", `<rsc_location id="a" rsc="vip" node="n1" score="50"/>`, ""},
		{"pattern", `<rsc_location id="a" rsc-pattern="^pgsql-" role="Promoted" node="n1" score="50"/>`, "n1 50 Promoted favours"},
		{"pattern that does not match", `<rsc_location id="a" rsc-pattern="^vip" role="Promoted" node="n1" score="50"/>`, ""},
		{"set", `<rsc_location id="a" node="n2" score="INFINITY"><resource_set id="s" role="Promoted"><resource_ref id="pgsql-ha"/></resource_set></rsc_location>`, "n2 INFINITY Promoted favours"},
		{"rule on the name", `<rsc_location id="a" rsc="pgsql-ha"><rule id="r" role="Master" score="100" boolean-op="or"><expression id="e1" attribute="#uname" operation="eq" value="n1"/><expression id="e2" attribute="#uname" operation="eq" value="n3"/></rule></rsc_location>`, "n1 100 Promoted favours; n3 100 Promoted favours"},
		{"rule: not this one", `<rsc_location id="a" rsc="pgsql-ha"><rule id="r" role="Promoted" score="-INFINITY"><expression id="e1" attribute="#uname" operation="ne" value="n1"/></rule></rsc_location>`, "n2 -INFINITY Promoted bans; n3 -INFINITY Promoted bans"},
		{"rule that has expired", `<rsc_location id="a" rsc="pgsql-ha" role="Promoted"><rule id="r" score="INFINITY" boolean-op="and"><expression id="e" attribute="#uname" operation="eq" value="n2" type="string"/><date_expression id="d" operation="lt" end="2020-01-01 00:00:00Z"/></rule></rsc_location>`, ""},
		{"rule in force", `<rsc_location id="a" rsc="pgsql-ha" role="Promoted"><rule id="r" score="INFINITY" boolean-op="and"><expression id="e" attribute="#uname" operation="eq" value="n2" type="string"/><date_expression id="d" operation="lt" end="2999-01-01 00:00:00 +02:00"/></rule></rsc_location>`, "n2 INFINITY Promoted favours"},
		{"rule on a transient attribute", `<rsc_location id="a" rsc="pgsql-ha" role="Promoted"><rule id="r" score="INFINITY" boolean-op="and"><expression id="e" attribute="#uname" operation="eq" value="n2"/><expression id="e2" attribute="pingd" operation="gt" value="0"/></rule></rsc_location>`, "n2 INFINITY Promoted unsure"},
		{"nested rule", `<rsc_location id="a" rsc="pgsql-ha" role="Promoted"><rule id="r" score="7" boolean-op="and"><expression id="e" attribute="#uname" operation="ne" value="n3"/><rule id="r2" boolean-op="or" score="0"><expression id="e2" attribute="#uname" operation="eq" value="n2"/><expression id="e3" attribute="#uname" operation="eq" value="n3"/></rule></rule></rsc_location>`, "n2 7 Promoted favours"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := constraints(t, cibWith(t, tt.xml)); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// Ensure the score that the local CIB shows is told from none.
func TestScoreInCIB(t *testing.T) {
	r := offline(t, "testdata/cib/blocked.xml")
	for _, tt := range []struct {
		node, resource string
		want           pacemaker.Score
		ok             bool
	}{
		{"n1", "pgsqld", pacemaker.NegInfinity, true},
		{"n2", "pgsqld", 900, true},
		{"n4", "pgsqld", 0, false},
		{"n1", "pgsql", 0, false},
	} {
		got, ok, err := pacemaker.ScoreInCIB(t.Context(), r, "", tt.node, tt.resource)
		if err != nil || got != tt.want || ok != tt.ok {
			t.Errorf("%s on %s: got %v, %v, %v; want %v, %v", tt.resource, tt.node, got, ok, err, tt.want, tt.ok)
		}
	}
	if _, _, err := pacemaker.ScoreInCIB(t.Context(), r, "", "n1' or '1'='1", "pgsqld"); err == nil {
		t.Error("a name with quotes is not refused")
	}
}
