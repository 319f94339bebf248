package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// badInput is one thing that a user may get wrong, and what he is told.
type badInput struct {
	name   string
	params map[string]string // instead of those of a good instance; empty: not set
	break_ func(t *testing.T, in *instance)
	env    []string // of the action beyond the parameters
	code   int
	says   string // what is wrong and how to mend it; DATA stands for the data directory
}

// Ensure validate-all and start say exactly what is wrong and how to mend it, with a code that bans this node at most,
// and that monitor and stop work all the same and soon.
//
// Trap 9: monitor and stop do not depend on what validation finds.
// Trap 24: no code that stops the clone on all nodes.
func TestBadInput(t *testing.T) {
	t.Parallel()
	b := newBox(t, boxOptions{})
	good := b.newInstance("good")
	conninfo := func(value string) func(*testing.T, *instance) {
		return func(t *testing.T, in *instance) { in.set("primary_conninfo", value) }
	}
	setting := func(name, value string) func(*testing.T, *instance) {
		return func(t *testing.T, in *instance) { in.set(name, value) }
	}
	clone := []string{
		"OCF_RESKEY_CRM_meta_clone=0", "OCF_RESKEY_CRM_meta_notify=true", "OCF_RESKEY_CRM_meta_promoted_max=1", "OCF_RESKEY_CRM_meta_on_node=n1",
	}
	for n, c := range []badInput{
		// Parameters that cannot be right.
		{
			name: "relative pgdata", params: map[string]string{"pgdata": "main"},
			code: 2, says: `pgdata is "main": expected an absolute path`,
		},
		{
			name: "not a port", params: map[string]string{"pgport": "pg"},
			code: 2, says: `pgport is "pg": expected a port number from 1 to 65535`,
		},
		{
			name: "two hosts", params: map[string]string{"pghost": "n1,n2"},
			code: 2, says: `pghost is "n1,n2": expected the absolute path of the socket's directory, or one host name or address`,
		},
		{
			name: "open quote in start_opts", params: map[string]string{"start_opts": `-c "work_mem=1MB`},
			code: 2, says: `start_opts has a " that is not closed`,
		},
		{
			name: "maxlag with a unit", params: map[string]string{"maxlag": "16MB"},
			code: 2, says: `maxlag is "16MB": expected a number of bytes, 0 (not enforced) or more`,
		},
		{
			name: "no user name", params: map[string]string{"system_user": "post gres"},
			code: 2, says: `system_user is "post gres": expected the name of a user`,
		},
		{
			name: "everything wrong", params: map[string]string{"pgdata": "x", "datadir": "x", "bindir": "x", "pghost": "x y", "pgport": "x", "system_user": "x y", "maxlag": "x", "start_opts": "'", "logfile": "x"},
			code: 2, says: "wrong parameters: system_user",
		},
		{
			name: "nothing set", params: map[string]string{"pgdata": "", "pghost": "", "pgport": "", "logfile": ""},
			code: 5, says: "data directory /var/lib/pgsql/data does not exist: clone the primary with pg_basebackup, or correct pgdata",
		},
		{
			name: "no such user", params: map[string]string{"system_user": "nosuchuser"},
			code: 5, says: `system user "nosuchuser" does not exist on this node: create it or correct the parameter system_user`,
		},
		{
			name: "another user", params: map[string]string{"system_user": "daemon"},
			code: 4, says: "data directory DATA belongs to postgres, not to daemon: chown -R it, or correct system_user",
		},

		// The clone.
		{
			name: "notify=false", env: append(clone[:1:1], "OCF_RESKEY_CRM_meta_notify=false"),
			code: 2, says: "the clone lacks the meta attribute notify=true: pcs resource meta CLONE notify=true",
		},
		{
			name: "promoted-max=2", env: append(clone[:2:2], "OCF_RESKEY_CRM_meta_promoted_max=2"),
			code: 2, says: "the clone has promoted-max=2, only 1 is possible: pcs resource meta CLONE promoted-max=1",
		},
		{
			name: "master-max=0", env: append(clone[:2:2], "OCF_RESKEY_CRM_meta_master_max=0"),
			code: 2, says: "the clone has promoted-max=0, only 1 is possible",
		},

		// The data directory.
		{
			name: "missing", break_: func(t *testing.T, in *instance) { in.b.must("rm", "-r", in.data) },
			code: 5, says: "data directory DATA does not exist: clone the primary with pg_basebackup, or correct pgdata",
		},
		{
			name: "empty", break_: func(t *testing.T, in *instance) { in.b.must("find", in.data, "-mindepth", "1", "-delete") },
			code: 5, says: "data directory DATA is empty: clone the primary with pg_basebackup, or correct pgdata",
		},
		{
			name: "a file", break_: func(t *testing.T, in *instance) {
				in.b.must("rm", "-r", in.data)
				in.b.must("touch", in.data)
			},
			code: 2, says: "pgdata DATA is not a directory: correct pgdata",
		},
		{
			name: "something else", break_: func(t *testing.T, in *instance) { in.b.must("rm", in.data+"/PG_VERSION") },
			code: 5, says: "DATA is no data directory, it has no PG_VERSION: clone the primary with pg_basebackup, or correct pgdata",
		},
		{
			name: "somebody else's", break_: func(t *testing.T, in *instance) { in.b.must("chown", "-R", "daemon", in.data) },
			code: 4, says: "data directory DATA belongs to daemon, not to postgres: chown -R it, or correct system_user",
		},
		{
			name: "open to all", break_: func(t *testing.T, in *instance) { in.b.must("chmod", "0755", in.data) },
			code: 4, says: "data directory DATA has mode 0755, the server asks for 0700 or 0750: chmod 0700 it",
		},
		{
			name: "of a version that is not installed", break_: func(t *testing.T, in *instance) { in.write("PG_VERSION", "14\n", os.O_TRUNC) },
			code: 5, says: "PostgreSQL 14 is not installed: install it or set bindir (looked in /usr/lib/postgresql/14/bin,",
		},
		{
			name: "of another version than bindir", params: map[string]string{"bindir": boxBin},
			break_: func(t *testing.T, in *instance) { in.write("PG_VERSION", "14\n", os.O_TRUNC) },
			code:   5, says: boxBin + " is of PostgreSQL 15, but DATA of 14: correct bindir, or pg_upgrade",
		},
		{
			name: "of a version that is too old", break_: func(t *testing.T, in *instance) { in.write("PG_VERSION", "9.6\n", os.O_TRUNC) },
			code: 5, says: `data directory DATA is of PostgreSQL "9.6": expected 13 to 18`,
		},
		{
			name: "pg_control cut off", break_: func(t *testing.T, in *instance) { in.write("global/pg_control", "x", os.O_TRUNC) },
			code: 5, says: "DATA/global/pg_control",
		},

		// The programs.
		{
			name: "no binaries in bindir", params: map[string]string{"bindir": "/opt"},
			code: 5, says: "bindir /opt holds no program postgres: install PostgreSQL there or correct bindir",
		},
		{
			name: "binaries do not run", break_: func(t *testing.T, in *instance) {
				in.b.must("sh", "-c", `mkdir "$1" && echo '#!/nowhere' >"$1/postgres" && chmod 0755 "$1/postgres"`, "sh", in.b.path("bad bin"))
			},
			params: map[string]string{"bindir": "BOX/bad bin"},
			code:   5, says: "postgres does not run: install it anew or correct bindir",
		},

		// The configuration.
		{
			name: "no postgresql.conf", break_: func(t *testing.T, in *instance) { in.b.must("rm", in.data+"/postgresql.conf") },
			code: 5, says: "no DATA/postgresql.conf: correct pgdata, or put -c config_file=FILE into start_opts",
		},
		{
			name: "recovery.conf", break_: func(t *testing.T, in *instance) { in.write("recovery.conf", "", os.O_TRUNC) },
			code: 5, says: "DATA/recovery.conf: PostgreSQL 15 does not start with it: move its settings to postgresql.conf",
		},
		{
			name: "postgresql.conf with an error", break_: setting("hot_standby", "perhaps"),
			code: 5, says: `parameter "hot_standby" requires a Boolean value`,
		},
		{
			name: "another data_directory", break_: func(t *testing.T, in *instance) { in.set("data_directory", good.data) },
			code: 5, says: "data_directory in the configuration is " + good.data + ", datadir is DATA: correct one of them",
		},
		{
			name: "another socket directory", params: map[string]string{"pghost": "/run/postgresql"},
			code: 5, says: "pghost /run/postgresql is not in unix_socket_directories (",
		},
		{
			name: "no socket directory", params: map[string]string{"pghost": "/run/nowhere"},
			code: 5, says: "socket directory /run/nowhere does not exist: create it for postgres, or correct pghost",
		},
		{
			name: "no primary_conninfo", break_: conninfo(""),
			code: 5, says: "primary_conninfo is not set in DATA/postgresql.conf: this node could not follow another primary",
		},
		{
			name: "no application_name", break_: conninfo("host=/run port=5433 user=postgres"),
			code: 5, says: "primary_conninfo has no application_name: add application_name=n1, the name of this node",
		},
		{
			name: "another application_name", break_: conninfo("host=/run application_name=n2"),
			code: 5, says: `application_name in primary_conninfo is "n2": expected the name of this node, n1`,
		},
		{
			name: "application_name longer than the node's", break_: conninfo("postgresql://u@h:5432/?application_name=n10"),
			code: 5, says: `application_name in primary_conninfo is "n10": expected the name of this node, n1`,
		},
		{
			name: "another cluster_name", break_: func(t *testing.T, in *instance) {
				in.set("primary_conninfo", "host=/run")
				in.set("cluster_name", "main")
			},
			code: 5, says: `cluster_name is "main", and application_name is not set: set it in primary_conninfo to n1, this node's name`,
		},
		{
			name: "wal_level=minimal", break_: func(t *testing.T, in *instance) {
				in.set("wal_level", "minimal")
				in.set("max_wal_senders", "0")
			},
			code: 5, says: "wal_level is minimal, which no standby can follow: set it to replica",
		},
		{
			name: "max_wal_senders=0", break_: setting("max_wal_senders", "0"),
			code: 5, says: "max_wal_senders is 0, no standby could connect: set it to 10",
		},
		{
			name: "fewer connections than the primary had", break_: setting("max_connections", "99"),
			code: 5, says: "max_connections is 99, but the primary had 100 and a standby does not start with less: raise it",
		},
		{
			name: "fewer prepared transactions than the primary had", break_: func(t *testing.T, in *instance) {
				in.set("max_prepared_transactions", "5")
				in.byHand("start")
				in.byHand("stop")
				in.set("max_prepared_transactions", "0")
			},
			code: 5, says: "max_prepared_transactions is 0, but the primary had 5 and a standby does not start with less: raise it",
		},
		{
			name: "hot_standby=off", break_: setting("hot_standby", "off"),
			code: 5, says: "hot_standby is off, a standby could not be asked how far it is: set it to on",
		},
		{
			name: "recovery target", break_: setting("recovery_target_time", "2026-01-01 00:00:00 UTC"),
			code: 5, says: "recovery_target_time is set, recovery would end there and not follow the primary: remove it",
		},
		{
			name: "recovery_target_timeline=current", break_: setting("recovery_target_timeline", "current"),
			code: 5, says: `recovery_target_timeline is "current", a standby could not follow a new primary: set it to latest`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := b.of(t)
			in := good.copyTo(b, fmt.Sprintf("i%d", n))
			if c.break_ != nil {
				c.break_(t, in)
			}
			for k, v := range c.params {
				c.params[k] = strings.ReplaceAll(v, "BOX", b.dir)
			}
			in = in.with(c.params)
			says := strings.ReplaceAll(c.says, "DATA", in.data)
			for _, action := range []string{"validate-all", "start"} {
				r := in.action(action, c.env...)
				if r.code != c.code || !strings.Contains(r.stderr, says) {
					t.Errorf("%s: exit code %d, want %d and %q\n%s", action, r.code, c.code, says, r.stderr)
				}
				if len(r.reason()) > 128 || len(r.reason()) < 20 {
					t.Errorf("%s: the exit reason has %d characters: %q", action, len(r.reason()), r.reason())
				}
			}
			for action, want := range map[string]int{"monitor": 7, "stop": 0} {
				r := in.action(action, append(c.env, "OCF_RESKEY_CRM_meta_timeout=4000")...)
				if r.code != want || r.took > 4*time.Second {
					t.Errorf("%s: exit code %d after %s, want %d within 4 s\n%s", action, r.code, r.took, want, r.stderr)
				}
			}
			if left := in.processes(); len(left) > 0 {
				t.Errorf("these run: %d", left)
			}
		})
	}
}

// Ensure nothing of a parameter reaches a shell: neither of a wrong one, nor of a right one with a name that a shell
// would run.
func TestBadInput_NoShell(t *testing.T) {
	t.Parallel()
	b := newBox(t, boxOptions{})
	const trap = "$(touch /run/trap)`touch /run/trap`;touch /run/trap;'\" &"
	sprung := func(after string) {
		t.Helper()
		if b.exec(nil, "test", "-e", "/run/trap").code == 0 {
			t.Fatalf("after %s: a shell has seen it", after)
		}
	}
	good := b.newInstance("good")
	for _, name := range []string{"system_user", "bindir", "pgdata", "datadir", "pghost", "pgport", "start_opts", "maxlag", "logfile"} {
		for _, value := range []string{trap, "/" + trap} {
			in := good.with(map[string]string{name: value})
			for _, action := range []string{"validate-all", "monitor", "stop", "reload-agent"} {
				in.action(action)
				sprung(action + " with " + name)
			}
		}
	}
	in := good.copyTo(b, "$(touch /run/trap);'")
	in.params["start_opts"] = `-c log_line_prefix='$(touch /run/trap)' -c "work_mem=1 MB"`
	as("validate-all", "start", "monitor", "promote", "demote", "stop")(t, in)
	sprung("a life of " + in.data)
	if !strings.Contains(in.serverLog(), "$(touch /run/trap)") {
		t.Errorf("start_opts did not arrive as they were written: %s", in.serverLog())
	}
}

// Ensure no password of the configuration is in anything that the agent says or keeps.
func TestBadInput_Passwords(t *testing.T) {
	t.Parallel()
	b := newBox(t, boxOptions{})
	good := b.newInstance("good")
	const secret = "sEcr3t"
	for n, conninfo := range []string{
		"host=/run password=" + secret + " application_name=n1",
		"host=/run password=" + secret + " application_name=n2",
		"host=/run password='" + secret + " application_name=n2",
		"host=/run password = a " + secret + " application_name=n1",
		"postgresql://u:" + secret + "@h/?application_name=n2",
		"postgresql://u:" + secret + "@h/?application_name=n1&password=" + secret,
	} {
		in := good.copyTo(b, fmt.Sprintf("i%d", n))
		in.set("primary_conninfo", conninfo)
		said := ""
		for _, action := range []string{"validate-all", "start", "monitor", "promote", "demote", "monitor", "stop"} {
			r := in.action(action)
			said += r.stdout + r.stderr
		}
		for param, value := range map[string]string{
			"pghost": "host=x password=" + secret, "start_opts": "-c 'primary_conninfo=password=" + secret,
		} {
			r := in.with(map[string]string{param: value}).action("validate-all")
			if r.code != 2 {
				t.Errorf("%s=%s: exit code %d, want 2\n%s", param, value, r.code, r.stderr)
			}
			said += r.stderr
		}
		said += in.agentLog()
		said += b.must("sh", "-c", `find /run/pgbaton /var/lib/pgbaton -type f -exec cat {} +`)
		if !strings.Contains(said, "start") {
			t.Fatalf("nothing was said: %s", said)
		}
		if i := strings.Index(said, secret); i >= 0 {
			t.Errorf("%s: the password stands in: %s", conninfo, said[max(0, i-200):i+len(secret)])
		}
	}
}

// Ensure Debian's layout works, where postgresql.conf lies in a directory of its own, pg_hba.conf asks for peer
// authentication, and three ways of describing it are reasonable.
//
// Trap 28: Debian's layout.
func TestBadInput_DebianLayout(t *testing.T) {
	t.Parallel()
	b := newBox(t, boxOptions{})
	good := b.newInstance("good")
	for n, params := range []map[string]string{
		{"pgdata": "CONF"},
		{"pgdata": "CONF", "datadir": "DATA"},
		{"pgdata": "DATA", "start_opts": `-c config_file="CONF/postgresql.conf"`},
	} {
		in := good.copyTo(b, fmt.Sprintf("i%d", n))
		conf := filepath.Join(filepath.Dir(in.data), "etc 15 main")
		b.must("install", "-d", "-o", "postgres", "-g", "postgres", conf)
		for _, f := range []string{"postgresql.conf", "pg_hba.conf", "pg_ident.conf"} {
			b.must("mv", filepath.Join(in.data, f), filepath.Join(conf, f))
		}
		for name, lines := range map[string]string{
			"postgresql.conf": fmt.Sprintf("data_directory = '%s'\nhba_file = '%s/pg_hba.conf'\nident_file = '%s/pg_ident.conf'\n", in.data, conf, conf),
			"pg_hba.conf":     "local all postgres peer\nlocal replication postgres peer\n",
		} {
			path := filepath.Join(conf, name)
			old, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if name == "pg_hba.conf" {
				old = nil
			}
			if err := os.WriteFile(path, append(old, lines...), 0); err != nil { // the file is there
				t.Fatal(err)
			}
		}
		for k, v := range params {
			params[k] = strings.NewReplacer("CONF", conf, "DATA", in.data).Replace(v)
		}
		in = in.with(params)
		t.Logf("%v", params)
		as("validate-all", "start", "monitor", "promote")(t, in)
		in.expect(8, "monitor")
		as("demote", "monitor", "promote", "demote", "stop")(t, in)
		in.expect(7, "monitor")
	}
}
