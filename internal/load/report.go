package load

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// Mark is something that happened during a run.
type Mark struct {
	At    time.Time `json:"at"`
	Label string    `json:"label"`
}

// Gap is a time without an acknowledgement from anybody.
type Gap struct {
	Start time.Time `json:"start"`          // of the last acknowledgement before it
	Ms    float64   `json:"ms"`             // its length in milliseconds
	After string    `json:"after"`          // the last mark before its end
	Open  bool      `json:"open,omitempty"` // the run ended before the next acknowledgement
}

// Duration is the length of the gap.
func (g Gap) Duration() time.Duration { return time.Duration(g.Ms * float64(time.Millisecond)) }

// End is when somebody could write again.
func (g Gap) End() time.Time { return g.Start.Add(g.Duration()) }

// Interval is a time in which a node was writable, as its prober saw it.
type Interval struct {
	From   time.Time `json:"from"`
	To     time.Time `json:"to"`
	Writes int       `json:"writes"`
}

// Overlap is a time in which two nodes were writable.
type Overlap struct {
	Nodes [2]string `json:"nodes"`
	From  time.Time `json:"from"`
	To    time.Time `json:"to"`
}

// Row names a row by the client that wrote it and that client's sequence number.
type Row struct {
	Client int       `json:"client"`
	Seq    int64     `json:"seq"`
	Acked  time.Time `json:"acked"`
}

// Report is what became of a run.
type Report struct {
	Begin        time.Time             `json:"begin"`
	Seconds      float64               `json:"seconds"`
	Clients      int                   `json:"clients"`
	Acknowledged int                   `json:"acknowledged"`
	Lost         int                   `json:"lost"`             // acknowledged, and not on the primary
	LostRows     []Row                 `json:"lost_rows"`        // the first hundred of them
	Unconfirmed  int                   `json:"unconfirmed"`      // on the primary, never acknowledged
	NotWritten   int                   `json:"not_written"`      // neither: failed for good
	Appends      int                   `json:"appends"`          // acknowledged, to lists
	LostAppends  int                   `json:"lost_appends"`     // of these, not there in the end
	Anomalies    []string              `json:"anomalies"`        // of the lists: doubled, reordered, or read stale
	CheckedOn    string                `json:"checked_on"`       // the address of the server they were counted on
	CheckError   string                `json:"check_error"`      // why they could not be counted: then Lost says nothing
	Longest      Gap                   `json:"longest_gap"`      // between two acknowledgements
	Gaps         []Gap                 `json:"gaps"`             // all above the threshold, in order
	Errors       map[string]int        `json:"errors"`           // by kind
	Writable     map[string][]Interval `json:"writable"`         // by node
	Overlaps     []Overlap             `json:"overlaps"`         // two nodes writable at once
	Marks        []Mark                `json:"marks"`            //
	OvershootMax float64               `json:"overshoot_max_ms"` // of a sleep of 10 ms: how starved the machine was
	OvershootP99 float64               `json:"overshoot_p99_ms"` //
	acks         []time.Duration       // all acknowledgements, sorted, from Begin
	end          time.Duration
}

// LostWrites is how many acknowledged writes are lost, rows and appends.
func (r *Report) LostWrites() int { return r.Lost + r.LostAppends }

// Err is what no run may show: writes lost, doubled or reordered, stale reads, two writable nodes, or no way to know.
func (r *Report) Err() error {
	var bad []string
	if r.CheckError != "" {
		bad = append(bad, "the rows could not be counted: "+r.CheckError)
	}
	if r.Lost > 0 {
		bad = append(bad, fmt.Sprintf("%d acknowledged rows are lost, the first one: %+v", r.Lost, r.LostRows[0]))
	}
	if r.LostAppends > 0 {
		bad = append(bad, fmt.Sprintf("%d of %d acknowledged appends are lost", r.LostAppends, r.Appends))
	}
	bad = append(bad, r.Anomalies[:min(5, len(r.Anomalies))]...)
	for _, o := range r.Overlaps {
		bad = append(bad, fmt.Sprintf("%s and %s were both writable from %s to %s", o.Nodes[0], o.Nodes[1], clock(o.From), clock(o.To)))
	}
	if len(bad) == 0 {
		return nil
	}
	return fmt.Errorf("%s", strings.Join(bad, "; "))
}

func (r *Run) report(end time.Time) Report {
	rep := Report{
		Begin: r.begin, Seconds: end.Sub(r.begin).Seconds(), Clients: len(r.clients),
		Errors: r.errors(), Writable: map[string][]Interval{}, end: end.Sub(r.begin),
		Gaps: []Gap{}, LostRows: []Row{}, Overlaps: []Overlap{}, Anomalies: []string{},
	}
	r.mu.Lock()
	rep.Marks = slices.Clone(r.marks)
	r.mu.Unlock()
	for _, c := range r.clients {
		rep.Acknowledged += len(c.acked)
		for _, a := range c.acked {
			rep.acks = append(rep.acks, a.at)
		}
	}
	slices.Sort(rep.acks)
	for g := range rep.eachGap {
		if g.Ms > rep.Longest.Ms {
			rep.Longest = g
		}
		if g.Duration() > r.o.GapOver {
			rep.Gaps = append(rep.Gaps, g)
		}
	}
	r.reportProbers(&rep)
	if over := slices.Sorted(slices.Values(r.beat.over)); len(over) > 0 {
		rep.OvershootMax = ms(over[len(over)-1])
		rep.OvershootP99 = ms(over[len(over)*99/100])
	}
	ctx, cancel := context.WithTimeout(context.Background(), r.o.CheckTimeout)
	defer cancel()
	if err := r.count(ctx, &rep); err != nil {
		rep.CheckError = err.Error()
	}
	return rep
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// eachGap yields the time between each two acknowledgements that follow each other,
// and the one that the end of the run cut short.
func (r *Report) eachGap(yield func(Gap) bool) {
	for i, at := range r.acks {
		to, open := r.end, true
		if i+1 < len(r.acks) {
			to, open = r.acks[i+1], false
		}
		if to < at {
			return // acknowledged after the order to stop
		}
		g := Gap{Start: r.Begin.Add(at), Ms: ms(to - at), Open: open}
		for _, m := range r.Marks {
			if m.At.Before(r.Begin.Add(to)) {
				g.After = m.Label
			}
		}
		if !yield(g) {
			return
		}
	}
}

// GapAround returns the gap in which a moment lies.
func (r *Report) GapAround(t time.Time) Gap { return r.LongestGap(t, t) }

// LongestGap returns the longest gap of which a part lies between two moments.
func (r *Report) LongestGap(from, to time.Time) Gap {
	var longest Gap
	for g := range r.eachGap {
		if !g.End().Before(from) && !g.Start.After(to) && g.Ms > longest.Ms {
			longest = g
		}
	}
	return longest
}

// GapAfter returns the longest gap between a mark and the next one, or the end.
func (r *Report) GapAfter(label string) Gap {
	for i, m := range r.Marks {
		if m.Label != label {
			continue
		}
		to := r.Begin.Add(r.end)
		if i+1 < len(r.Marks) {
			to = r.Marks[i+1].At
		}
		return r.LongestGap(m.At, to)
	}
	return Gap{}
}

func (r *Run) reportProbers(rep *Report) {
	for i, p := range r.probers {
		for _, s := range p.streaks {
			rep.Writable[p.node] = append(rep.Writable[p.node], Interval{r.begin.Add(s.firstSend), r.begin.Add(s.lastAck), s.n})
			for _, q := range r.probers[i+1:] {
				for _, t := range q.streaks {
					if from, to, ok := overlap(s, t); ok {
						rep.Overlaps = append(rep.Overlaps, Overlap{[2]string{p.node, q.node}, r.begin.Add(from), r.begin.Add(to)})
					}
				}
			}
		}
	}
}

// count compares what is in the table with what was acknowledged, on the server
// behind the virtual IP. It tries until the context ends.
func (r *Run) count(ctx context.Context, rep *Report) error {
	for {
		err := r.countOnce(ctx, rep)
		if err == nil || ctx.Err() != nil {
			return err
		}
		pause(ctx, 200*time.Millisecond)
	}
}

func (r *Run) countOnce(ctx context.Context, rep *Report) error {
	conn, err := r.connect(ctx, &patience{least: 5 * time.Second})
	if err != nil {
		return err
	}
	defer abandon(conn)
	var standby bool
	var where string
	// The node's name, which the lab gives as cluster_name.
	if err := conn.QueryRow(ctx, "SELECT pg_is_in_recovery(), current_setting('cluster_name')").Scan(&standby, &where); err != nil {
		return err
	}
	if standby {
		return fmt.Errorf("%s, behind the virtual IP, is a standby", where)
	}
	present := map[int]map[int64]bool{}
	for _, c := range r.clients {
		present[c.number] = map[int64]bool{}
	}
	rows, err := conn.Query(ctx, "SELECT client, seq FROM written WHERE client >= $1 AND client < $1 + 100", r.base)
	if err != nil {
		return err
	}
	for rows.Next() {
		var number int
		var seq int64
		if err := rows.Scan(&number, &seq); err != nil {
			return err
		}
		if present[number] == nil {
			return fmt.Errorf("a row of client %d, which there is none of", number)
		}
		present[number][seq] = true
	}
	if err := rows.Err(); err != nil {
		return err
	}
	final, err := r.lists(ctx, conn)
	if err != nil {
		return err
	}
	rep.CheckedOn = where
	r.compare(present, rep)
	var ops []operation
	for _, a := range r.appenders {
		ops = append(ops, a.ops...)
	}
	rep.LostAppends, rep.Anomalies = checkLists(ops, final)
	rep.Appends = 0
	for _, op := range ops {
		if op.answered && op.id != 0 {
			rep.Appends++
		}
	}
	return nil
}

// compare says of every row that was sent what became of it, given what is in the
// table: by client number the set of sequence numbers.
func (r *Run) compare(present map[int]map[int64]bool, rep *Report) {
	rep.Lost, rep.LostRows, rep.Unconfirmed, rep.NotWritten = 0, []Row{}, 0, 0
	for _, c := range r.clients {
		have := present[c.number]
		kept := 0
		for _, a := range c.acked {
			if have[a.seq] {
				kept++
				continue
			}
			rep.Lost++
			if len(rep.LostRows) < 100 {
				rep.LostRows = append(rep.LostRows, Row{c.number - r.base, a.seq, r.begin.Add(a.at)})
			}
		}
		extra := len(have) - kept
		rep.Unconfirmed += extra
		rep.NotWritten += int(c.sent) - len(c.acked) - extra
	}
}

func clock(t time.Time) string { return t.Format("15:04:05.000") }

// JSON writes the report as one JSON object.
func (r *Report) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// Text writes the report for a person, in 80 columns.
func (r *Report) Text(w io.Writer) {
	p := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	p("%d clients for %.1f s: %d rows acknowledged (%.0f a second)", r.Clients, r.Seconds, r.Acknowledged, float64(r.Acknowledged)/r.Seconds)
	if r.CheckError != "" {
		p("rows lost: UNKNOWN, they could not be counted: %s", r.CheckError)
	} else {
		p("rows lost: %d (counted on %s); without an acknowledgement: %d there, %d not", r.Lost, r.CheckedOn, r.Unconfirmed, r.NotWritten)
	}
	if r.Appends > 0 {
		p("appends to lists: %d acknowledged, %d lost; doubled, reordered or read stale: %d", r.Appends, r.LostAppends, len(r.Anomalies))
	}
	for _, row := range r.LostRows[:min(10, len(r.LostRows))] {
		p("  lost: client %d, row %d, acknowledged %s", row.Client, row.Seq, clock(row.Acked))
	}
	p("longest gap between acknowledgements: %.0f ms, from %s", r.Longest.Ms, clock(r.Longest.Start))
	for _, g := range r.Gaps {
		text := ""
		if g.After != "" {
			text = ", after: " + g.After
		}
		if g.Open {
			text += " (still open)"
		}
		p("  gap of %6.0f ms from %s%s", g.Ms, clock(g.Start), text)
	}
	for _, n := range slices.Sorted(maps.Keys(r.Writable)) {
		var s []string
		for _, i := range r.Writable[n] {
			s = append(s, clock(i.From)+" to "+clock(i.To))
		}
		p("writable: %s  %s", n, strings.Join(s, "\n             "))
	}
	if len(r.Overlaps) == 0 {
		p("two nodes writable at once: never")
	}
	for _, o := range r.Overlaps {
		p("TWO NODES WRITABLE AT ONCE: %s and %s from %s to %s", o.Nodes[0], o.Nodes[1], clock(o.From), clock(o.To))
	}
	p("errors: %s", errorText(r.Errors))
	p("this machine: a sleep of 10 ms took up to %.1f ms longer (p99: %.1f ms)", r.OvershootMax, r.OvershootP99)
}

func errorText(m map[string]int) string {
	if len(m) == 0 {
		return "none"
	}
	var s []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		s = append(s, fmt.Sprintf("%d x %s", m[k], k))
	}
	return strings.Join(s, "\n        ")
}
