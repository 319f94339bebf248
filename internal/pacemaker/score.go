package pacemaker

import (
	"fmt"
	"strconv"
	"strings"
)

// Score is a number by which Pacemaker places resources. Its infinity is a number
// too: 1000000, and everything beyond is cut to it.
type Score int32

// The limits of a Score. NegInfinity forbids, and no other score can outweigh it.
const (
	Infinity    Score = 1000000
	NegInfinity Score = -1000000
)

// String returns the score as Pacemaker writes it.
func (s Score) String() string {
	switch {
	case s >= Infinity:
		return "INFINITY"
	case s <= NegInfinity:
		return "-INFINITY"
	}
	return strconv.Itoa(int(s))
}

// ParseScore reads a score as Pacemaker does: a whole number, INFINITY, +INFINITY
// or -INFINITY. Unlike Pacemaker, which takes what it cannot read for 0, it
// returns an error then.
func ParseScore(s string) (Score, error) {
	switch strings.ToUpper(strings.TrimSpace(s)) {
	case "INFINITY", "+INFINITY":
		return Infinity, nil
	case "-INFINITY":
		return NegInfinity, nil
	}
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("score %q: expected a whole number, INFINITY or -INFINITY", s)
	}
	return Score(min(max(n, int64(NegInfinity)), int64(Infinity))), nil
}

// ScoreAttribute is the name of the node attribute that holds the promotion score
// of a resource, which is named without the number of a clone's instance. The name
// is "master-" in all versions.
func ScoreAttribute(resource string) string { return "master-" + resource }
