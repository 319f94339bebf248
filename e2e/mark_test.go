package e2e

import (
	"syscall"
	"testing"
	"time"
)

// Ensure a node that is kept out has its mark and its -INFINITY in the CIB when it counts as started there, however slow
// Pacemaker's attribute manager is: the result of the start comes there by another way.
func TestMarkBeforeStarted(t *testing.T) {
	c := rejoinCluster(t)
	s := c.begin(t, 5*time.Minute, true)
	s.setRewind(rewindConninfo)
	old := s.old
	s.takeOverFrom(old)
	w := s.watchOut(old)
	s.must(s.lab.Power(s.ctx, old, true)) // it takes some seconds to join the cluster
	s.pause(old, "start/keep-out after", func() {}, func() {
		// One of them writes what all of them are told.
		for _, n := range s.others {
			attrd := s.attrd(n)
			s.must(syscall.Kill(attrd, syscall.SIGSTOP))
			time.AfterFunc(3*time.Second, func() { syscall.Kill(attrd, syscall.SIGCONT) })
		}
	})
	s.keptOut(old, `^diverged: its WAL of timeline \d+ ends at`)
	s.rewound(old)
	w.end()
	s.finishRejoined(old)
}
