package agent

import (
	"testing"
	"time"
)

// Ensure a WAL receiver that has several hosts to try is left to try them all: the next one would begin with the first again.
func TestConnecting_Patience(t *testing.T) {
	for _, tt := range []struct {
		conninfo string
		ended    int
		want     time.Duration
	}{
		{"host=10.0.0.9 user=replicator", 0, 4 * time.Second},
		{"host=10.0.0.9 user=replicator", 2, 16 * time.Second},
		{"host=10.0.0.9 user=replicator", 9, 2 * time.Minute},
		{"host=n2,n3 user=replicator", 0, 260 * time.Second},
		{"host=n2,n3 hostaddr=10.0.0.2,10.0.0.3", 3, 260 * time.Second},
		{"postgresql://replicator@n2:5432,n3:5433,n4/", 0, 390 * time.Second},
		{"service=primary", 0, 4 * time.Second},
	} {
		c := connecting{ended: tt.ended}
		if got := c.patience(tt.conninfo); got != tt.want {
			t.Errorf("%q, %d ended: %v, expected %v", tt.conninfo, tt.ended, got, tt.want)
		}
	}
}
