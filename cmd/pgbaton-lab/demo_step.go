package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab/follow"
	"github.com/pgbaton/pgbaton/internal/load"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// step is one change of roles in the demo.
type step struct {
	*demo
	load       *load.Run
	first      int // of the agents' lines that belong to it
	start      time.Time
	end        follow.Line // the agent's line that says that an instance is primary
	rolledBack bool
}

func (s *step) say(who, text string) { s.out.line(time.Since(s.start), who, text) }

// run runs the operator's command on a node of the cluster.
func (s *step) run(ctx context.Context, node string, argv ...string) error {
	s.start = time.Now()
	_, err := s.Lab.Run(ctx, node, argv...)
	return err
}

// within bounds one wait; the context of the whole demo ends it too.
func (s *step) within(ctx context.Context, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(ctx, limit)
	context.AfterFunc(ctx, cancel)
	return ctx
}

// promoted waits until an instance has been promoted, by its own word, by Pacemaker's and by that of the clients. Who:
// anybody but from if to is empty; anybody but to where the handover must be rolled back.
func (s *step) promoted(ctx context.Context, from, to string) error {
	ctx = s.within(ctx, time.Minute)
	var err error
	s.end, err = s.logs.Await(ctx, s.first, "a promotion", func(l follow.Line) bool { return l.Msg == "promoted" })
	if err != nil {
		return err
	}
	if err := s.load.AwaitAck(ctx); err != nil {
		return err
	}
	s.say("clients", "write again")
	switch {
	case s.rolledBack && s.end.Node != to:
		// The old primary, or another standby that has the proof: that is as good.
		to = s.end.Node
	case s.rolledBack:
		return fmt.Errorf("%s was promoted, which cannot have received the last WAL", to)
	case to == "" && s.end.Node != from:
		to = s.end.Node
	}
	if s.end.Node != to {
		return fmt.Errorf("%s was promoted, expected %s", s.end.Node, to)
	}
	if _, err := s.WaitPromoted(ctx, to); err != nil {
		return err
	}
	if s.rolledBack {
		return nil
	}
	_, err = s.WaitAllStreamingBut(ctx, from)
	return err
}

// WaitAllStreamingBut is for a node in standby, which does not stream.
func (s *step) WaitAllStreamingBut(ctx context.Context, leaving string) (string, error) {
	st, err := s.Status(ctx)
	if err != nil {
		return "", err
	}
	if st.Node(leaving).Standby {
		return leaving, nil
	}
	return "", s.WaitAllStreaming(ctx)
}

// tell prints the agents' lines as they come in. The function that it returns ends that.
func (s *step) tell() func() {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		n := s.first
		for {
			fresh := s.logs.Fresh()
			for _, l := range s.logs.From(n) {
				n++
				if text := inWords(l); text != "" {
					s.out.line(l.Time.Sub(s.start), l.Node, text)
				}
			}
			select {
			case <-fresh:
			case <-stop:
				return
			}
		}
	}()
	return func() {
		time.Sleep(20 * time.Millisecond) // the last lines
		close(stop)
		<-done
	}
}

var position = regexp.MustCompile(`^\d+:`)

// inWords says in few words what a line of an agent means; nothing if it is of no interest here.
func inWords(l follow.Line) string {
	a := l.Attrs
	switch l.Msg {
	case "prepared the handover":
		if a["target"] != "fit" && a["target"] != "" {
			return "checkpoint while clients write; " + a["target"]
		}
		return fmt.Sprintf("checkpoint while clients still write, %s ms; %s keeps up", a["checkpoint_ms"], a["to"])
	case "shutting the primary down":
		return "shuts the primary down"
	case "the primary has ended":
		return "has ended with its " + strings.TrimSuffix(a["note"], ", left by "+l.Node)
	case "asking for answers":
		return "asks all others; means to start " + cut(a["claim"], " by ")
	case "answering":
		text := "wrote that down, answers: my WAL ends at " + position.ReplaceAllString(a["position"], "")
		if a["unfit"] != "" {
			text += ", but " + a["unfit"]
		}
		return text
	case "ready to be promoted":
		if strings.Contains(a["why"], "shutdown checkpoint") {
			return "has that very record as its last one: the proof"
		}
		return a["why"]
	case "refusing the promotion":
		return "refuses: " + a["reason"]
	case "calling the handover off":
		return "calls the handover off: " + a["reason"]
	case "promoting":
		return "is promoted"
	case "promoted":
		return fmt.Sprintf("is primary on timeline %s, which forks at %s", a["timeline"], a["switch_point"])
	case "the old primary is back as a standby":
		return "is back as a standby"
	case "promotion score", "start", "stop", "promote", "demote", "aftercare",
		"pre-demote", "post-demote", "pre-promote", "post-promote", "pre-stop", "post-stop", "pre-start", "post-start":
		if l.Level == "INFO" {
			return ""
		}
	}
	if l.Level == "INFO" {
		return ""
	}
	// What nobody foresaw is shown as it is.
	text := l.Msg
	for _, k := range []string{"reason", "error", "result"} {
		if a[k] != "" {
			text += ": " + a[k]
		}
	}
	return strings.ToLower(l.Level) + ": " + text
}

func cut(s, at string) string {
	s, _, _ = strings.Cut(s, at)
	return s
}

var (
	notePattern = regexp.MustCompile(`^shutdown checkpoint ([0-9A-F]+/[0-9A-F]+)\.\.([0-9A-F]+/[0-9A-F]+) \(crc [0-9a-f]+\) of timeline (\d+)`)
	dumpPattern = regexp.MustCompile(`lsn: ([0-9A-F]+/[0-9A-F]+), prev [0-9A-F/]+, desc: (\S+)`)
)

// judge prints the result of a step, and notes what is not as it should be.
func (s *step) judge(ctx context.Context, title string, r load.Report) {
	gap := r.LongestGap(s.start, time.Now()).Duration()
	s.out.rule()
	s.out.fact("outage seen by the clients", fmt.Sprintf("%.2f s", gap.Seconds()))
	s.out.fact("rows acknowledged", strconv.Itoa(r.Acknowledged))
	s.out.fact("rows lost", strconv.Itoa(r.Lost))
	if err := r.Err(); err != nil {
		s.problem("%v", err)
	}
	for _, o := range r.Overlaps {
		s.problem("%s and %s were both writable", o.Nodes[0], o.Nodes[1])
	}
	var note string
	for _, l := range s.logs.From(s.first) {
		if l.Msg == "the primary has ended" {
			note = l.Attrs["note"]
		}
	}
	end := ""
	m := notePattern.FindStringSubmatch(note)
	switch {
	case m == nil:
		s.problem("no note of a clean shutdown: %q", note)
	default:
		s.out.fact("shutdown checkpoint", fmt.Sprintf("%s to %s, timeline %s", m[1], m[2], m[3]))
		s.out.fact("switch point", fmt.Sprintf("%s, timeline %s", s.end.Attrs["switch_point"], s.end.Attrs["timeline"]))
		if err := s.secondOpinion(ctx, m[1], m[2], m[3]); err != nil {
			s.problem("%v", err)
		} else {
			end = "equal: nothing lost" // as the table at the end has it
			s.out.good("equal: nothing lost (pg_waldump and the .history file say so too)")
		}
	}
	if s.rolledBack {
		if end != "" {
			end = "rolled back to " + s.end.Node
		}
		if err := s.noFailures(ctx); err != nil {
			s.problem("%v", err)
		} else {
			s.out.good("rolled back: no failed action, no fail count, no person")
		}
	}
	s.results = append(s.results, result{title: title, end: end, outage: gap, acked: r.Acknowledged, lost: r.Lost})
}

// secondOpinion asks PostgreSQL's own tools whether the last record before the new timeline is the shutdown checkpoint.
func (s *step) secondOpinion(ctx context.Context, start, end, timeline string) error {
	now, err := strconv.ParseUint(s.end.Attrs["timeline"], 10, 32)
	if err != nil {
		return fmt.Errorf("the agent of %s says that timeline %q was started", s.end.Node, s.end.Attrs["timeline"])
	}
	wal := filepath.Join(s.DataDir(), "pg_wal")
	history, err := s.Lab.Run(ctx, s.end.Node, "cat", fmt.Sprintf("%s/%08X.history", wal, now))
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(history), "\n")
	if f := strings.Fields(lines[len(lines)-1]); len(f) < 2 || f[0] != timeline || f[1] != end {
		return fmt.Errorf("the shutdown checkpoint of timeline %s ends at %s, but %08X.history on %s says: %s", timeline, end, now, s.end.Node, lines[len(lines)-1])
	}
	// -e is where to end: what starts there is not shown. With the file's name: else pg_waldump learns how large a segment is from
	// any, which may be one that the server is just making.
	was, err1 := strconv.ParseUint(timeline, 10, 32)
	at, err2 := pgdisk.ParseLSN(start)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	segment := pgdisk.SegmentName(pgdisk.TimelineID(was), at, uint32(s.WALSegMB)<<20)
	out, err := s.Lab.Run(ctx, s.end.Node, filepath.Join(s.Bindir, "pg_waldump"), "-p", wal, "-s", start, "-e", end, segment)
	if err != nil {
		return err
	}
	records := dumpPattern.FindAllStringSubmatch(out, -1)
	if len(records) != 1 || !sameLSN(records[0][1], start) || records[0][2] != "CHECKPOINT_SHUTDOWN" {
		return fmt.Errorf("pg_waldump on %s should find one record, CHECKPOINT_SHUTDOWN, from %s to %s; it says: %s", s.end.Node, start, end, out)
	}
	return nil
}

// sameLSN compares positions: pg_waldump pads the second half with zeros.
func sameLSN(a, b string) bool {
	value := func(s string) uint64 {
		var hi, lo uint64
		if _, err := fmt.Sscanf(s, "%X/%X", &hi, &lo); err != nil {
			return 0
		}
		return hi<<32 | lo
	}
	return value(a) != 0 && value(a) == value(b)
}

// journal shows what a node durably wrote down about this, with the operator's command.
func (s *step) journal(ctx context.Context, node string) {
	out, err := s.Lab.Run(ctx, node, "pgbaton", "history", "1")
	if err != nil {
		s.problem("%v", err)
		return
	}
	s.say(node, "pgbaton history 1")
	for line := range strings.Lines(out) {
		s.out.plain(strings.TrimRight(line, "\n"))
	}
}

func (s *step) noFailures(ctx context.Context) error {
	st, err := s.Status(ctx)
	if err != nil {
		return err
	}
	if len(st.Failed) > 0 {
		return fmt.Errorf("failed actions: %s", strings.Join(st.Failed, "; "))
	}
	for _, n := range st.Nodes {
		if n.FailCount != "" && n.FailCount != "0" {
			return fmt.Errorf("%s has a fail count of %s", n.Name, n.FailCount)
		}
	}
	return nil
}
