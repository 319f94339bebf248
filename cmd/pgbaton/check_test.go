package main

import (
	"testing"

	"github.com/pgbaton/pgbaton/internal/console"
)

// Ensure monitoring learns the worst of what was found, and that what could not be looked at is no good sign.
func TestMonitorCode(t *testing.T) {
	critical, warning := console.Finding{Severity: console.Critical}, console.Finding{Severity: console.Warning}
	for _, tc := range []struct {
		findings   []console.Finding
		incomplete bool
		want       console.ExitCode
	}{
		{nil, false, 0},
		{[]console.Finding{warning}, false, 1},
		{[]console.Finding{warning, critical}, false, 2},
		{nil, true, 3},
		{[]console.Finding{warning}, true, 3},
		{[]console.Finding{critical}, true, 2},
	} {
		if got := monitorCode(console.Review{Findings: tc.findings, Incomplete: tc.incomplete}); got != tc.want {
			t.Errorf("%+v, incomplete %v: exit code %d, want %d", tc.findings, tc.incomplete, got, tc.want)
		}
	}
}
