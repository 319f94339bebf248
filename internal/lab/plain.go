package lab

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// startPlain starts PostgreSQL as people do who have no cluster manager: by pg_ctl, the first node's as the primary, which
// has the virtual IP by hand. Pacemaker runs beside it and knows nothing of it.
func (l *Lab) startPlain(ctx context.Context) error {
	if err := l.waitMembers(ctx); err != nil {
		return err
	}
	if _, err := l.Run(ctx, l.Names[0], "ip", "address", "add", VIP+"/24", "dev", "eth0"); err != nil {
		return err
	}
	for _, n := range l.Names {
		argv := []string{l.Bindir + "/pg_ctl", "start", "--wait", "--silent", "--log", "/var/log/postgresql/startup.log", "--pgdata", l.DataDir()}
		if l.Layout == "debian" {
			argv = append(argv, "--options", "-c config_file="+l.ConfDir()+"/postgresql.conf")
		}
		cmd, err := l.CommandAs(ctx, n, "postgres", argv...)
		if err != nil {
			return err
		}
		// A pipe would be held open by the server.
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("on %s: %s: %w", n, strings.Join(argv, " "), err)
		}
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	return Poll(ctx, 200*time.Millisecond, func() error { return l.allStream(ctx, l.Names[0]) })
}
