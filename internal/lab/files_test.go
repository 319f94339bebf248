package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func options(t *testing.T, o Options) Options {
	t.Helper()
	if o.Agent == "pgbaton" {
		o.AgentBinary = "/bin/true"
	}
	if err := o.setDefaults(); err != nil {
		t.Fatal(err)
	}
	o.Major = "15"
	return o
}

// Ensure Pacemaker's own checker accepts the CIB of every kind of lab.
func TestCIBIsValid(t *testing.T) {
	for name, o := range map[string]Options{
		"default":    {},
		"two nodes":  {Nodes: 2},
		"five nodes": {Nodes: 5, Agent: "pgbaton"},
		"debian":     {Layout: "debian"},
		"overrides": {
			Names:      []string{"pg.a1", "pg.a10", "PG-b"},
			Params:     map[string]string{"maxlag": "1", "start_opts": `-c "x" <&>`},
			Ops:        map[string]Op{"promote": {OnFail: "demote"}, "monitor-promoted": {Interval: "3s", Timeout: "2s", OnFail: "restart"}},
			Meta:       map[string]string{"notify": "false"},
			Properties: map[string]string{"no-quorum-policy": "freeze"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			// The checker runs the scheduler, which must not mind that nobody is there.
			if o.Properties == nil {
				o.Properties = map[string]string{}
			}
			o.Properties["startup-fencing"] = "false"
			text := strings.Replace(cib(options(t, o)), ` epoch="1"`, ` have-quorum="1" epoch="1"`, 1)
			path := filepath.Join(t.TempDir(), "cib.xml")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("crm_verify", "-VV", "-x", path).CombinedOutput(); err != nil {
				t.Errorf("crm_verify: %v: %s", err, out)
			}
			for k, v := range o.Params {
				if !strings.Contains(text, `name="`+k+`"`) {
					t.Errorf("the parameter %s=%s is missing", k, v)
				}
			}
		})
	}
}

// Ensure operations are overridden field by field.
func TestOperations(t *testing.T) {
	text := operations(options(t, Options{Ops: map[string]Op{"promote": {OnFail: "block"}, "monitor-promoted": {Interval: "3s"}}}))
	for _, want := range []string{
		`id="pgsqld-promote" timeout="30s" name="promote" interval="0s" on-fail="block"`,
		`id="pgsqld-monitor-promoted" timeout="10s" name="monitor" interval="3s" role="Promoted"`,
		`id="pgsqld-stop" timeout="60s" name="stop" interval="0s"/>`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("missing %s in\n%s", want, text)
		}
	}
}

// Ensure each link becomes the rules that cut it, and only it, and that nft takes them.
func TestRuleset(t *testing.T) {
	o := options(t, Options{})
	for _, tt := range []struct {
		link Link
		want []string
	}{
		{Link{From: "n1", To: "n2"}, []string{`iifname "p1" oifname "p2" drop`, `iifname "p2" oifname "p1" drop`}},
		{Link{From: "n1", To: "client", OneWay: true}, []string{`iifname "p1" oifname "client" drop`}},
		{Link{From: "n3", To: "*", OneWay: true}, []string{`iifname "p3" oifname "p1" drop`, `iifname "p3" oifname "p2" drop`}},
		{Link{From: "*", To: "n3", OneWay: true}, []string{`iifname "p1" oifname "p3" drop`, `iifname "p2" oifname "p3" drop`}},
		{Link{From: "n1", To: "n2", Port: 5432, OneWay: true}, []string{`iifname "p1" oifname "p2" tcp dport 5432 drop`, `iifname "p1" oifname "p2" tcp sport 5432 drop`}},
		{Link{From: "n1", To: "n2", Loss: 2.5, OneWay: true}, []string{`iifname "p1" oifname "p2" numgen random mod 10000 < 250 drop`}},
		{Link{From: "n1", To: "n2", Loss: 100, OneWay: true}, []string{`iifname "p1" oifname "p2" drop`}},
	} {
		text := ruleset(o, []Link{tt.link})
		var got []string
		for line := range strings.Lines(text) {
			if strings.Contains(line, "iifname") {
				got = append(got, strings.TrimSpace(line))
			}
		}
		if strings.Join(got, "\n") != strings.Join(tt.want, "\n") {
			t.Errorf("%s:\ngot  %q\nwant %q", tt.link, got, tt.want)
		}
		if os.Geteuid() == 0 {
			cmd := exec.Command("nft", "--check", "-f", "-")
			cmd.Stdin = strings.NewReader(text)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: nft: %v: %s", tt.link, err, out)
			}
		}
	}
	for _, bad := range []Link{{From: "n1", To: "n1"}, {From: "n1", To: "n7"}, {From: "n1", To: "n2", Loss: 101}, {From: "n1", To: "n2", Port: -1}} {
		if bad.validate(o) == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

// Ensure bad options are refused with a word about what is expected.
func TestOptionsRefused(t *testing.T) {
	for want, o := range map[string]Options{
		"2 to 5":                   {Nodes: 6},
		"lab name":                 {Name: "../x"},
		"each name once":           {Names: []string{"a", "a"}},
		"pgsqlms, pgbaton or none": {Agent: "patroni"},
		"datadir or debian":        {Layout: "rhel"},
		"agent binary":             {Agent: "pgbaton", AgentBinary: "/does/not/exist"},
		"operation \"monitor\"":    {Ops: map[string]Op{"monitor": {}}},
	} {
		if err := o.setDefaults(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, expected one about %q", o, err, want)
		}
	}
}

// Ensure the names of the standbys' slots are what PostgreSQL allows.
func TestSlotName(t *testing.T) {
	if got := slotName("pg.A-1"); got != "slot_pg_a_1" {
		t.Error(got)
	}
}

// Ensure corosync.conf has every node, and two_node for two of them only.
func TestCorosyncConf(t *testing.T) {
	two := corosyncConf(options(t, Options{Nodes: 2, Token: 3 * time.Second}))
	if !strings.Contains(two, "two_node: 1") || !strings.Contains(two, "token: 3000") {
		t.Error(two)
	}
	if three := corosyncConf(options(t, Options{})); strings.Contains(three, "two_node") || strings.Count(three, "ring0_addr") != 3 {
		t.Error(three)
	}
}
