package load

import (
	"bytes"
	"encoding/json"
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
