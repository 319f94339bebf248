package console

import (
	"slices"
	"testing"
)

// Ensure a command is never broken, and what stands around it is.
func TestWithCommands(t *testing.T) {
	for _, tt := range []struct {
		text string
		want []string
	}{
		{"one two three", []string{"one two", "three"}},
		{"$ a command that is longer", []string{"$ a command that is longer"}},
		{"do this: $ first command here # or else $ second $ third", []string{"do this:", "$ first command here", "or else", "$ second", "$ third"}},
		{"costs 5$ at most", []string{"costs 5$", "at most"}},
	} {
		if got := withCommands(tt.text, 10); !slices.Equal(got, tt.want) {
			t.Errorf("%q: %q, want %q", tt.text, got, tt.want)
		}
	}
}
