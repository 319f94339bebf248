package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

type upCmd struct {
	Nodes        int               `default:"3" help:"Number of nodes, 2 to 5."`
	Agent        string            `default:"pgsqlms" enum:"pgsqlms,pgbaton,none" help:"Agent under test: pgsqlms (Debian's) or pgbaton; none: plain streaming replication, of which Pacemaker knows nothing."`
	AgentBinary  string            `type:"path" help:"The pgbaton agent (default: pgbaton-agent beside this program)."`
	Param        map[string]string `short:"p" mapsep:"none" help:"Resource parameter name=value, over the defaults. May repeat."`
	Op           map[string]string `mapsep:"none" help:"Operation, for example promote=on-fail:demote,timeout:30s or monitor-promoted=interval:5s. May repeat."`
	Meta         map[string]string `mapsep:"none" help:"Meta attribute of the clone name=value. May repeat."`
	Property     map[string]string `mapsep:"none" help:"Cluster property name=value. May repeat."`
	Set          map[string]string `short:"s" mapsep:"none" help:"Setting of postgresql.conf name=value. May repeat."`
	Direct       bool              `help:"Standbys connect to the nodes, not to the virtual IP."`
	Bindir       string            `type:"path" help:"PostgreSQL's programs (default: newest below /usr/lib/postgresql)."`
	Layout       string            `default:"datadir" enum:"datadir,debian" help:"Where postgresql.conf is: datadir or debian (/etc/postgresql)."`
	Scram        bool              `help:"Replication with a password instead of trust."`
	Slots        bool              `help:"Standbys use physical replication slots."`
	LogicalWAL   bool              `help:"wal_level=logical."`
	WALSegmentMB int               `name:"wal-segment-mb" default:"16" help:"Size of a WAL segment in MB."`
	Token        time.Duration     `default:"1s" help:"Corosync's token time-out."`
	AutoReturn   time.Duration     `help:"A node fenced by reboot is powered on again after this time (default: stays off)."`
	Wrap         bool              `help:"Record each action's environment below /var/log/pgbaton-lab/actions in the nodes."`
	File         map[string]string `mapsep:"none" help:"Copy a file into every node: PATH-IN-NODE=PATH. May repeat."`
	Replace      bool              `help:"Take down a running lab of this name first."`
}

func (u upCmd) Run(ctx context.Context, c *common) error {
	ops, err := parseOps(u.Op)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	_, err = lab.Up(ctx, lab.Options{
		Name: c.Name, Dir: c.Dir, Nodes: u.Nodes,
		Agent: u.Agent, AgentBinary: u.AgentBinary,
		Params: u.Param, Ops: ops, Meta: u.Meta, Properties: u.Property,
		Token: u.Token, Direct: u.Direct, Bindir: u.Bindir, Layout: u.Layout,
		Conf: u.Set, Scram: u.Scram, Slots: u.Slots, LogicalWAL: u.LogicalWAL,
		WALSegMB: u.WALSegmentMB, Files: u.File, Wrap: u.Wrap,
		AutoReturn: u.AutoReturn, Replace: u.Replace, Log: os.Stdout,
	})
	return err
}

// parseOps reads promote=on-fail:demote,timeout:30s.
func parseOps(m map[string]string) (map[string]lab.Op, error) {
	ops := map[string]lab.Op{}
	for name, text := range m {
		var op lab.Op
		for part := range strings.SplitSeq(text, ",") {
			key, value, _ := strings.Cut(part, ":")
			switch key {
			case "interval":
				op.Interval = value
			case "timeout":
				op.Timeout = value
			case "on-fail":
				op.OnFail = value
			default:
				return nil, fmt.Errorf("--op %s=%s: expected interval:, timeout: or on-fail:, found %q", name, text, part)
			}
		}
		ops[name] = op
	}
	return ops, nil
}

type downCmd struct{}

func (downCmd) Run(ctx context.Context, c *common) error {
	l, err := lab.OpenDead(c.Name, c.Dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := l.Down(ctx); err != nil {
		return err
	}
	fmt.Printf("lab %s is gone: no process, mount or file of it is left\n", l.Name)
	return nil
}
