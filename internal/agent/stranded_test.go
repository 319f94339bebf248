package agent

import (
	"net/netip"
	"testing"
)

// Ensure an address counts as lost when it has been away for two looks, is looked for a while then, and no longer.
func TestAddresses_Look(t *testing.T) {
	away := netip.MustParseAddr("192.0.2.1") // for documentation: RFC 5737
	l := addresses{away: 0}
	for n := 1; n <= forgottenAfter+1; n++ {
		own, lost, err := l.look()
		if err != nil {
			t.Fatal(err)
		}
		if own[away] {
			t.Fatalf("this machine has %s", away)
		}
		if want := n >= lostAfter && n <= forgottenAfter; lost != want {
			t.Errorf("look %d: lost %v, want %v", n, lost, want)
		}
	}
	if _, ok := l[away]; ok {
		t.Errorf("%s is still looked for", away)
	}
	if here := netip.MustParseAddr("127.0.0.1"); l[here] != 0 || l.lost(here) {
		t.Errorf("%s counts as away", here)
	}
}
