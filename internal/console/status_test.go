package console

import (
	"bytes"
	"strings"
	"testing"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// aCluster is healthy: n1 is primary, n2 and n3 are standbys.
func aCluster() (pacemaker.ClusterState, map[string]string) {
	state := pacemaker.ClusterState{DC: "n3", Quorum: true, FencingEnabled: true, Attributes: map[string]map[string]string{}}
	bulletins := map[string]string{}
	note := &baton.Note{Kind: baton.Clean, SystemID: 1, Timeline: 3, Start: 0x7000028, End: 0x70000A0, Node: "n2", Nonce: "aa"}
	for _, n := range []string{"n1", "n2", "n3"} {
		role, score := pacemaker.RoleUnpromoted, "100"
		if n == "n1" {
			role, score = pacemaker.RolePromoted, "1001"
		}
		state.Nodes = append(state.Nodes, pacemaker.NodeState{Name: n, Online: true})
		state.Instances = append(state.Instances, pacemaker.Instance{Resource: "pgsqld", Node: n, Role: role, Active: true, Managed: true})
		state.Attributes[n] = map[string]string{"master-pgsqld": score}
		bulletins[n] = baton.Bulletin{Node: n, Note: note}.Encode()
	}
	return state, bulletins
}

// Ensure that a status shows what is wrong, in 80 columns, and that only a cluster without trouble is called healthy.
func TestStatus(t *testing.T) {
	for _, tc := range []struct {
		name    string
		harm    func(*pacemaker.ClusterState, map[string]string)
		healthy bool
		want    []string
	}{
		{"healthy", func(*pacemaker.ClusterState, map[string]string) {}, true, []string{"n1 online Promoted 1001", "n2 online Unpromoted 100", "shutdown checkpoint 0/7000028..0/70000A0", "left by n2"}},
		{"nobody is primary", func(s *pacemaker.ClusterState, _ map[string]string) {
			s.Instances[0].Role = pacemaker.RoleUnpromoted
		}, false, []string{"NO PRIMARY"}},
		{"two are", func(s *pacemaker.ClusterState, _ map[string]string) {
			s.Instances[1].Role = pacemaker.RolePromoted
		}, false, []string{"2 PRIMARIES"}},
		{"one refuses", func(s *pacemaker.ClusterState, _ map[string]string) {
			s.Attributes["n3"]["master-pgsqld"] = "-INFINITY"
			s.Attributes["n3"]["pgbaton-status-pgsqld"] = "refused: n3 lacks the last 120 bytes of WAL: it ends at 0/7000028, but the shutdown checkpoint ends at 0/70000A0"
		}, false, []string{"n3 online Unpromoted -INFINITY", "refused: n3 lacks the last 120 bytes of WAL"}},
		{"one is silent", func(_ *pacemaker.ClusterState, b map[string]string) { b["n2"] = "9;node=n2" }, false, []string{"tells the others nothing"}},
		{"in standby", func(s *pacemaker.ClusterState, _ map[string]string) { s.Nodes[1].Standby = true }, false, []string{"n2 standby"}},
		{"no quorum", func(s *pacemaker.ClusterState, _ map[string]string) { s.Quorum = false }, false, []string{"quorum NO"}},
		{"blocked", func(s *pacemaker.ClusterState, _ map[string]string) {
			s.Instances[2].Blocked = true
			s.Failures = []pacemaker.Failure{{Node: "n3", Resource: "pgsqld", Action: "promote", Text: "error", Reason: "not promoted: n2 has more WAL"}}
		}, false, []string{"Unpromoted, blocked", "promote of pgsqld on n3: error: not promoted: n2 has more WAL"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			state, bulletins := aCluster()
			tc.harm(&state, bulletins)
			s := statusOf("pgsqld", state, bulletins, nil)
			if got := s.Healthy(); got != tc.healthy {
				t.Errorf("healthy: got %v, want %v", got, tc.healthy)
			}
			var b bytes.Buffer
			s.Text(&b)
			for line := range strings.Lines(b.String()) {
				if len(strings.TrimRight(line, "\n")) > 80 {
					t.Errorf("longer than 80 columns: %q", line)
				}
			}
			flat := strings.Join(strings.Fields(b.String()), " ")
			for _, want := range tc.want {
				if !strings.Contains(flat, want) {
					t.Errorf("%q is missing in\n%s", want, b.String())
				}
			}
		})
	}
}
