package baton_test

import (
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// Ensure a server is called hung only after one and the same wait, without any progress, seen often and long enough.
func TestStall(t *testing.T) {
	look := func(pid int, flushed, switches uint64) *baton.Evidence {
		return &baton.Evidence{PID: pid, Flushed: pgdisk.LSN(flushed), Switches: switches}
	}
	every := func(d time.Duration, looks ...*baton.Evidence) *baton.Stall {
		var s *baton.Stall
		at := time.Unix(1000, 0)
		for _, e := range looks {
			if e != nil {
				e.At = at
			}
			s = s.Add(e)
			at = at.Add(d)
		}
		return s
	}
	times := func(n int, e func(i int) *baton.Evidence) (list []*baton.Evidence) {
		for i := range n {
			list = append(list, e(i))
		}
		return list
	}
	same := func(int) *baton.Evidence { return look(7, 100, 3) }
	for _, tt := range []struct {
		name  string
		stall *baton.Stall
		hung  bool
	}{
		{"31 s, the same wait", every(time.Second, times(32, same)...), true},
		{"29 s, the same wait", every(time.Second, times(30, same)...), false},
		{"45 s, four looks", every(15*time.Second, times(4, same)...), false},
		{"60 s, five looks", every(15*time.Second, times(5, same)...), true},
		{"looks too far apart", every(21*time.Second, times(20, same)...), false},
		{"a byte of WAL now and then", every(time.Second, times(60, func(i int) *baton.Evidence { return look(7, 100+uint64(i/20), 3) })...), false},
		{"another backend each time", every(time.Second, times(60, func(i int) *baton.Evidence { return look(i, 100, 3) })...), false},
		{"the process was scheduled meanwhile", every(time.Second, times(60, func(i int) *baton.Evidence { return look(7, 0, uint64(i/20)) })...), false},
		{"nothing to be seen once", every(time.Second, append(append(times(20, same), nil), times(20, same)...)...), false},
		{"nothing to be seen at last", every(time.Second, append(times(40, same), nil)...), false},
	} {
		if got := tt.stall.Hung(); got != tt.hung {
			t.Errorf("%s: hung %t, expected %t (%+v)", tt.name, got, tt.hung, tt.stall)
		}
	}
}
