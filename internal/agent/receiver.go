package agent

import (
	"context"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pgbaton/pgbaton/internal/postgres"
)

// How long a WAL receiver may take to connect before it counts as stuck: longer each time in a row, for where a
// connection simply takes its time (a name server that does not answer).
const (
	receiverPatience    = 4 * time.Second
	receiverPatienceMax = 2 * time.Minute
)

// silentHost is how long Linux waits for a host that does not answer (net.ipv4.tcp_syn_retries, 127 s by default), rounded up.
const silentHost = 130 * time.Second

// patience is how long a WAL receiver may take to connect. Where it has several hosts to try, another receiver would begin with
// the same one again, and never come to those after it.
func (c *connecting) patience(conninfo string) time.Duration {
	if n := len(postgres.ConninfoHosts(conninfo)); n > 1 {
		return time.Duration(n) * silentHost
	}
	return min(receiverPatience<<min(c.ended, 5), receiverPatienceMax)
}

// connecting is a WAL receiver that does not stream yet.
type connecting struct {
	process postgres.Process
	since   time.Time // when it was first seen so
	ended   int       // how many in a row were ended
}

// isKind reports whether a title is that of the server's one process of a kind: it goes on with nothing, or with one of its states. That
// of a client who is called so goes on with a database.
func isKind(title, kind string, states ...string) bool {
	word, rest, _ := strings.Cut(title, " ")
	state, _, _ := strings.Cut(rest, " ")
	return word == kind && (state == "" || slices.Contains(states, state))
}

// receives knows the WAL receiver (src/backend/replication/walreceiver.c).
func receives(title string) bool {
	return isKind(title, "walreceiver", "streaming", "idle", "restarting")
}

// unstick ends a WAL receiver that hangs in connecting: the server starts another one. It happens when the virtual IP
// moves away between its request and the answer: nobody is left who would even refuse it, and libpqrcv_connect
// (src/backend/replication/libpqwalreceiver) waits without a limit; wal_receiver_timeout only counts from then on.
func (a *Agent) unstick(ctx context.Context, pm postgres.Postmaster, c *connecting) {
	found := false
	for p, title := range pm.Children() {
		if !receives(title) || strings.Contains(title, "streaming") {
			continue
		}
		found = true
		if c.process != p {
			c.process, c.since = p, a.clock.Now()
		}
	}
	if !found {
		c.process = postgres.Process{}
		for _, title := range pm.Children() {
			if receives(title) { // it streams
				c.ended = 0
			}
		}
		return
	}
	if waited := a.clock.Now().Sub(c.since); waited < receiverPatience || waited < c.patience(a.pg.Settings()["primary_conninfo"]) {
		return
	}
	c.since = a.clock.Now() // whatever comes of it, not again at once
	c.ended++
	brief, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	sess, err := a.pg.Connect(brief)
	if err != nil {
		return
	}
	defer sess.Close()
	// update_process_title may be off: then the title never says so.
	if v, err := sess.Standby(brief); err != nil || v.Streaming {
		return
	}
	a.log.Warn("the WAL receiver hangs in connecting: ending it, the server starts another one", "pid", c.process.PID)
	if err := a.do("end-receiver", func() error { return c.process.Signal(syscall.SIGTERM) }); err != nil {
		a.log.Warn("WAL receiver", "error", err)
	}
}
