package lab

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// build makes all files of a lab.
func (l *Lab) build(ctx context.Context) error {
	o := l.Options
	for _, d := range []string{"bin", "switch", "nodes"} {
		if err := os.MkdirAll(filepath.Join(o.Dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := writeJSON(filepath.Join(o.Dir, "lab.json"), o); err != nil {
		return err
	}
	// A test's binary is gone after the test, the lab may not be.
	if err := copyFile("/proc/self/exe", filepath.Join(o.Dir, "bin", "lab"), 0o755); err != nil {
		return err
	}
	tmpl, err := template(ctx, o)
	if err != nil {
		return err
	}
	for _, n := range o.all() {
		if err := l.buildNode(n); err != nil {
			return fmt.Errorf("make the files of %s: %w", n, err)
		}
	}
	for i, n := range o.Names {
		from := "standby"
		if i == 0 {
			from = "primary"
		}
		if o.Disks {
			if err := o.makeDisk(n); err != nil {
				return fmt.Errorf("make the disk of %s: %w", n, err)
			}
		}
		if err := run("cp", "-a", filepath.Join(tmpl, from)+"/.", o.nodeDir(n, "data")); err != nil {
			return err
		}
		if err := l.configurePostgres(n, i > 0); err != nil {
			return fmt.Errorf("configure PostgreSQL of %s: %w", n, err)
		}
	}
	return nil
}

// ownedDir is a directory of a node, with all that is to be said of it.
type ownedDir struct {
	path, owner string
	mode        os.FileMode
}

// makeDirs makes directories below root, in their order.
func makeDirs(root string, dirs []ownedDir) error {
	for _, d := range dirs {
		p := filepath.Join(root, d.path)
		if err := os.MkdirAll(p, 0o755); err != nil {
			return err
		}
		if err := chown(p, d.owner); err != nil {
			return err
		}
		// Not MkdirAll's mode: it is subject to the umask and has no sticky bit.
		if err := syscall.Chmod(p, uint32(d.mode)); err != nil {
			return err
		}
	}
	return nil
}

// buildNode makes what a node has on disk besides PostgreSQL.
func (l *Lab) buildNode(n string) error {
	o := l.Options
	dirs := []ownedDir{
		{"root", "root", 0o755},
		{"work", "root", 0o755},
		{"merged", "root", 0o755},
		{"log", "root", 0o755},
		{"root/etc", "root", 0o755},
	}
	if n != Client {
		dirs = append(
			dirs,
			ownedDir{"data", "postgres", 0o700},
			ownedDir{"lib", "root", 0o755},
			ownedDir{"corosync", "root", 0o755},
			ownedDir{"root/etc/corosync", "root", 0o755},
			ownedDir{"root/etc/corosync/uidgid.d", "root", 0o755},
			ownedDir{"log/corosync", "root", 0o755},
			ownedDir{"log/crmsh", "root", 0o755}, // crmsh does nothing without
			ownedDir{"log/postgresql", "postgres", 0o755},
			ownedDir{"log/pgbaton-lab", "root", 0o755},
			ownedDir{"log/pgbaton-lab/actions", "root", 0o1777},
			ownedDir{"log/pacemaker", "hacluster", 0o770},
			ownedDir{"log/pacemaker/bundles", "hacluster", 0o770},
			ownedDir{"pacemaker", "root", 0o755},
			ownedDir{"pacemaker/blackbox", "hacluster", 0o750},
			ownedDir{"pacemaker/cib", "hacluster", 0o750},
			ownedDir{"pacemaker/cores", "hacluster", 0o750},
			ownedDir{"pacemaker/pengine", "hacluster", 0o750},
		)
	}
	if err := makeDirs(o.nodeDir(n), dirs); err != nil {
		return err
	}
	hosts := "127.0.0.1 localhost\n"
	for _, m := range o.all() {
		hosts += o.ip(m) + " " + m + "\n"
	}
	files := map[string]string{
		"root/etc/hosts":    hosts + VIP + " vip\n",
		"root/etc/hostname": n + "\n",
	}
	cluster := n != Client && !o.Systemd
	if cluster {
		files["root/etc/corosync/corosync.conf"] = corosyncConf(o)
		files["pacemaker/cib/cib.xml"] = cib(o)
	}
	for name, text := range files {
		if err := os.WriteFile(o.nodeDir(n, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if n == Client {
		return nil
	}
	if cluster {
		cibFile := o.nodeDir(n, "pacemaker/cib/cib.xml")
		if err := chown(cibFile, "hacluster"); err != nil {
			return err
		}
		if err := os.Chmod(cibFile, 0o600); err != nil {
			return err
		}
	}
	if o.Systemd {
		if err := l.systemdFiles(n); err != nil {
			return err
		}
	}
	return l.installFiles(n)
}

// installFiles puts the fence agent, the agent under test and the caller's files in
// a node's root. They are copies: a rebuilt agent is a new lab's.
func (l *Lab) installFiles(n string) error {
	o := l.Options
	fence := o.nodeDir(n, "root/usr/sbin", fenceName)
	if err := os.MkdirAll(filepath.Dir(fence), 0o755); err != nil {
		return err
	}
	if err := os.Symlink(helperPath, fence); err != nil {
		return err
	}
	files := maps.Clone(o.Files)
	if files == nil {
		files = map[string]string{}
	}
	agentPath := "/usr/lib/ocf/resource.d/heartbeat/pgsqlms"
	source := agentPath
	if o.Agent == "pgbaton" {
		agentPath, source = "/usr/lib/ocf/resource.d/pgbaton/postgresql", o.AgentBinary
	}
	const wrapped = "/usr/lib/pgbaton-lab-agent/agent"
	if o.Wrap {
		files[wrapped] = source
	} else if o.Agent == "pgbaton" {
		files[agentPath] = source
	}
	for to, from := range files {
		fi, err := os.Stat(from)
		if err != nil {
			return fmt.Errorf("file for %s: %w", to, err)
		}
		if err := copyFile(from, o.nodeDir(n, "root", to), fi.Mode().Perm()); err != nil {
			return err
		}
	}
	if !o.Wrap {
		return nil
	}
	p := o.nodeDir(n, "root", agentPath)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	return os.WriteFile(p, []byte(wrapper(wrapped)), 0o755)
}

// wrapper is what stands in for the agent when Wrap is set. It must not fail where
// the agent would not: meta-data is run by hacluster, who may write nowhere else.
func wrapper(agent string) string {
	return `#!/bin/sh
# Records the action's environment, takes extra environment, then is the agent.
d=/var/log/pgbaton-lab/actions
f="$d/$(date +%s.%N)-$1${OCF_RESKEY_CRM_meta_notify_type:+-$OCF_RESKEY_CRM_meta_notify_type-$OCF_RESKEY_CRM_meta_notify_operation}-$$"
env | grep ^OCF_ >"$f" 2>/dev/null
if [ -r /run/pgbaton-lab/env ]; then
  set -a
  . /run/pgbaton-lab/env
  set +a
fi
exec ` + agent + ` "$@"
`
}

func quoteConf(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// configurePostgres writes a node's configuration as a user with this cluster would.
func (l *Lab) configurePostgres(n string, standby bool) error {
	o := l.Options
	// An old primary that comes back while the address is still on its own node connects to itself; the address goes, with
	// it the source of that connection, and the WAL receiver, which knows no connect_timeout (libpqrcv_connect in
	// src/backend/replication/libpqwalreceiver), would wait for the last SYN: 127 s with Linux's default.
	conninfo := "host=" + VIP + " tcp_user_timeout=3000 user=replicator application_name=" + n
	if o.Direct {
		// The walreceiver is a libpq client: it tries one after the other until it
		// finds the primary, and waits as long for each that does not answer.
		var others []string
		for _, m := range o.Names {
			if m != n {
				others = append(others, m)
			}
		}
		conninfo = "host=" + strings.Join(others, ",") + " target_session_attrs=read-write connect_timeout=3 tcp_user_timeout=3000 user=replicator application_name=" + n
	}
	if o.Scram {
		conninfo += " password=baton"
	}
	level := "replica"
	if o.LogicalWAL {
		level = "logical"
	}
	conf := map[string]string{
		"listen_addresses":         "*",
		"unix_socket_directories":  "/var/run/postgresql",
		"cluster_name":             n,
		"wal_level":                level,
		"wal_log_hints":            "on",
		"wal_keep_size":            "512MB",
		"max_wal_senders":          "10",
		"max_replication_slots":    "10",
		"hot_standby":              "on",
		"fsync":                    "on",
		"primary_conninfo":         conninfo,
		"recovery_target_timeline": "latest",
		"logging_collector":        "on",
		"log_directory":            "/var/log/postgresql",
		"log_filename":             "postgresql.log",
		"log_rotation_age":         "0",
		"log_rotation_size":        "0",
		"log_line_prefix":          "%m [%p] %q%u@%d/%a ",
		"log_checkpoints":          "on",
		"log_timezone":             "UTC",
	}
	if o.Slots {
		conf["primary_slot_name"] = slotName(n)
	}
	maps.Copy(conf, o.Conf)
	if o.Layout == "debian" {
		conf["data_directory"] = o.DataDir()
		conf["hba_file"] = filepath.Join(o.ConfDir(), "pg_hba.conf")
		conf["ident_file"] = filepath.Join(o.ConfDir(), "pg_ident.conf")
	}
	data := o.nodeDir(n, "data")
	confDir := data
	if o.Layout == "debian" {
		confDir = o.nodeDir(n, "root", o.ConfDir())
		if err := os.MkdirAll(confDir, 0o755); err != nil {
			return err
		}
		for _, f := range []string{"postgresql.conf", "pg_hba.conf", "pg_ident.conf"} {
			if err := os.Rename(filepath.Join(data, f), filepath.Join(confDir, f)); err != nil {
				return err
			}
		}
	}
	var b strings.Builder
	b.WriteString("\n# The lab's settings.\n")
	for _, name := range slices.Sorted(maps.Keys(conf)) {
		fmt.Fprintf(&b, "%s = %s\n", name, quoteConf(conf[name]))
	}
	if err := appendTo(filepath.Join(confDir, "postgresql.conf"), b.String()); err != nil {
		return err
	}
	files := map[string]string{filepath.Join(confDir, "pg_hba.conf"): hba(o, n)}
	if standby {
		files[filepath.Join(data, "standby.signal")] = ""
	}
	for p, text := range files {
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			return err
		}
	}
	owned := []string{filepath.Join(data, "standby.signal"), filepath.Join(confDir, "postgresql.conf"), filepath.Join(confDir, "pg_hba.conf")}
	if o.Layout == "debian" {
		owned = append(owned, confDir, filepath.Join(confDir, "pg_ident.conf"))
	}
	for _, p := range owned {
		if err := chown(p, "postgres"); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

func slotName(node string) string {
	return "slot_" + strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToLower(node))
}

// hba is Debian's stock rule for local connections (peer), a rule for the lab's
// prober before it, and the network's. A node must not replicate from itself, which
// it would when it is demoted and still holds the virtual IP.
func hba(o Options, n string) string {
	method := "trust"
	if o.Scram {
		method = "scram-sha-256"
	}
	return strings.Join([]string{
		"local load load trust",
		"local all postgres peer",
		"local all all peer",
		"local replication all peer",
		"host replication all " + VIP + "/32 reject",
		"host replication all " + o.ip(n) + "/32 reject",
		"host replication replicator " + network + " " + method,
		"host load load " + network + " trust",
		"host all all " + network + " " + method,
		"",
	}, "\n")
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

// makeSlots makes on every node the slots that the others use when it is primary.
func (l *Lab) makeSlots(ctx context.Context) error {
	for _, n := range l.Names {
		for _, m := range l.Names {
			if n == m {
				continue
			}
			if _, err := l.SQL(ctx, n, "SELECT pg_create_physical_replication_slot('"+slotName(m)+"')"); err != nil {
				return err
			}
		}
	}
	return nil
}

func corosyncConf(o Options) string {
	var b strings.Builder
	fmt.Fprintf(&b, `totem {
  version: 2
  cluster_name: %s
  transport: knet
  crypto_cipher: none
  crypto_hash: none
  token: %d
}
quorum {
  provider: corosync_votequorum
`, o.Name, o.Token.Milliseconds())
	if o.Nodes == 2 {
		b.WriteString("  two_node: 1\n")
	}
	b.WriteString("}\nlogging {\n  to_logfile: yes\n  logfile: /var/log/corosync/corosync.log\n  to_syslog: no\n  to_stderr: no\n  timestamp: hires\n}\nnodelist {\n")
	for i, n := range o.Names {
		fmt.Fprintf(&b, "  node {\n    name: %s\n    nodeid: %d\n    ring0_addr: %s\n  }\n", n, i+1, o.ip(n))
	}
	b.WriteString("}\n")
	return b.String()
}
