package pgdisk

import (
	"bytes"
	"compress/gzip"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// update makes testdata/golden anew with the real servers:
//
//	go test ./internal/pgdisk -run TestGolden -update
var update = flag.Bool("update", false, "make testdata/golden with the servers of scripts/postgres-matrix.sh")

// golden is a data directory that a real server made, as far as this package reads it,
// and what that server said of it.
type golden struct {
	major int
	data  string
	// said: one fact a line.
	//   system ID                  from pg_control_system()
	//   checkpoint LSN TLI         from pg_control_checkpoint(), after the last shutdown
	//   switch TLI LSN             from the log of the promotion
	//   ends LSN                   a function that writes WAL returned this end of a record
	//   record START END PREV XID LENGTH RMGR TYPE    from pg_walinspect (15 and later)
	//   controldata NAME: VALUE    from pg_controldata (15)
	said []string
}

func goldenDir(major int) string { return filepath.Join("testdata", "golden", strconv.Itoa(major)) }

// loadGolden unpacks the files of a version into a directory of the test.
func loadGolden(t testing.TB, major int) golden {
	t.Helper()
	g := golden{major: major, data: t.TempDir()}
	for _, d := range []string{"global", "pg_wal"} {
		if err := os.Mkdir(filepath.Join(g.data, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(goldenDir(major))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(goldenDir(major), e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		name, packed := strings.CutSuffix(e.Name(), ".gz")
		if packed {
			z, err := gzip.NewReader(bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			if b, err = io.ReadAll(z); err != nil {
				t.Fatal(err)
			}
		}
		to := filepath.Join(g.data, "pg_wal", name)
		switch name {
		case "said.txt":
			g.said = strings.Split(strings.TrimSpace(string(b)), "\n")
			continue
		case "pg_control":
			to = ControlPath(g.data)
		}
		if err := os.WriteFile(to, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// first is the first record of the golden WAL.
func (g golden) first(t testing.TB) LSN {
	t.Helper()
	for _, line := range g.said {
		if f := strings.Fields(line); f[0] == "begin" {
			return mustLSN(t, f[1])
		}
	}
	t.Fatal("no begin")
	return 0
}

// TestGolden reads what the servers of every version made, and compares it with what
// those servers said of it.
func TestGolden(t *testing.T) {
	for _, major := range majors {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			if *update {
				makeGolden(t, major)
			}
			checkGolden(t, loadGolden(t, major))
		})
	}
}

func checkGolden(t *testing.T, g golden) {
	c, err := ReadControl(g.data)
	if err != nil {
		t.Fatal(err)
	}
	w := OpenWAL(g.data, c)
	note, err := w.ShutdownCheckpoint(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	all := walk(t, w, 2, g.first(t))
	starts, ends := map[LSN]Record{}, map[LSN]Record{}
	for _, r := range all {
		starts[r.Start], ends[r.End] = r, r
		if one, err := w.ReadRecord(2, r.Start); err != nil || one.CRC != r.CRC || one.End != r.End {
			t.Errorf("ReadRecord: got %+v, %v, want %+v", one, err, r)
		}
	}
	if last := all[len(all)-1]; last.Start != note.Start || last.CRC != note.CRC {
		t.Errorf("the last record is %+v, the shutdown checkpoint %+v", last, note)
	}
	counts := map[string]int{}
	controldata := map[string]string{}
	for _, line := range g.said {
		kind, rest, _ := strings.Cut(line, " ")
		counts[kind]++
		f := strings.Fields(rest)
		var got string
		switch kind {
		case "begin":
			continue
		case "system":
			got = fmt.Sprint(c.SystemIdentifier)
		case "checkpoint":
			got = fmt.Sprintf("%s %d", c.CheckPoint, c.CheckPointTimeline)
		case "switch":
			h, err := ReadHistory(w.dir, 2)
			if err != nil {
				t.Fatal(err)
			}
			got = fmt.Sprintf("%d %s", h[0].Timeline, h[0].Switch)
		case "ends":
			got = ends[mustLSN(t, f[0])].End.String()
		case "record":
			r := starts[mustLSN(t, f[0])]
			// pg_walinspect ends a switch where its bytes end.
			if f[6] == "SWITCH" && r.IsSwitch() {
				f[1] = r.End.String()
			}
			rest = strings.Join(f[:5], " ")
			got = fmt.Sprintf("%s %s %s %d %d", r.Start, r.End, r.Prev, r.XID, r.TotalLength)
		case "controldata":
			name, value, _ := strings.Cut(rest, ":")
			controldata[name] = strings.TrimSpace(value)
			continue
		default:
			t.Fatalf("unknown fact %q", line)
		}
		if got != rest {
			t.Errorf("%s: got %q, the server said %q", kind, got, rest)
		}
	}
	if g.major == waldumpMajor {
		checkControlData(t, c, controldata)
	}
	if counts["ends"] < 5 || counts["checkpoint"] != 1 || (g.major >= 15 && counts["record"] < 30) {
		t.Errorf("the server said too little: %v", counts)
	}
}

// walk reads all records from a boundary on.
func walk(t testing.TB, w *WAL, tli TimelineID, from LSN) []Record {
	t.Helper()
	r, err := w.reader(context.Background(), tli, readAheadWalk)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	var all []Record
	rec, err := r.first(from)
	for err == nil {
		all = append(all, rec)
		prev := rec.Start
		rec, err = r.next(rec.End, &prev)
	}
	if !isInvalid(err) {
		t.Fatal(err)
	}
	return all
}

// makeGolden writes the files of a version: a record over segments, full-page images, a
// switch, a shutdown, a promotion, a shutdown on timeline 2.
func makeGolden(t *testing.T, major int) {
	s := newServer(t, major, 1)
	if major != waldumpMajor {
		// One version shows a recycled segment; they do not pack. initdb has left some, too.
		s.configure("wal_recycle = off")
		s.removeFrom(1, s.control().CheckPoint+testSeg)
	}
	s.start()
	q := s.session()
	keepWAL(q, 64)
	// From a segment of its own on, so that the files pack well.
	q.exec("CREATE TABLE t (i int PRIMARY KEY, x text)", "INSERT INTO t SELECT i, 'x' FROM generate_series(1, 50) i")
	if major >= 15 {
		q.exec("CREATE EXTENSION pg_walinspect")
	}
	q.exec("SELECT pg_switch_wal()", "CHECKPOINT")
	begin := s.control().Redo
	var said []string
	say := func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	say("begin %s", begin)
	q.exec("UPDATE t SET x = 'y' WHERE i % 10 = 0")
	for _, sql := range []string{
		"SELECT pg_logical_emit_message(false, 'p', 'short')",
		"SELECT pg_logical_emit_message(false, 'p', repeat('over pages', 2000))",
		"SELECT pg_logical_emit_message(true, 'p', repeat('over segments', 100000))",
		"SELECT pg_create_restore_point('here')",
	} {
		say("ends %s", q.lsn(sql))
	}
	q.exec("BEGIN", "INSERT INTO t VALUES (1000, 'prepared')", "PREPARE TRANSACTION 'p'", "COMMIT PREPARED 'p'", "SELECT pg_switch_wal()")
	q.exec("DELETE FROM t WHERE i % 7 = 0")
	to := nextEnd(q.lsn("SELECT pg_current_wal_insert_lsn()"), testPage)
	if !padTo(q, to) {
		t.Fatal("the record that was to end with a page does not: try again")
	}
	say("ends %s", to)
	q.close()
	s.stop(syscall.SIGINT)
	s.promote()
	q = s.session()
	say("switch %s %s", strings.Fields(s.historyFile(2))[0], strings.Fields(s.historyFile(2))[1])
	q.exec("UPDATE t SET x = 'z' WHERE i % 9 = 0")
	end := q.flushed()
	if major >= 15 {
		for _, row := range q.rows(fmt.Sprintf(`SELECT start_lsn, end_lsn, prev_lsn, xid, record_length, resource_manager, record_type
			FROM pg_get_wal_records_info('%s', '%s')`, begin, end)) {
			say("record %s", strings.Join(row, " "))
		}
	}
	q.close()
	s.stop(syscall.SIGINT)

	dir := goldenDir(major)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	pack := func(from string) {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		var packed bytes.Buffer
		z, _ := gzip.NewWriterLevel(&packed, gzip.BestCompression)
		if _, err := z.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(from)+".gz"), packed.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pack(ControlPath(s.data))
	stop := s.findEnd(2, begin).LSN
	entries, err := os.ReadDir(s.wal().dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		_, start, ok := ParseSegmentName(e.Name(), testSeg)
		if (ok && start+testSeg > begin && start < stop) || e.Name() == HistoryFileName(2) {
			pack(filepath.Join(s.wal().dir, e.Name()))
		}
	}
	if major == waldumpMajor {
		for line := range strings.Lines(run(t, tool(t, major, "pg_controldata"), s.data)) {
			say("controldata %s", strings.TrimSpace(line))
		}
	}
	// What the server says of its last shutdown it says when it is up again.
	s.start()
	q = s.session()
	row := q.rows("SELECT checkpoint_lsn, timeline_id, system_identifier FROM pg_control_checkpoint(), pg_control_system()")[0]
	say("checkpoint %s %s", row[0], row[1])
	say("system %s", row[2])
	if err := os.WriteFile(filepath.Join(dir, "said.txt"), []byte(strings.Join(said, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}
