package pacemaker

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
)

// Votes asks Corosync how many votes the whole cluster has, nodes without an instance and a quorum device included, and how
// many of them make a quorum: corosync-quorumtool(8), votequorum(5). It is an error where these may change by themselves.
func Votes(ctx context.Context, r Runner) (expected, quorum int, err error) {
	// Its exit status tells who is quorate.
	out, err := r.Run(ctx, "corosync-quorumtool", "-s")
	if len(out) == 0 && err != nil {
		return 0, 0, fmt.Errorf("ask Corosync for its votes: %w", err)
	}
	return parseVotes(out)
}

func parseVotes(text []byte) (expected, quorum int, err error) {
	fields := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok {
			fields[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	number := func(name string) int {
		word, _, _ := strings.Cut(fields[name], " ") // "2 Activity blocked"
		n, convErr := strconv.Atoi(word)
		if convErr != nil && err == nil {
			err = fmt.Errorf("corosync-quorumtool says %q of %q: expected a number", fields[name], name)
		}
		return n
	}
	expected, quorum = number("Expected votes"), number("Quorum")
	for _, flag := range []string{"LastManStanding", "AllowDownscale", "AutoTieBreaker"} {
		if err == nil && strings.Contains(fields["Flags"], flag) {
			err = fmt.Errorf("the votes of this cluster change, or half of them may do: its quorum is %s", flag)
		}
	}
	if err != nil {
		return 0, 0, err
	}
	return expected, quorum, nil
}
