package agent

import (
	"context"
	"net/netip"
	"strings"
	"syscall"

	"github.com/pgbaton/pgbaton/internal/postgres"
)

const (
	// lostAfter is for how many looks in a row an address must be away to count as lost.
	lostAfter = 2
	// forgottenAfter is for how many until it is looked for no more: nobody connects by an address that is not here, and to
	// list connections is to walk the kernel's table of all of them.
	forgottenAfter = 30
)

// addresses are those that this node has or had since its sentinel began to look: for how many looks each has been away.
type addresses map[netip.Addr]int

// look counts one more look. It returns those that this node has now, and whether any is lost.
func (l addresses) look() (own map[netip.Addr]bool, lost bool, err error) {
	own, err = postgres.OwnAddresses()
	if err != nil {
		return nil, false, err
	}
	for a := range own {
		l[a] = 0
	}
	for a := range l {
		if own[a] {
			continue
		}
		if l[a]++; l[a] > forgottenAfter {
			delete(l, a)
			continue
		}
		lost = lost || l.lost(a)
	}
	return own, lost, nil
}

func (l addresses) lost(a netip.Addr) bool { return l[a] >= lostAfter }

// endStranded ends the server processes of a standby whose peers were cut off when the virtual IP left this node.
//
// An old primary starts as a standby while the address is still there. Clients and the other standbys, which connect through
// it, are its own for a moment; then the address goes, and nobody tells either side. A client's process waits for the next
// statement until TCP gives up, for hours, and holds one of max_connections, which clients miss when the role comes back
// here. A WAL sender, at the end of the old timeline, has sent all that it has and waits for the goodbye in a loop without a
// pause (WalSndLoop in src/backend/replication/walsender.c): a processor each, until wal_sender_timeout.
//
// That an address is not on an interface does not say that it is lost: a kernel can be told to serve others. It must have
// been there; or, for WAL senders, when this sentinel is younger than that, the connection must have something to say and get
// no answer.
func (a *Agent) endStranded(ctx context.Context, pm postgres.Postmaster, l addresses) {
	own, lost, err := l.look()
	if err != nil || !a.pg.HasStandbySignal() {
		return // a primary loses the address only together with its role
	}
	senders := map[postgres.Process]bool{}
	for p, title := range pm.Children() {
		if strings.HasPrefix(title, "walsender") {
			senders[p] = true
		}
	}
	if !lost && len(senders) == 0 {
		return
	}
	cut := pm.Connected(func(c postgres.Connection) bool {
		addr := c.Local.Addr()
		return l.lost(addr) || c.Unanswered && !own[addr] && !addr.IsLoopback()
	})
	ended := map[netip.Addr]int{}
	for p, c := range cut {
		addr := c.Local.Addr()
		if ctx.Err() != nil || !senders[p] && !l.lost(addr) {
			continue
		}
		if err := a.do("end-stranded", func() error { return p.Signal(syscall.SIGTERM) }); err != nil {
			a.log.Warn("a server process that is connected by an address which this node has lost goes on", "pid", p.PID, "error", err)
			continue
		}
		ended[addr]++
	}
	for addr, n := range ended {
		a.log.Info("this node has lost an address: ending the server processes that are connected by it", "address", addr, "processes", n)
	}
}
