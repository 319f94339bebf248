package load

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"
)

const msec = time.Millisecond

// Ensure every row is accounted for: kept, lost, there without an acknowledgement, or
// never written.
func TestCompare(t *testing.T) {
	r := &Run{base: 700, begin: time.Now(), clients: []*client{
		{number: 700, sent: 5, acked: []ack{{1, 1 * msec}, {2, 2 * msec}, {5, 9 * msec}}},
		{number: 701, sent: 2, acked: []ack{{1, 1 * msec}, {2, 3 * msec}}},
	}}
	var rep Report
	r.compare(map[int]map[int64]bool{
		700: {1: true, 3: true, 5: true}, // 2 is lost, 3 is unconfirmed, 4 failed
		701: {1: true, 2: true},
	}, &rep)
	if rep.Lost != 1 || rep.Unconfirmed != 1 || rep.NotWritten != 1 {
		t.Errorf("lost %d, unconfirmed %d, not written %d; expected one of each", rep.Lost, rep.Unconfirmed, rep.NotWritten)
	}
	if len(rep.LostRows) != 1 || rep.LostRows[0].Client != 0 || rep.LostRows[0].Seq != 2 {
		t.Errorf("lost rows %+v; expected row 2 of client 0", rep.LostRows)
	}
	if err := rep.Err(); err == nil || !strings.Contains(err.Error(), "1 acknowledged rows are lost") {
		t.Errorf("the report's error is %v", err)
	}
	r.compare(map[int]map[int64]bool{}, &rep)
	if rep.Lost != 5 {
		t.Errorf("an empty table: %d lost, expected all 5", rep.Lost)
	}
}

// Ensure an overlap is reported only where two nodes were writable beyond doubt.
func TestOverlap(t *testing.T) {
	many := func(firstSend, firstAck, lastSend, lastAck int) streak {
		d := func(n int) time.Duration { return time.Duration(n) * msec }
		return streak{n: 9, firstSend: d(firstSend), firstAck: d(firstAck), lastSend: d(lastSend), lastAck: d(lastAck)}
	}
	one := func(send, ack int) streak { s := many(send, ack, send, ack); s.n = 1; return s }
	for _, tt := range []struct {
		name     string
		a, b     streak
		want     bool
		from, to time.Duration
	}{
		{"one after the other", many(0, 1, 50, 51), many(60, 61, 90, 91), false, 0, 0},
		{"only the uncertain ends meet", many(0, 1, 50, 61), many(52, 60, 90, 91), false, 0, 0},
		{"interleaved", many(0, 1, 50, 51), many(30, 31, 90, 91), true, 31 * msec, 50 * msec},
		{"one within the other", many(0, 1, 90, 91), many(30, 31, 40, 41), true, 31 * msec, 40 * msec},
		{"a single write within", many(0, 1, 90, 91), one(30, 33), true, 30 * msec, 33 * msec},
		{"a single write at the edge", many(0, 1, 90, 99), one(88, 95), false, 0, 0},
		{"two single writes prove nothing", one(30, 40), one(32, 38), false, 0, 0},
	} {
		for _, flip := range []bool{false, true} {
			a, b := tt.a, tt.b
			if flip {
				a, b = b, a
			}
			from, to, got := overlap(a, b)
			if got != tt.want || got && (from != tt.from || to != tt.to) {
				t.Errorf("%s (flipped: %v): %v from %v to %v, expected %v from %v to %v", tt.name, flip, got, from, to, tt.want, tt.from, tt.to)
			}
		}
	}
}

// Ensure gaps are those of all clients together, the open one at the end included.
func TestGaps(t *testing.T) {
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(n int) time.Time { return begin.Add(time.Duration(n) * msec) }
	rep := Report{
		Begin: begin, end: 2000 * msec,
		acks:  []time.Duration{10 * msec, 20 * msec, 320 * msec, 330 * msec, 1330 * msec, 1340 * msec},
		Marks: []Mark{{at(25), "first"}, {at(400), "second"}},
	}
	var all []Gap
	for g := range rep.eachGap {
		all = append(all, g)
	}
	want := []Gap{
		{at(10), 10, "", false},
		{at(20), 300, "first", false},
		{at(320), 10, "first", false},
		{at(330), 1000, "second", false},
		{at(1330), 10, "second", false},
		{at(1340), 660, "second", true},
	}
	if len(all) != len(want) {
		t.Fatalf("%d gaps, expected %d: %+v", len(all), len(want), all)
	}
	for i := range want {
		if all[i] != want[i] {
			t.Errorf("gap %d is %+v, expected %+v", i, all[i], want[i])
		}
	}
	if g := rep.GapAfter("first"); g.Ms != 1000 {
		t.Errorf("the gap after the first mark reaches over the second one: got %+v, expected 1000 ms", g)
	}
	if g := rep.GapAround(at(100)); g.Ms != 300 {
		t.Errorf("the gap around 100 ms is %+v, expected 300 ms", g)
	}
	if g := rep.LongestGap(at(1335), at(5000)); g.Ms != 660 || !g.Open {
		t.Errorf("the last gap is %+v, expected 660 ms and open", g)
	}
}

// Ensure both forms of a report can be read, and say when the rows were not counted.
func TestReportForms(t *testing.T) {
	rep := Report{
		Begin: time.Now(), Seconds: 2, Clients: 1, Acknowledged: 10, CheckError: "nobody is there",
		Overlaps: []Overlap{{Nodes: [2]string{"n1", "n2"}}}, Errors: map[string]int{"connection refused": 3},
	}
	var b bytes.Buffer
	rep.Text(&b)
	for _, want := range []string{"UNKNOWN", "nobody is there", "TWO NODES WRITABLE AT ONCE: n1 and n2", "3 x connection refused"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the text lacks %q:\n%s", want, &b)
		}
	}
	if err := rep.Err(); err == nil || !strings.Contains(err.Error(), "could not be counted") || !strings.Contains(err.Error(), "both writable") {
		t.Errorf("the report's error is %v", err)
	}
	b.Reset()
	if err := rep.JSON(&b); err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(b.Bytes(), &back); err != nil || back.Acknowledged != 10 || back.CheckError != rep.CheckError {
		t.Errorf("read back: %+v, %v", back, err)
	}
}

// Ensure what lists tell is found: each kind of anomaly, and nothing where a tail was lost.
func TestCheckLists(t *testing.T) {
	add := func(id int64, start, end int, list ...int64) operation {
		return operation{key: 1, id: id, answered: true, list: list, start: time.Duration(start) * msec, end: time.Duration(end) * msec}
	}
	read := func(start, end int, list ...int64) operation { return add(0, start, end, list...) }
	unanswered := operation{key: 1, id: 9, start: 5 * msec, end: 6 * msec}
	good := []operation{add(1, 0, 1, 1), read(2, 3, 1), add(2, 2, 4, 1, 2), unanswered}
	for _, tt := range []struct {
		name  string
		ops   []operation
		final []int64
		lost  int
		want  string // in the only anomaly; empty: none
	}{
		{"all there", good, []int64{1, 2}, 0, ""},
		{"one without an answer is there", good, []int64{1, 2, 9}, 0, ""},
		{"the tail is lost", good, []int64{1}, 1, ""},
		{"the tail is lost and others came", good, []int64{1, 7, 8}, 1, ""},
		{"all is lost", good, nil, 2, ""},
		{"doubled", good, []int64{1, 2, 2}, 0, "append 2 of client 0 twice"},
		{"reordered", []operation{add(2, 0, 1, 2)}, []int64{1, 2}, 0, "in place 0, it is elsewhere"},
		{"lost from the middle", []operation{add(1, 0, 1, 1), add(2, 2, 3, 1, 2), add(3, 4, 5, 1, 2, 3)}, []int64{1, 3}, 1, "in place 2, it is elsewhere"},
		{"a stale read", append([]operation{read(5, 6, 1)}, good...), []int64{1, 2}, 0, "shown with 1 at 5ms, after it had been shown with 2"},
		{"a read at the same time", append([]operation{read(3, 6, 1)}, good...), []int64{1, 2}, 0, ""},
		{"an append to a stale list, lost", append([]operation{add(3, 5, 6, 1, 3)}, good...), []int64{1, 2}, 1, "after it had been shown"},
		{"an answer without what it is for", []operation{add(1, 0, 1)}, []int64{1}, 0, "does not end with it"},
	} {
		lost, anomalies := checkLists(tt.ops, map[int][]int64{1: tt.final})
		if lost != tt.lost || (tt.want == "") != (len(anomalies) == 0) || tt.want != "" && (len(anomalies) != 1 || !strings.Contains(anomalies[0], tt.want)) {
			t.Errorf("%s: %d lost, anomalies %q; want %d and %q", tt.name, lost, anomalies, tt.lost, tt.want)
		}
	}
}

// Ensure a client waits longer only for a server that has taken its connection, and says nothing.
func TestPatience(t *testing.T) {
	p := patience{least: 200 * msec}
	for i, step := range []struct {
		err   error
		taken bool
		limit time.Duration
	}{
		{context.DeadlineExceeded, true, 400 * msec},
		{context.DeadlineExceeded, true, 800 * msec},
		{context.DeadlineExceeded, true, 800 * msec}, // no more than that
		{io.EOF, true, 800 * msec},
		{context.DeadlineExceeded, false, 200 * msec}, // nobody is there
		{context.DeadlineExceeded, true, 400 * msec},
		{nil, true, 200 * msec},
	} {
		if p.learn(step.err, step.taken); p.limit() != step.limit {
			t.Errorf("after attempt %d: %v, expected %v", i+1, p.limit(), step.limit)
		}
	}
}
