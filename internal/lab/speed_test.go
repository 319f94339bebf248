package lab

import (
	"testing"
	"time"
)

// Ensure a machine that is somewhat slower than a common one is held to the same limits.
func TestSlowness(t *testing.T) {
	for start, want := range map[time.Duration]float64{4 * time.Millisecond: 1, 12 * time.Millisecond: 1, 20 * time.Millisecond: 2.5} {
		if got := slowness(start); got != want {
			t.Errorf("a start of %s: %.2f, want %.2f", start, got, want)
		}
	}
}
