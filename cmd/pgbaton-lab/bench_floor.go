package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/load"
)

// floor measures the same by hand: stop, see that the standby has the shutdown checkpoint, promote, move the address.
// No agent and no cluster manager takes part, nothing is written down: less is not possible. The lab is of no use
// afterwards.
func floor(ctx context.Context, l *lab.Lab, n, clients int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(n)*time.Minute+time.Minute)
	defer cancel()
	primary, err := l.WaitPromoted(ctx, "")
	if err != nil {
		return err
	}
	if _, err := l.Run(ctx, primary, "crm_attribute", "-n", "maintenance-mode", "-v", "true"); err != nil {
		return err
	}
	if err := l.WaitIdle(ctx); err != nil {
		return err
	}
	var list []float64
	for range n {
		to := l.Names[(slices.Index(l.Names, primary)+1)%len(l.Names)]
		gap, err := byHand(ctx, l, primary, to, clients)
		if err != nil {
			return err
		}
		list = append(list, ms(gap))
		primary = to
	}
	fmt.Printf("the floor: by hand, without a cluster manager, ms: median %.0f, min %.0f, max %.0f, n %d\n\n",
		lab.Median(list), slices.Min(list), slices.Max(list), n)
	return nil
}

func byHand(ctx context.Context, l *lab.Lab, from, to string, clients int) (time.Duration, error) {
	begin, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	run, err := load.Start(begin, l, load.Options{Clients: clients})
	if err != nil {
		return 0, err
	}
	defer run.Stop()
	toRoot, err := l.Root(to)
	if err != nil {
		return 0, err
	}
	target, err := pgx.Connect(ctx, "host="+toRoot+"/run/postgresql user=load dbname=load sslmode=disable application_name=floor")
	if err != nil {
		return 0, err
	}
	defer target.Close(ctx)
	sleep(ctx, time.Second)
	if _, err := l.SQL(ctx, from, "CHECKPOINT"); err != nil {
		return 0, err
	}
	start := time.Now()
	if err := l.SignalPostgres(from, syscall.SIGINT, false); err != nil {
		return 0, err
	}
	if err := stopProvePromote(ctx, l, from, to, target); err != nil {
		return 0, err
	}
	if err := run.AwaitAck(ctx); err != nil {
		return 0, err
	}
	sleep(ctx, 500*time.Millisecond)
	report := run.Stop()
	if err := report.Err(); err != nil {
		return 0, err
	}
	return report.LongestGap(start, time.Now()).Duration(), backByHand(ctx, l, from, to)
}

// stopProvePromote goes on after the signal for a fast shutdown.
func stopProvePromote(ctx context.Context, l *lab.Lab, from, to string, target *pgx.Conn) error {
	fromRoot, err := l.Root(from)
	if err != nil {
		return err
	}
	toRoot, err := l.Root(to)
	if err != nil {
		return err
	}
	var checkpoint uint64
	err = lab.Poll(ctx, time.Millisecond, func() error {
		b, err := os.ReadFile(filepath.Join(fromRoot, l.DataDir(), "global", "pg_control"))
		if err != nil || len(b) < 40 {
			return lab.NotYet("pg_control of %s: %v", from, err)
		}
		// state and checkPoint in src/include/catalog/pg_control.h; 1 is DB_SHUTDOWNED.
		if state := binary.LittleEndian.Uint32(b[16:]); state != 1 {
			return lab.NotYet("%s is not shut down: state %d", from, state)
		}
		checkpoint = binary.LittleEndian.Uint64(b[32:])
		return nil
	})
	if err != nil {
		return err
	}
	err = lab.Poll(ctx, time.Millisecond, func() error {
		var has bool
		lsn := fmt.Sprintf("%X/%X", checkpoint>>32, checkpoint&0xFFFFFFFF)
		if err := target.QueryRow(ctx, "SELECT pg_last_wal_receive_lsn() > $1::text::pg_lsn", lsn).Scan(&has); err != nil {
			return err
		}
		if !has {
			return lab.NotYet("%s has not received %s", to, lsn)
		}
		return nil
	})
	if err != nil {
		return err
	}
	address := make(chan error, 1)
	go func() {
		_, err := l.Run(ctx, from, "ip", "addr", "del", lab.VIP+"/24", "dev", "eth0")
		if err == nil {
			_, err = l.Run(ctx, to, "ip", "addr", "add", lab.VIP+"/24", "dev", "eth0")
		}
		if err == nil {
			// So that the others do not go on sending to the old node.
			_, err = l.Run(ctx, to, "/usr/libexec/heartbeat/send_arp", "-i", "50", "-r", "1", "eth0", lab.VIP, "auto", "not_used", "not_used")
		}
		address <- err
	}()
	if err := os.WriteFile(filepath.Join(toRoot, l.DataDir(), "promote"), nil, 0o600); err != nil {
		return err
	}
	if err := l.SignalPostgres(to, syscall.SIGUSR1, false); err != nil {
		return err
	}
	err = lab.Poll(ctx, time.Millisecond, func() error {
		var in bool
		if err := target.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&in); err != nil {
			return err
		}
		if in {
			return lab.NotYet("%s is not writable", to)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return <-address
}

// backByHand starts the old primary as a standby, and waits until all standbys stream.
func backByHand(ctx context.Context, l *lab.Lab, node, primary string) error {
	err := lab.Poll(ctx, 10*time.Millisecond, func() error {
		if pid, err := l.Postmaster(node); err == nil {
			return lab.NotYet("the old postmaster of %s still runs: %d", node, pid)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, argv := range [][]string{
		{"touch", l.DataDir() + "/standby.signal"},
		{filepath.Join(l.Bindir, "pg_ctl"), "-D", l.DataDir(), "-l", "/var/log/postgresql/by-hand.log", "-w", "start"},
	} {
		cmd, err := l.CommandAs(ctx, node, "postgres", argv...)
		if err != nil {
			return err
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s on %s: %w: %s", argv[0], node, err, out)
		}
	}
	// The cluster, in maintenance, does not know who is primary.
	return lab.Poll(ctx, 50*time.Millisecond, func() error {
		out, err := l.SQL(ctx, primary, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")
		if err != nil {
			return err
		}
		if strings.TrimSpace(out) != strconv.Itoa(len(l.Names)-1) {
			return lab.NotYet("%s standbys stream from %s, expected %d", strings.TrimSpace(out), primary, len(l.Names)-1)
		}
		return nil
	})
}
