package lab

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	// DefaultRoot holds one directory for each lab.
	DefaultRoot = "/var/lib/pgbaton-lab"
	// TemplateRoot caches initialised data directories, so that initdb runs once
	// for each version and set of options and not once for each lab.
	TemplateRoot = "/var/cache/pgbaton-lab"

	// VIP is the virtual IP address that follows the primary.
	VIP = "10.77.0.10"
	// Client is the name of the extra node where the writing clients come from.
	Client = "client"

	network  = "10.77.0.0/24"
	clientIP = "10.77.0.200"
	// Resource, Clone and VIPResource name the resources in the CIB.
	Resource    = "pgsqld"
	Clone       = "pgsql-ha"
	VIPResource = "pgsql-vip"
)

// Op overrides one operation of the PostgreSQL resource in the CIB. Empty fields
// keep the default. Times have Pacemaker's form ("60s", "500ms").
type Op struct {
	Interval string // monitors only
	Timeout  string
	OnFail   string // restart, demote, block, stop, fence, ignore
}

// Options describe a lab. The zero value is a lab named "lab" of three nodes with
// Debian's agent pgsqlms.
type Options struct {
	Name  string   // of the lab; several run side by side
	Dir   string   // its state; default DefaultRoot/Name; must be on a real disk
	Nodes int      // 2 to 5; default 3
	Names []string // of the nodes; default n1, n2, ...
	Voter bool     // the last node runs no instance: it only votes

	Agent       string            // "pgsqlms" (default), "pgbaton", or "none": plain streaming replication, of which Pacemaker knows nothing
	AgentBinary string            // of pgbaton; default pgbaton-agent beside this program, or bin/ above it
	Params      map[string]string // of the resource, over the defaults
	Ops         map[string]Op     // start, stop, promote, demote, notify, monitor-promoted, monitor-unpromoted, reload-agent
	Meta        map[string]string // meta attributes of the clone, over the defaults
	Properties  map[string]string // cluster properties, over the defaults
	Token       time.Duration     // corosync's token time-out; default 1 s

	Direct     bool              // standbys connect to the nodes, not to the virtual IP
	Bindir     string            // of PostgreSQL; default the newest below /usr/lib/postgresql
	Layout     string            // "datadir": configuration in the data directory (default); "debian": below /etc/postgresql
	Conf       map[string]string // settings of postgresql.conf, over the defaults
	Scram      bool              // replication with a password instead of trust
	WALSegMB   int               // size of a WAL segment in MB (initdb --wal-segsize); default 16
	Slots      bool              // standbys use physical replication slots, one for each node on each node
	LogicalWAL bool              // wal_level=logical
	Disks      bool              // each node's data directory is a disk of its own, for HangDisk

	// Systemd boots the nodes as Debian does: with pcsd, with PostgreSQL, which systemd starts as its package has it, and with
	// no cluster: there is neither a corosync.conf nor a CIB. Up returns when all have booted.
	Systemd bool

	// Major is PostgreSQL's major version, "15". Up sets it.
	Major string

	// Files are copied into every node before it starts: path in the node to path on
	// the host. The mode is kept, the owner is root.
	Files map[string]string
	// Wrap puts a small script before the agent: it records the environment of every
	// action below /var/log/pgbaton-lab/actions, and takes extra environment from
	// /run/pgbaton-lab/env if that is there (lines NAME=value, see SetAgentEnv).
	Wrap bool

	// AutoReturn is how long after a fencing "reboot" the node is powered on again;
	// zero: it stays off until Power(node, true).
	AutoReturn time.Duration
	// StayOff builds the lab without starting a node.
	StayOff bool
	// Lifeline ends the lab when this process ends, however it ends.
	Lifeline bool
	// Replace takes down a running lab of the same name first.
	Replace bool
	// Log gets a line for each step; nil: silent.
	Log io.Writer `json:"-"`
}

var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,40}$`)

func (o *Options) setDefaults() error {
	if o.Name == "" {
		o.Name = "lab"
	}
	if !nameRE.MatchString(o.Name) {
		return fmt.Errorf("lab name %q: expected letters, digits, - and _", o.Name)
	}
	if o.Dir == "" {
		o.Dir = filepath.Join(DefaultRoot, o.Name)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return err
	}
	o.Dir = dir
	if o.Nodes == 0 {
		o.Nodes = max(3, len(o.Names))
		if len(o.Names) > 0 {
			o.Nodes = len(o.Names)
		}
	}
	if o.Nodes < 2 || o.Nodes > 5 {
		return fmt.Errorf("%d nodes: expected 2 to 5", o.Nodes)
	}
	if len(o.Names) == 0 {
		for i := range o.Nodes {
			o.Names = append(o.Names, fmt.Sprintf("n%d", i+1))
		}
	}
	if len(o.Names) != o.Nodes {
		return fmt.Errorf("%d names for %d nodes", len(o.Names), o.Nodes)
	}
	for i, n := range o.Names {
		if !nameRE.MatchString(n) || n == Client || slices.Contains(o.Names[:i], n) {
			return fmt.Errorf("node name %q: expected letters, digits, . and -, each name once, and not %q", n, Client)
		}
	}
	if o.Agent == "" {
		o.Agent = "pgsqlms"
	}
	if o.Agent != "pgsqlms" && o.Agent != "pgbaton" && o.Agent != "none" {
		return fmt.Errorf("agent %q: expected pgsqlms, pgbaton or none", o.Agent)
	}
	if o.Token == 0 {
		o.Token = time.Second
	}
	if o.WALSegMB == 0 {
		o.WALSegMB = 16
	}
	if o.Layout == "" {
		o.Layout = "datadir"
	}
	if o.Layout != "datadir" && o.Layout != "debian" {
		return fmt.Errorf("layout %q: expected datadir or debian", o.Layout)
	}
	if o.Bindir == "" {
		o.Bindir = newestBindir()
	}
	if o.Agent == "pgbaton" && o.AgentBinary == "" {
		o.AgentBinary = findAgentBinary()
	}
	if o.Agent == "pgbaton" && o.AgentBinary == "" {
		return errors.New("bin/pgbaton-agent not found beside this program, in the working directory or above it: build it (make build), or name it (--agent-binary)")
	}
	if o.AgentBinary != "" {
		p, err := filepath.Abs(o.AgentBinary)
		if err != nil {
			return err
		}
		if _, err := os.Stat(p); err != nil {
			return fmt.Errorf("agent binary: %w: build it (make build)", err)
		}
		o.AgentBinary = p
	}
	for name := range o.Ops {
		if !slices.Contains(slices.Collect(maps.Keys(defaultOps)), name) {
			return fmt.Errorf("operation %q: expected one of %s", name, strings.Join(slices.Sorted(maps.Keys(defaultOps)), ", "))
		}
	}
	return nil
}

// findAgentBinary looks beside this program, then for bin/ in the working directory
// and the directories above it (a test runs in the directory of its package).
func findAgentBinary() string {
	var try []string
	if exe, err := os.Executable(); err == nil {
		try = append(try, filepath.Join(filepath.Dir(exe), "pgbaton-agent"))
	}
	if wd, err := os.Getwd(); err == nil {
		for d := wd; ; d = filepath.Dir(d) {
			try = append(try, filepath.Join(d, "bin", "pgbaton-agent"))
			if d == "/" {
				break
			}
		}
	}
	for _, p := range try {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return ""
}

func newestBindir() string {
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	best, bestVersion := "", 0
	for _, d := range dirs {
		var v int
		if _, err := fmt.Sscanf(d, "/usr/lib/postgresql/%d/bin", &v); err == nil && v > bestVersion {
			best, bestVersion = d, v
		}
	}
	return best
}

// requirements says what this machine lacks, with the Debian package that has it.
func requirements(o Options) error {
	if os.Geteuid() != 0 {
		return errors.New("the lab makes namespaces and mounts: run it as root")
	}
	var missing []string
	need := func(pkg string, paths ...string) {
		for _, p := range paths {
			if strings.HasPrefix(p, "/") {
				if _, err := os.Stat(p); err == nil {
					continue
				}
			} else if _, err := exec.LookPath(p); err == nil {
				continue
			}
			missing = append(missing, fmt.Sprintf("%s (apt-get install %s)", p, pkg))
		}
	}
	need("corosync", "/usr/sbin/corosync")
	need("pacemaker", "/usr/sbin/pacemakerd")
	need("pacemaker-cli-utils", "/usr/sbin/crm_mon", "/usr/sbin/crm_resource")
	need("resource-agents", "/usr/lib/ocf/resource.d/heartbeat/IPaddr2")
	need("tini", "/usr/bin/tini")
	need("nftables", "/usr/sbin/nft")
	need("iproute2", "ip")
	need("util-linux", "nsenter")
	if o.Systemd {
		need("systemd", systemdPath)
		need("pcs", "/usr/sbin/pcsd")
	}
	if o.Agent == "pgsqlms" {
		need("resource-agents-paf", "/usr/lib/ocf/resource.d/heartbeat/pgsqlms")
	}
	if o.Bindir == "" {
		missing = append(missing, "PostgreSQL's server below /usr/lib/postgresql (apt-get install postgresql)")
	} else {
		need("postgresql", filepath.Join(o.Bindir, "postgres"), filepath.Join(o.Bindir, "initdb"), filepath.Join(o.Bindir, "pg_ctl"), o.client("psql"))
	}
	if len(missing) > 0 {
		return fmt.Errorf("this machine lacks what the lab needs:\n  %s", strings.Join(missing, "\n  "))
	}
	return nil
}

func (o Options) logf(format string, args ...any) {
	if o.Log != nil {
		_, _ = fmt.Fprintf(o.Log, format+"\n", args...)
	}
}

// ip is the address of a node: 10.77.0.11 for the first one.
func (o Options) ip(node string) string {
	if node == Client {
		return clientIP
	}
	return fmt.Sprintf("10.77.0.%d", 11+slices.Index(o.Names, node))
}

// port is the name of a node's port on the bridge. Not the node's name: that can
// be longer than the kernel allows.
func (o Options) port(node string) string {
	if node == Client {
		return Client
	}
	return fmt.Sprintf("p%d", 1+slices.Index(o.Names, node))
}

// all are the cluster's nodes and the client.
// Instances are the nodes that may run PostgreSQL.
func (o Options) Instances() []string {
	if o.Voter {
		return o.Names[:len(o.Names)-1]
	}
	return o.Names
}

func (o Options) all() []string { return append(slices.Clone(o.Names), Client) }

func (o Options) check(node string) error {
	if node != Client && !slices.Contains(o.Names, node) {
		return fmt.Errorf("lab %s has no node %q: it has %s", o.Name, node, strings.Join(o.all(), ", "))
	}
	return nil
}

// LossSeen is how long corosync takes to agree that a node is gone: its token must be missed for the configured time and,
// beyond two nodes, token_coefficient (650 ms) for every further one, and then 1.2 times that for the rest to agree
// (corosync.conf(5): token, token_coefficient, consensus).
func (l *Lab) LossSeen() time.Duration {
	token := l.Token + time.Duration(max(0, len(l.Names)-2))*650*time.Millisecond
	return token * 22 / 10
}

// DataDir is the data directory as every node sees it.
func (o Options) DataDir() string {
	if o.Layout == "debian" {
		return fmt.Sprintf("/var/lib/postgresql/%s/main", o.Major)
	}
	return "/var/lib/pgha/data"
}

// ConfDir is where postgresql.conf is, as every node sees it.
func (o Options) ConfDir() string {
	if o.Layout == "debian" {
		return fmt.Sprintf("/etc/postgresql/%s/main", o.Major)
	}
	return o.DataDir()
}

func (o Options) nodeDir(node string, elem ...string) string {
	return filepath.Join(append([]string{o.Dir, "nodes", node}, elem...)...)
}
