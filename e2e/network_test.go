package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// Ensure the cluster survives what becomes of its network, by the numbers in the list of scenarios.
func TestNetwork(t *testing.T) {
	tell(t, "failure", failing(), 3*time.Minute, []story{
		{"48 primary isolated", primaryIsolated},
		{"49 standby isolated", standbyIsolated},
		{"50 primary and standby cut from each other", pairCut},
		{"51 the primary is heard, and hears nothing", primaryDeaf},
		{"51 the primary hears, and is not heard", primaryMute},
		{"52 packets are lost", packetsLost},
	})
}

func primaryIsolated(s *scenario) {
	was := s.timeline(s.old)
	s.load.Mark("cut")
	began := time.Now()
	s.must(s.lab.Cut(s.ctx, lab.Link{From: s.old, To: "*"}))
	s.must(s.lab.Cut(s.ctx, lab.Link{From: s.old, To: lab.Client}))
	now := s.newPrimary(was, "")
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("%s is primary", now)
	if at, ok := s.fencedAt(s.old); ok {
		s.t.Logf("fenced after %.2f s", at.Sub(began).Seconds())
	}
	s.must(s.lab.HealAll(s.ctx))
	s.onlyFenced(s.old)
	s.returned(s.old, now)
	s.takenOver(now, was, "cut", s.lab.LossSeen()+here(lossLimit))
}

func standbyIsolated(s *scenario) {
	node, was := s.others[0], s.timeline(s.old)
	s.load.Mark("cut")
	s.must(s.lab.Cut(s.ctx, lab.Link{From: node, To: "*"}))
	s.await(roleLimit, func() error {
		if _, ok := s.fencedAt(node); !ok {
			return lab.NotYet("%s has not been fenced", node)
		}
		return nil
	})
	s.stage("%s is fenced", node)
	s.must(s.lab.HealAll(s.ctx))
	s.onlyFenced(node)
	s.returned(node, s.old)
	s.streaming()
	s.sameServer(was, "cut")
}

// pairCut cuts the primary and a standby from each other; the third node sees both.
func pairCut(s *scenario) {
	s.load.Mark("cut")
	s.must(s.lab.Cut(s.ctx, lab.Link{From: s.old, To: s.others[0]}))
	s.settles("cut", false)
}

func primaryDeaf(s *scenario) {
	s.load.Mark("cut")
	for _, n := range s.others {
		s.must(s.lab.Cut(s.ctx, lab.Link{From: n, To: s.old, OneWay: true}))
	}
	s.settles("cut", false)
}

func primaryMute(s *scenario) {
	s.load.Mark("cut")
	for _, n := range s.others {
		s.must(s.lab.Cut(s.ctx, lab.Link{From: s.old, To: n, OneWay: true}))
	}
	s.settles("cut", false)
}

// settles waits, with links cut, until clients can write, whoever is primary; then heals, and waits until all is well. Where
// the links are only lossy the primary may stay although Corosync lost a standby, which is then fenced.
func (s *scenario) settles(mark string, lossy bool) {
	s.t.Helper()
	was, began := s.timeline(s.old), time.Now()
	time.Sleep(8 * time.Second)
	s.must(s.load.AwaitAck(s.within(roleLimit)))
	s.stage("clients write, fenced: %v", s.fencedSince())
	s.must(s.lab.HealAll(s.ctx))
	now := s.promoted("")
	s.stage("healed, %s is primary", now)
	for _, n := range s.lab.Names {
		if n != now {
			s.returned(n, now)
		}
	}
	now = s.promoted("")
	if s.timeline(now) == was {
		fenced := s.fencedSince()
		if lossy && len(fenced) > 0 && !slices.ContainsFunc(fenced, func(n string) bool { return !s.lostByCorosync(n, began) }) {
			s.stage("Corosync had lost those that were fenced: %v", fenced)
			s.fenced = fencings(s.t, s.lab)
		}
		s.finish()
		return
	}
	s.takenOver(now, was, mark, 0)
}

// lostByCorosync tells whether another node's Corosync has seen a node leave since then.
func (s *scenario) lostByCorosync(node string, since time.Time) bool {
	s.t.Helper()
	left := regexp.MustCompile(`(?m)^(\w+ +\d+ [0-9:.]+) .*Sync left\[\d+\]:(.*)$`)
	id := strconv.Itoa(1 + slices.Index(s.lab.Names, node))
	for _, n := range s.lab.Names {
		log, err := os.ReadFile(filepath.Join(s.lab.Dir, "nodes", n, "log/corosync/corosync.log"))
		s.must(err)
		for _, m := range left.FindAllStringSubmatch(string(log), -1) {
			at, err := time.ParseInLocation("2006 Jan _2 15:04:05.000", strconv.Itoa(since.Year())+" "+m[1], time.Local)
			s.must(err)
			if n != node && !at.Before(since) && slices.Contains(strings.Fields(m[2]), id) {
				return true
			}
		}
	}
	return false
}

// sameServer ends a scenario in which the primary should have stayed, and clients noticed nothing.
func (s *scenario) sameServer(was uint32, mark string) {
	s.t.Helper()
	r := s.stopLoad()
	if now := s.timeline(s.old); now != was {
		s.t.Errorf("%s writes timeline %d, before it was %d", s.old, now, was)
	}
	s.outage(r, mark, here(blinkLimit))
	s.primaryIs(s.old)
	s.sameRows()
}

// packetsLost loses one packet of twenty between all nodes. With a token of one second that is more than Corosync bears,
// and nodes come and go; whatever comes of it, no row is lost that was replicated, and the cluster heals.
func packetsLost(s *scenario) {
	for i, n := range s.lab.Names {
		for _, m := range s.lab.Names[i+1:] {
			s.must(s.lab.Cut(s.ctx, lab.Link{From: n, To: m, Loss: 5}))
		}
	}
	s.load.Mark("loss")
	s.settles("loss", true)
}
