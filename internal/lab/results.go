package lab

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Result is what one run of a scenario on a lab showed: a line of JSON in a file of results.
type Result struct {
	Scenario     string    `json:"scenario"`
	Passed       bool      `json:"passed"`
	OutagesMs    []float64 `json:"outages_ms,omitempty"` // longest gap between acknowledged commits after each event, ms
	Acknowledged int       `json:"acknowledged"`         // rows
	Lost         int       `json:"lost"`                 // of these rows
	TwoWritable  int       `json:"two_writable"`         // times that two nodes took a write
	Fenced       []string  `json:"fenced,omitempty"`     // nodes, in their order
	Healed       bool      `json:"healed"`               // the cluster was whole again without help
}

// Median returns the middle of a list, 0 of an empty one.
func Median(list []float64) float64 {
	if len(list) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(list))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// WriteResults prints the table of a file of results, a row for each scenario, 80 columns wide where the names allow.
func WriteResults(w io.Writer, results io.Reader) error {
	type row struct {
		name                                    string
		runs, passed, lost, two, fenced, healed int
		outages                                 []float64
	}
	var rows []*row
	sc := bufio.NewScanner(results)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var r Result
		if err := json.Unmarshal(sc.Bytes(), &r); err != nil {
			return fmt.Errorf("result %q: %w", sc.Text(), err)
		}
		i := slices.IndexFunc(rows, func(o *row) bool { return o.name == r.Scenario })
		if i < 0 {
			i = len(rows)
			rows = append(rows, &row{name: r.Scenario})
		}
		o := rows[i]
		o.runs++
		o.lost += r.Lost
		o.two += r.TwoWritable
		o.fenced += len(r.Fenced)
		o.outages = append(o.outages, r.OutagesMs...)
		if r.Passed {
			o.passed++
		}
		if r.Healed {
			o.healed++
		}
	}
	if err := sc.Err(); err != nil {
		return err
	}
	slices.SortFunc(rows, func(a, b *row) int { return cmp.Compare(a.name, b.name) })
	fmt.Fprintf(w, "%-36s %4s %4s %7s %7s %5s %3s %3s %4s\n", "scenario", "runs", "pass", "median", "worst", "lost", "two", "off", "self")
	for _, o := range rows {
		median, worst := "-", "-"
		if len(o.outages) > 0 {
			median, worst = fmt.Sprintf("%.0f ms", Median(o.outages)), fmt.Sprintf("%.0f ms", slices.Max(o.outages))
		}
		name := strings.TrimPrefix(o.name, "Test")
		fmt.Fprintf(w, "%-36s %4d %4d %7s %7s %5d %3d %3d %4d\n", name, o.runs, o.passed, median, worst, o.lost, o.two, o.fenced, o.healed)
	}
	_, err := fmt.Fprint(w, "median, worst: outage of the writing clients; lost: acknowledged rows; two: two\nwritable nodes; off: nodes fenced; self: runs after which all was whole without help\n")
	return err
}
