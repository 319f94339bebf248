package journal

import (
	"testing"
	"time"
)

// Ensure a rewind is never taken to have begun later than it did, however the clock was set meanwhile, on this boot or by a boot in between.
func TestRewind_Since(t *testing.T) {
	now := time.Now()
	r := Rewind{}
	r.Stamp(now)
	for _, tt := range []struct {
		name  string
		began time.Duration // by the clock of that time, against now
		ago   float64       // seconds of uptime
		boot  string
		least time.Duration // not later than this, against now
		most  time.Duration // nor earlier than this
	}{
		{"a minute ago", -time.Minute, 60, r.Boot, -time.Minute, -time.Minute - 3*time.Second},
		{"its clock was two hours ahead, and was set back", 2*time.Hour - time.Minute, 60, r.Boot, -time.Minute, -time.Minute - 3*time.Second},
		{"its clock was two hours behind", -2*time.Hour - time.Minute, 60, r.Boot, -2*time.Hour - time.Minute, -2*time.Hour - time.Minute - 3*time.Second},
		{"another boot", -time.Hour, 0, "other", -24 * time.Hour, -26 * time.Hour},
		{"another boot, and the clock is far behind what it was", 48 * time.Hour, 0, "other", -1000 * time.Hour, -1e18},
		{"of an earlier release", -time.Hour, 0, "", -24 * time.Hour, -26 * time.Hour},
	} {
		m := Rewind{Began: now.Add(tt.began), Boot: tt.boot, Up: r.Up - tt.ago}
		since := m.Since(now).Sub(now)
		if m.Since(now).IsZero() {
			since = -1e17
		}
		if since > tt.least || since < tt.most {
			t.Errorf("%s: since %s from now; want between %s and %s", tt.name, since, tt.most, tt.least)
		}
	}
}
