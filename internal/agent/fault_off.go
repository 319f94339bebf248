//go:build !faults

package agent

// faultPoint does nothing in a real agent. The tests build one with the tag "faults", which can be killed here.
func faultPoint(effect, when string) {}
