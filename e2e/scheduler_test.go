package e2e

import (
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// plan is what crm_simulate --output-as=xml says: what the scheduler would do, and what comes of it.
type plan struct {
	Actions []struct {
		Action   string `xml:"action,attr"`
		Resource string `xml:"resource,attr"`
		Node     string `xml:"node,attr"`
		Reason   string `xml:"reason,attr"`
		Blocked  bool   `xml:"blocked,attr"`
	} `xml:"actions>rsc_action"`
	Fencing []struct {
		Node string `xml:"node,attr"`
	} `xml:"actions>node_action"`
	Instances []planned `xml:"revised_cluster_status>resources>clone>resource"`
	Others    []planned `xml:"revised_cluster_status>resources>resource"`
}

type planned struct {
	ID    string `xml:"id,attr"`
	Role  string `xml:"role,attr"`
	Nodes []struct {
		Name string `xml:"name,attr"`
	} `xml:"node"`
}

// on lists the nodes of those in a role.
func on(list []planned, id, role string) (nodes []string) {
	for _, r := range list {
		if r.ID == id && r.Role == role && len(r.Nodes) > 0 {
			nodes = append(nodes, r.Nodes[0].Name)
		}
	}
	return nodes
}

// Ensure Pacemaker's scheduler can go on from wherever a plan was dropped: with the configuration that the README gives nothing
// that is to be stopped is blocked, no node is fenced, and the virtual IP ends up where the primary is, or nowhere. Asked of
// crm_simulate, on a real cluster's configuration and status, for every mixture of what the instances have got to, who may be
// promoted, who is to leave, and quorum.
func TestScheduler(t *testing.T) {
	c := testCluster(t, "plain", ordinary())
	s := c.begin(t, 5*time.Minute, false)
	s.settled()
	node, others := s.old, s.others
	inject := func(n, op string) []string {
		switch op {
		case "as it was":
			return nil
		case "offline":
			return []string{"--node-down", n}
		}
		return []string{"--op-inject", fmt.Sprintf("%s_%s_0@%s=0", lab.Resource, op, n)}
	}
	cib, standbys, plans := s.run(node, "cibadmin", "--query"), []string{"as it was", "stop", "offline"}, 0
	for _, banned := range [][]string{nil, {node}, s.lab.Names} {
		for _, leaving := range [][]string{nil, s.lab.Names} {
			file := filepath.Join(t.TempDir(), "cib.xml")
			s.must(os.WriteFile(file, []byte(cib), 0o600))
			for _, n := range banned {
				asked(s, file, "crm_resource", "--ban", "-r", lab.Clone, "-N", n, "--promoted")
			}
			for _, n := range leaving {
				asked(s, file, "crm_standby", "-N", n, "-v", "on")
			}
			for _, ops := range mixtures([]string{"as it was", "demote", "stop"}, standbys, standbys) {
				if slices.Index(standbys, ops[1]) > slices.Index(standbys, ops[2]) {
					continue // the two are alike
				}
				for _, quorum := range []string{"true", "false"} {
					if quorum == "false" && leaving != nil {
						continue
					}
					args := []string{"--simulate", "--output-as=xml", "--xml-file", file, "--quorum", quorum}
					for i, n := range append([]string{node}, others...) {
						args = append(args, inject(n, ops[i])...)
					}
					out := asked(s, file, "crm_simulate", args...)
					var p plan
					s.must(xml.Unmarshal(out, &p))
					plans++
					where := fmt.Sprintf("%s %q, %s %q, %s %q, banned %q, in standby %q, quorum %s", node, ops[0], others[0], ops[1], others[1], ops[2], banned, leaving, quorum)
					for _, a := range p.Actions {
						if a.Blocked && a.Action == "stop" {
							t.Errorf("%s: the stop of %s on %s is blocked (%s)", where, a.Resource, a.Node, a.Reason)
						}
					}
					if len(p.Fencing) > 0 {
						t.Errorf("%s: to be fenced: %v", where, p.Fencing)
					}
					primary, address := on(p.Instances, lab.Resource, "Promoted"), on(p.Others, lab.VIPResource, "Started")
					if len(primary) > 1 || len(address) > 0 && !slices.Equal(primary, address) {
						t.Errorf("%s: primary on %q, address on %q", where, primary, address)
					}
				}
			}
		}
	}
	s.stage("%d plans", plans)
}

// asked runs one of Pacemaker's tools on a configuration in a file, for which no cluster is needed.
func asked(s *scenario, cib, name string, args ...string) []byte {
	s.t.Helper()
	cmd := exec.CommandContext(s.ctx, name, args...)
	cmd.Env = append(os.Environ(), "CIB_file="+cib)
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("%s: %v", cmd, err)
	}
	return out
}

// mixtures is every choice of one of each list.
func mixtures(lists ...[]string) [][]string {
	if len(lists) == 0 {
		return [][]string{nil}
	}
	var all [][]string
	for _, first := range lists[0] {
		for _, rest := range mixtures(lists[1:]...) {
			all = append(all, append([]string{first}, rest...))
		}
	}
	return all
}
