package load

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// run of successes of a prober; times count from the begin of the run.
type streak struct {
	n         int
	firstSend time.Duration
	firstAck  time.Duration
	lastSend  time.Duration
	lastAck   time.Duration
}

// certain is the time in which the node was writable beyond doubt, assuming that a
// node that wrote twice without failing between was writable between. A streak of one
// has none: its instant lies somewhere between sending and acknowledgement.
func (s streak) certain() (from, to time.Duration, ok bool) {
	return s.firstAck, s.lastSend, s.lastSend >= s.firstAck
}

// overlap returns the time in which two streaks prove two writable nodes.
func overlap(a, b streak) (from, to time.Duration, ok bool) {
	af, at, aok := a.certain()
	bf, bt, bok := b.certain()
	switch {
	case aok && bok:
		from, to = max(af, bf), min(at, bt)
		return from, to, from <= to
	case aok:
		return b.firstSend, b.lastAck, af <= b.firstSend && b.lastAck <= at
	case bok:
		return a.firstSend, a.lastAck, bf <= a.firstSend && a.lastAck <= bt
	}
	return 0, 0, false
}

// prober tries to write on one node, on the node's own socket.
type prober struct {
	run     *Run
	node    string
	streaks []streak
	open    bool // the last streak has not ended
}

func (p *prober) loop(ctx context.Context) {
	var conn *pgx.Conn
	every := p.run.o.ProbeEvery
	wait := patience{least: max(4*every, 200*time.Millisecond)}
	next := time.Now()
	for ctx.Err() == nil {
		next = next.Add(every)
		if now := time.Now(); next.Before(now) {
			next = now
		}
		pause(ctx, time.Until(next))
		probe, cancel := context.WithTimeout(ctx, wait.limit())
		var err error
		if conn == nil {
			conn, err = p.connect(probe)
		}
		if err == nil {
			send := time.Since(p.run.begin)
			_, err = conn.Exec(probe, "INSERT INTO probed (node) VALUES ($1) ON CONFLICT (node) DO UPDATE SET n = probed.n + 1", p.node)
			if err == nil {
				p.success(send, time.Since(p.run.begin))
			}
		}
		cancel()
		wait.learn(err, true)
		if err == nil {
			continue
		}
		p.open = false
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "25006" && conn != nil {
			continue // a standby says so on a connection that stays good
		}
		if conn != nil {
			abandon(conn)
			conn = nil
		}
		// A server that is down or stopped must not be kept busy by the prober.
		pause(ctx, every)
	}
	if conn != nil {
		abandon(conn)
	}
}

func (p *prober) success(send, ack time.Duration) {
	if !p.open {
		p.open = true
		p.streaks = append(p.streaks, streak{firstSend: send, firstAck: ack})
	}
	s := &p.streaks[len(p.streaks)-1]
	s.n++
	s.lastSend, s.lastAck = send, ack
}

func (p *prober) connect(ctx context.Context) (*pgx.Conn, error) {
	root, err := p.run.lab.Root(p.node)
	if err != nil {
		return nil, err
	}
	// Not /var/run: that is an absolute link, and would lead to the host's.
	conf, err := pgx.ParseConfig("host=" + root + "/run/postgresql user=load dbname=load sslmode=disable application_name=prober")
	if err != nil {
		return nil, err
	}
	// The prober asks whether the node can write, not whether others have received it.
	conf.RuntimeParams["synchronous_commit"] = "local"
	return pgx.ConnectConfig(ctx, conf)
}

// heartbeat measures how late this process is woken: a starved machine makes outages
// that are not the cluster's.
type heartbeat struct {
	over []time.Duration
}

func (h *heartbeat) loop(ctx context.Context) {
	const sleep = 10 * time.Millisecond
	for ctx.Err() == nil {
		before := time.Now()
		time.Sleep(sleep)
		h.over = append(h.over, time.Since(before)-sleep)
	}
}
