package lab

import (
	"context"
	"fmt"
	"strings"
)

// Describe is a status as text for a person, in 80 columns, with what each instance
// says of itself.
func (l *Lab) Describe(ctx context.Context, s *Status) string {
	var b strings.Builder
	fmt.Fprintf(&b, "lab %s, agent %s, PostgreSQL %s; coordinator %s, quorum: %v, busy: %v\n",
		l.Name, l.Agent, l.Major, or(s.DC, "none"), s.Quorum, s.Busy)
	fmt.Fprintf(&b, "%-8s %-6s %-8s %-11s %-6s %s\n", "node", "power", "cluster", "role", "score", "PostgreSQL")
	for _, n := range s.Nodes {
		power, member := "off", "-"
		instance := "-"
		if n.Power {
			power = "on"
			instance = l.instance(ctx, n.Name)
		}
		switch {
		case n.Standby:
			member = "standby"
		case n.Online:
			member = "online"
		}
		name := n.Name
		if s.VIP == n.Name {
			name += " *"
		}
		fmt.Fprintf(&b, "%-8s %-6s %-8s %-11s %-6s %s\n", name, power, member, or(n.Role, "-"), or(n.Score, "-"), instance)
		if n.FailCount != "" && n.FailCount != "0" {
			fmt.Fprintf(&b, "         fail count %s\n", n.FailCount)
		}
	}
	fmt.Fprintf(&b, "* has the virtual IP %s\n", VIP)
	for _, x := range []struct {
		title string
		lines []string
	}{{"failed action", s.Failed}, {"fenced", s.Fenced}, {"location constraint", s.Location}} {
		for _, line := range x.lines {
			fmt.Fprintf(&b, "%s: %s\n", x.title, line)
		}
	}
	for _, c := range s.Cut {
		fmt.Fprintf(&b, "cut: %s\n", c)
	}
	return b.String()
}

// instance is what a node's PostgreSQL says of itself, in a few words.
func (l *Lab) instance(ctx context.Context, node string) string {
	out, err := l.SQL(ctx, node, `SELECT CASE WHEN pg_is_in_recovery()
		THEN 'standby, received ' || coalesce(pg_last_wal_receive_lsn()::text, '-') || ', ' || coalesce((SELECT status || ' from ' || sender_host FROM pg_stat_wal_receiver), 'not streaming')
		ELSE 'primary, at ' || pg_current_wal_lsn() || ', timeline ' || ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END`)
	if err != nil {
		if strings.Contains(err.Error(), "starting up") {
			return "starting up"
		}
		return "no answer"
	}
	return out
}
