package e2e

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// Ensure sixty handovers, to each node in turn, under load, lose nothing: half of them with archive_mode=on. After each
// one the new timeline forks exactly at the end of the shutdown checkpoint, nothing failed, and every node streams.
//
// PGBATON_HANDOVERS sets another number.
//
// Trap 35: standbys that connect through the virtual IP get the last record.
func TestHandovers(t *testing.T) {
	count := 60
	if v := os.Getenv("PGBATON_HANDOVERS"); v != "" {
		var err error
		if count, err = strconv.Atoi(v); err != nil {
			t.Fatalf("PGBATON_HANDOVERS: %v", err)
		}
	}
	t.Run("archive_mode=on", func(t *testing.T) {
		c := testCluster(t, "archive", archiving())
		for _, n := range c.lab.Names {
			if _, err := c.lab.Run(t.Context(), n, "install", "-d", "-o", "postgres", archiveDir); err != nil {
				t.Fatal(err)
			}
		}
		handovers(t, c, count/2)
	})
	t.Run("archive_mode=off", func(t *testing.T) {
		handovers(t, testCluster(t, "plain", ordinary()), count-count/2)
	})
}

// archiveDir is where each node archives what it wrote.
const archiveDir = "/var/lib/pgha/archive"

// archiving are the options of a lab that archives, with small segments, so that there is always something to archive.
// Its standbys connect to the nodes, not to the virtual IP.
func archiving() lab.Options {
	return lab.Options{Direct: true, WALSegMB: 1, Conf: map[string]string{
		"archive_mode":    "on",
		"archive_command": "if test -f " + archiveDir + "/%f; then cmp -s %p " + archiveDir + "/%f; else cp %p " + archiveDir + "/%f; fi",
	}}
}

func handovers(t *testing.T, c *cluster, count int) {
	c.useFaults(t, false)
	s := c.begin(t, time.Duration(count)*15*time.Second+2*time.Minute, true)
	from := s.old
	timeline := s.timeline(from)
	for i := range count {
		names := c.lab.Names
		to := names[(slices.Index(names, from)+1)%len(names)]
		began := time.Now()
		s.load.Mark(fmt.Sprintf("handover %d", i+1))
		s.move(to)
		s.promoted(to)
		promoted := time.Since(began)
		s.streaming()
		streaming := time.Since(began)
		s.noFailuresIn(s.highest(to))
		highest := time.Since(began)
		timeline = s.proven(from, timeline, to)
		s.run(to, "crm_resource", "--clear", "-r", lab.Clone)
		t.Logf("%6.1f s  handover %d: %s to %s, timeline %d (promoted %.1f, all streaming %.1f, scores %.1f)",
			time.Since(began).Seconds(), i+1, from, to, timeline, promoted.Seconds(), streaming.Seconds(), highest.Seconds())
		if t.Failed() {
			t.FailNow()
		}
		from = to
	}
	r := s.finish()
	var outages []float64
	for i := range count {
		outages = append(outages, r.GapAfter(fmt.Sprintf("handover %d", i+1)).Ms)
	}
	s.result.OutagesMs = slices.Clone(outages)
	slices.Sort(outages)
	t.Logf("%d handovers: outage %.0f ms in the median, %.0f to %.0f ms", count, outages[count/2], outages[0], outages[count-1])
}
