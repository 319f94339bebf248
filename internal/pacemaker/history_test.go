package pacemaker_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

const statusText = `<status>
  <node_state id="1" uname="n1" in_ccm="true">
    <transient_attributes id="1"><instance_attributes id="status-1">
      <nvpair id="a" name="master-pgsqld" value="1001"/>
    </instance_attributes></transient_attributes>
    <lrm id="1"><lrm_resources>
      <lrm_resource id="pgsqld" type="postgresql" class="ocf" provider="pgbaton">
        <lrm_rsc_op id="pgsqld_last_0" operation="monitor" interval="0" rc-code="8" op-status="0"/>
        <lrm_rsc_op id="pgsqld_last_failure_0" operation="monitor" interval="0" rc-code="5" op-status="0"/>
        <lrm_rsc_op id="pgsqld_monitor_15000" operation="monitor" interval="15000" rc-code="191" op-status="0" exit-reason="slow"/>
      </lrm_resource>
    </lrm_resources></lrm>
  </node_state>
  <node_state id="2" uname="n2">
    <transient_attributes id="2"><instance_attributes id="status-2"/></transient_attributes>
    <lrm id="2"><lrm_resources>
      <lrm_resource id="pgsqld:0" type="pgsqlms" class="ocf" provider="heartbeat">
        <lrm_rsc_op id="pgsqld:0_last_0" operation="monitor" interval="0" rc-code="193" op-status="-1"/>
      </lrm_resource>
      <lrm_resource id="pgsqld2" type="pgsqlms" class="ocf" provider="heartbeat"/>
    </lrm_resources></lrm>
  </node_state>
</status>`

// answers is a runner that answers with one text, and leaves a file where one is asked for.
type answers struct{ cib, graph string }

func (a answers) Run(_ context.Context, argv ...string) ([]byte, error) {
	if argv[0] == "crm_simulate" {
		i, in := slices.Index(argv, "--save-graph"), slices.Index(argv, "--xml-file")
		text, err := os.ReadFile(argv[in+1])
		if err != nil {
			return nil, err
		}
		if strings.Contains(string(text), "maintenance-mode") {
			return nil, os.ErrInvalid
		}
		return nil, os.WriteFile(argv[i+1], []byte(a.graph), 0o600)
	}
	return []byte(a.cib), nil
}

// Ensure the agent that ran a resource last, and its answers, are read from the status.
func TestStatus(t *testing.T) {
	st, err := pacemaker.ReadStatus(t.Context(), answers{cib: statusText})
	if err != nil {
		t.Fatal(err)
	}
	list := st.Histories("pgsqld")
	if len(list) != 2 || list["n1"].Agent != "ocf:pgbaton:postgresql" || list["n2"].Agent != "ocf:heartbeat:pgsqlms" {
		t.Fatalf("got %+v", list)
	}
	if op, ok := list["n1"].Probe(); !ok || op.Code != 8 || op.Pending {
		t.Errorf("the probe on n1: got %+v, %v", op, ok)
	}
	if op, ok := list["n1"].Monitor(); !ok || op.Code != 191 || op.Interval != 15*time.Second || op.Reason != "slow" {
		t.Errorf("the monitor on n1: got %+v, %v", op, ok)
	}
	if op, ok := list["n2"].Probe(); !ok || !op.Pending {
		t.Errorf("the probe on n2: got %+v, %v", op, ok)
	}
	if _, ok := list["n2"].Monitor(); ok {
		t.Error("n2 has no monitor")
	}
	if got := st.Transient("master-pgsqld"); len(got) != 1 || got["n1"] != "1001" {
		t.Errorf("transient scores: got %v", got)
	}
	if _, err := pacemaker.ReadStatus(t.Context(), answers{cib: statusText[:100]}); err == nil {
		t.Error("half an answer was understood")
	}
}

// Ensure what the scheduler would do is told, and what of it does more than look.
func TestSimulateResume(t *testing.T) {
	const graph = `<transition_graph>
  <synapse id="0"><action_set>
    <rsc_op id="1" operation="monitor" operation_key="pgsqld_monitor_15000" on_node="n1"><primitive id="pgsqld" class="ocf"/></rsc_op>
  </action_set><inputs/></synapse>
  <synapse id="1"><action_set>
    <rsc_op id="2" operation="demote" on_node="n1"><primitive id="pgsqld" class="ocf"/></rsc_op>
  </action_set><inputs><trigger><rsc_op id="9" operation="stop" on_node="n1"/></trigger></inputs></synapse>
  <synapse id="2"><action_set><crm_event id="3" operation="stonith" on_node="n2"/></action_set></synapse>
  <synapse id="3"><action_set><pseudo_event id="4" operation="running"/></action_set></synapse>
</transition_graph>`
	const cib = `<cib><nvpair id="x" name="maintenance-mode" value="true"/></cib>`
	list, err := pacemaker.SimulateResume(t.Context(), answers{cib, graph})
	if err != nil {
		t.Fatal(err)
	}
	var alters []string
	for _, a := range list {
		if a.Alters() {
			alters = append(alters, a.String())
		}
	}
	if len(list) != 3 || !slices.Equal(alters, []string{"demote pgsqld on n1", "stonith n2"}) {
		t.Errorf("got %v, of which %q alter something", list, alters)
	}
	for name, a := range map[string]answers{
		"no maintenance": {"<cib/>", graph},
		"no graph":       {cib, ""},
		"another answer": {cib, "<cib/>"},
	} {
		if _, err := pacemaker.SimulateResume(t.Context(), a); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Ensure an agent's parameters and their defaults are read from its meta-data.
func TestParseMetadata(t *testing.T) {
	got, err := pacemaker.ParseMetadata([]byte(`<resource-agent name="x"><parameters>
  <parameter name="pghost"><content type="string" default="/tmp"/></parameter>
  <parameter name="maxlag"><content type="integer"/></parameter>
</parameters></resource-agent>`))
	if err != nil || len(got) != 2 || got["pghost"] != "/tmp" {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "<pacemaker-result/>", "<resource-agent"} {
		if _, err := pacemaker.ParseMetadata([]byte(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
