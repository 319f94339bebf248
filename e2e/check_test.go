package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// finding is what pgbaton check --json says of one misconfiguration.
type finding struct{ ID, Do string }

// check runs pgbaton check on a node.
func (s *scenario) check(node string) []finding {
	s.t.Helper()
	code, text := s.pgbaton(node, "check", "--json")
	var r struct {
		Version  int
		Findings []finding
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil || r.Version != 1 {
		s.t.Fatalf("exit code %d, %v:\n%s", code, err, text)
	}
	if (code == 0) != (len(r.Findings) == 0) {
		s.t.Errorf("exit code %d with %d findings", code, len(r.Findings))
	}
	return r.Findings
}

// found compares the findings with what is expected, and returns the command of the last one.
func (s *scenario) found(node, what string, want ...string) string {
	s.t.Helper()
	list := s.check(node)
	ids, do := []string{}, ""
	for _, f := range list {
		ids = append(ids, f.ID)
		if len(want) > 0 && f.ID == want[len(want)-1] {
			do = f.Do
		}
	}
	slices.Sort(ids)
	want = slices.Clone(want)
	slices.Sort(want)
	if !slices.Equal(ids, want) {
		s.t.Errorf("%s: found %q, want %q: %+v", what, ids, want, list)
	}
	return do
}

// onlyPacemaker takes away in the nodes what may start PostgreSQL on the machine that the lab runs on.
func (s *scenario) onlyPacemaker() {
	s.t.Helper()
	for _, n := range s.lab.Names {
		s.run(n, "sh", "-c", "rm -f /etc/systemd/system/*.wants/postgresql*.service")
	}
}

// cibPlants are misconfigurations of the cluster: what stands in a good configuration, and what in its place.
func cibPlants() [][3]string {
	set := func(name, value string) string {
		return fmt.Sprintf(`<nvpair id="planted-%s" name="%s" value="%s"/>`, name, name, value)
	}
	const (
		end    = `</cluster_property_set>`
		notify = `<nvpair id="meta-notify" name="notify" value="true"/>`
		demote = `<rsc_order id="demote-then-vip" first="pgsql-ha" first-action="demote" then="pgsql-vip" then-action="stop" kind="Optional" symmetrical="false"/>`
	)
	return [][3]string{
		{"fencing-off", `name="stonith-enabled" value="true"`, `name="stonith-enabled" value="false"`},
		{"startup-fencing-off", end, set("startup-fencing", "false") + end},
		{"quorum-ignored", end, set("no-quorum-policy", "ignore") + end},
		{"quorum-freeze", end, set("no-quorum-policy", "freeze") + end},
		{"migration-threshold", `name="migration-threshold" value="5"`, `name="migration-threshold" value="1"`},
		{"notify-missing", notify, ``},
		{"promoted-max", notify, notify + set("promoted-max", "2")},
		{"clone-max", notify, notify + set("clone-max", "2")},
		{"clone-node-max", notify, notify + set("clone-node-max", "2")},
		{"interleave-missing", `name="interleave" value="true"`, `name="interleave" value="false"`},
		{"target-role", notify, notify + set("target-role", "Unpromoted")},
		{"unmanaged", notify, notify + set("is-managed", "false")},
		{"monitor-promoted-missing", `<op id="pgsqld-monitor-promoted" timeout="10s" name="monitor" interval="4s" role="Promoted"/>`, ``},
		{"monitor-unpromoted-missing", `<op id="pgsqld-monitor-unpromoted" timeout="10s" name="monitor" interval="5s" role="Unpromoted"/>`, ``},
		{"monitor-intervals-equal", `interval="5s" role="Unpromoted"`, `interval="4s" role="Unpromoted"`},
		{"timeout-demote", `id="pgsqld-demote" timeout="120s"`, `id="pgsqld-demote" timeout="20s"`},
		{"timeout-notify", `id="pgsqld-notify" timeout="20s"`, `id="pgsqld-notify" timeout="5"`},
		{"timeout-start", `id="pgsqld-start" timeout="60s"`, `id="pgsqld-start" timeout="3000ms"`},
		{"promote-on-fail", ` on-fail="demote"`, ``},
		{"on-fail-stop", `id="pgsqld-stop"`, `id="pgsqld-stop" on-fail="ignore"`},
		{"on-fail-monitor", `id="pgsqld-monitor-promoted"`, `id="pgsqld-monitor-promoted" on-fail="ignore"`},
		{"vip-colocation", ` with-rsc-role="Promoted"`, ``},
		{"vip-order-demote", demote, ``},
		{"vip-order-symmetrical", demote, strings.Replace(demote, ` symmetrical="false"`, ``, 1)},
		{"vip-order-kind", demote, strings.Replace(demote, "Optional", "Mandatory", 1)},
		{"move-left", `</constraints>`, `<rsc_location id="cli-ban-pgsql-ha-on-n1" rsc="pgsql-ha" role="Promoted" node="n1" score="-INFINITY"/></constraints>`},
		{"permanent-score", `<node id="3" uname="n3"/>`, `<node id="3" uname="n3"><instance_attributes id="nodes-3">` + set("master-pgsqld", "1001") + `</instance_attributes></node>`},
	}
}

// Ensure check finds each misconfiguration that is planted on a real cluster, and nothing else; that the command it prints
// removes the finding as it stands; and that a good cluster has none.
//
// Trap 39: a primary that waits for itself is recognised by check.
func TestConsole_Check(t *testing.T) {
	c := consoleCluster(t)

	t.Run("cluster", func(t *testing.T) {
		c.useFaults(t, false)
		s := c.begin(t, 8*time.Minute, false)
		s.onlyPacemaker()
		for _, n := range c.lab.Names {
			s.found(n, "a good cluster, from "+n)
		}
		// In maintenance mode nothing comes of what is planted.
		on := s.old
		s.run(on, "crm_attribute", "-n", "maintenance-mode", "-v", "true")
		defer s.run(on, "crm_attribute", "-n", "maintenance-mode", "-D")
		good := s.run(on, "cibadmin", "--query", "--scope", "configuration")
		put := func(cib string) {
			t.Helper()
			root, err := c.lab.Root(on)
			s.must(err)
			s.must(os.WriteFile(filepath.Join(root, "tmp", "cib.xml"), []byte(cib), 0o600))
			s.run(on, "cibadmin", "--replace", "--scope", "configuration", "--xml-file", "/tmp/cib.xml")
		}
		for _, p := range cibPlants() {
			id, old, now := p[0], p[1], p[2]
			if !strings.Contains(good, old) {
				t.Errorf("%s: nothing to plant it at: no %s", id, old)
				continue
			}
			put(strings.Replace(good, old, now, 1))
			do := s.found(on, id, "maintenance", id)
			if do == "" {
				continue
			}
			if out, err := c.lab.Run(s.ctx, on, "sh", "-c", do); err != nil {
				t.Errorf("%s: the printed command fails: %v\n%s", id, err, out)
			}
			s.found(on, id+", after "+do, "maintenance")
			put(good)
		}
		do := s.found(on, "maintenance", "maintenance")
		if _, err := c.lab.Run(s.ctx, on, "sh", "-c", do); err != nil {
			t.Errorf("the printed command fails: %v", err)
		}
		s.found(on, "after "+do)
	})

	t.Run("server", func(t *testing.T) {
		c.useFaults(t, false)
		s := c.begin(t, 9*time.Minute, false)
		s.onlyPacemaker()
		on := s.others[0] // a standby
		root, err := c.lab.Root(on)
		s.must(err)
		conf := filepath.Join(root, c.lab.ConfDir(), "postgresql.conf")
		for _, p := range [][2]string{
			{"fsync-off", "fsync = off"},
			{"full_page_writes-off", "full_page_writes = false"},
			{"sync-names-itself", "synchronous_standby_names = 'ANY 2 (" + on + ", " + s.old + ")'"},
			{"wal-sender-timeout", "wal_sender_timeout = 0"},
			{"hot-standby-off", "hot_standby = off"},
			{"apply-delay", "recovery_min_apply_delay = '5min'"},
			{"recovery-target", "recovery_target_time = '2099-01-01'"},
			{"recovery-timeline", "recovery_target_timeline = 'current'"},
			{"application-name", "primary_conninfo = 'host=10.77.0.10 user=replicator application_name=walreceiver tcp_user_timeout=3000'"},
			{"tcp-user-timeout", "primary_conninfo = 'host=" + strings.Join(slices.DeleteFunc(slices.Clone(c.lab.Names), func(n string) bool { return n == on }), ",") + " user=replicator target_session_attrs=read-write application_name=" + on + "'"},
			{"too-low-max_connections", "max_connections = 11"},
			{"listen", "listen_addresses = 'localhost'"},
			{"status-interval", "wal_receiver_status_interval = 10"},
		} {
			id, line := p[0], p[1]
			good, err := os.ReadFile(conf)
			s.must(err)
			s.must(os.WriteFile(conf, append(slices.Clone(good), ("\n"+line+"\n")...), 0o600))
			do := s.found(on, id, id)
			if do != "" {
				if out, err := c.lab.Run(s.ctx, on, "sh", "-c", do); err != nil {
					t.Errorf("%s: the printed command fails: %v\n%s", id, err, out)
				}
				s.found(on, id+", after "+do)
			}
			s.must(os.WriteFile(conf, good, 0o600))
			s.await(30*time.Second, func() error {
				if err := c.lab.Healthy(s.ctx); err != nil {
					return lab.NotYet("%v", err)
				}
				return nil
			})
			s.stage("%s", id)
		}
		// What the system does behind Pacemaker's back.
		s.run(on, "sh", "-c", "mkdir -p /etc/systemd/system/multi-user.target.wants && touch /etc/systemd/system/multi-user.target.wants/postgresql.service")
		s.found(on, "systemd", "systemd-unit")
		s.run(on, "rm", "-f", "/etc/systemd/system/multi-user.target.wants/postgresql.service")
		s.found(on, "without it")
	})
}
