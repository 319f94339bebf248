package e2e

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/lab/follow"
)

// lagLimit is the maxlag of these tests.
const lagLimit = 4 << 20

// standbyLooks is how long it takes at most until a standby's monitor has heard what the primary said: an interval, and a
// bit.
const standbyLooks = 6 * time.Second

// lagging is a lab with maxlag, in which a node that lost its power stays off. The monitors, by which the primary says how
// far it is and the standbys hear it, run as in any lab for scenarios.
func lagging(t *testing.T) lab.Options {
	t.Helper()
	o := ordinary()
	o.Direct = true
	o.AutoReturn = time.Hour
	o.Params = map[string]string{"maxlag": strconv.Itoa(lagLimit)}
	o.Files = map[string]string{"/usr/bin/pgbaton": built(t, buildCommand)}
	return o
}

// Ensure that after the loss of a primary a standby is promoted if it lacks less than maxlag of what the primary had
// written by its last word, and that the bytes which are lost are said; and nobody, without a person, if it lacks more.
//
// Trap 11: maximum lag not enforced at the election.
func TestMaxLag(t *testing.T) {
	c := testCluster(t, "maxlag", lagging(t))
	c.useFaults(t, false)
	t.Run("under the limit", func(t *testing.T) {
		s := c.begin(t, 4*time.Minute, true)
		was, began := s.timeline(s.old), time.Now()
		words := s.losePrimary(1 << 20)
		now := s.newPrimary(was, "")
		s.must(s.load.AwaitAck(s.within(roleLimit)))
		s.stage("%s is primary", now)
		s.saysWhatIsLost(now, was, began, words)
		s.onlyFenced(s.old)
		s.must(s.lab.HealAll(s.ctx))
		s.must(s.lab.Power(s.ctx, s.old, true))
		s.returned(s.old, now)
		s.takenOver(now, was, "power off", here(15*time.Second))
	})
	t.Run("over the limit", func(t *testing.T) {
		s := c.begin(t, 5*time.Minute, true)
		was, began, candidate, away := s.timeline(s.old), time.Now(), s.others[0], s.others[1]
		// The third node has no instance, and counts for quorum.
		s.away(away)
		words := s.losePrimary(lagLimit + 1<<20)
		s.staysUnpromoted(45 * time.Second)
		why := s.status().Node(candidate).Attributes[statusAttribute]
		s.stage("nobody is promoted; crm_mon -A says of %s: %s", candidate, why)
		m := regexp.MustCompile(`^refused: ` + candidate + ` lacks at least (\d+) bytes that the last primary had, maxlag allows ` + strconv.Itoa(lagLimit) + `; the way out: .*pgbaton promote --accept-data-loss ` + candidate).FindStringSubmatch(why)
		if m == nil {
			t.Fatalf("crm_mon -A says of %s: %q; expected how many bytes it lacks, and what to do", candidate, why)
		}
		lacks, err := strconv.ParseUint(m[1], 10, 64)
		s.must(err)

		// A person sees the same number, and decides.
		code, text := s.pgbaton(away, "promote", "--accept-data-loss", candidate)
		s.expect(code, 3, text, fmt.Sprintf("It lacks at least %d bytes of WAL", lacks), "not confirmed")
		s.staysUnpromoted(5 * time.Second)
		code, text = s.pgbaton(away, "promote", "--accept-data-loss", "--yes", candidate)
		s.expect(code, 0, text, "Ordered")
		s.newPrimary(was, candidate)
		s.must(s.load.AwaitAck(s.within(roleLimit)))
		s.stage("%s is primary by a person's order", candidate)
		s.logged(candidate, `ordered it and accepted a loss of at least `+m[1]+` bytes`)
		s.saysWhatIsLost(candidate, was, began, words)
		s.onlyFenced(s.old)
		s.must(s.lab.HealAll(s.ctx))
		s.run(candidate, "crm_attribute", "-N", away, "-n", "standby", "-D")
		s.must(s.lab.Power(s.ctx, s.old, true))
		s.returned(s.old, candidate)
		s.takenOver(candidate, was, "power off", 0)
	})
}

// word is what a primary said of how far it had written, and when.
type word struct {
	at   time.Time
	said uint64
}

// losePrimary cuts the standbys off, lets the clients and a big write go on, waits until the primary has said so and every
// standby has looked, and takes the primary's power for good. It returns what the primary said since then.
func (s *scenario) losePrimary(extra int) (words []word) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	s.cutStandby(s.others...)
	time.Sleep(time.Second)
	for written := 0; written < extra; written += 1 << 20 {
		s.sql(s.old, "SELECT pg_logical_emit_message(true, 'e2e', repeat('lost ', (1 << 20) / 5))")
	}
	beyond := parseLSN(s.t, s.sql(s.old, "SELECT pg_current_wal_lsn()"))
	var mu sync.Mutex
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			out, err := s.lab.Attr(ctx, s.old, s.old, "pgbaton-"+lab.Resource)
			if m := regexp.MustCompile(`;primary=\d+,([0-9A-F]+/[0-9A-F]+)`).FindStringSubmatch(out); err == nil && m != nil {
				at := parseLSN(s.t, m[1])
				mu.Lock()
				if at >= beyond && (len(words) == 0 || words[len(words)-1].said != at) {
					words = append(words, word{time.Now(), at})
				}
				mu.Unlock()
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	s.await(roleLimit, func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(words) == 0 {
			return lab.NotYet("%s has not said yet that it is beyond %s", s.old, formatLSN(beyond))
		}
		return nil
	})
	time.Sleep(standbyLooks)
	s.load.Mark("power off")
	s.must(s.lab.Power(s.ctx, s.old, false))
	cancel()
	wg.Wait()
	s.stage("%s said %d times how far it is, %s at last, and is off", s.old, len(words), formatLSN(words[len(words)-1].said))
	return words
}

// staysUnpromoted looks for a while whether somebody is writable: nobody may be.
func (s *scenario) staysUnpromoted(d time.Duration) {
	s.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		for _, n := range s.others {
			if out, err := s.lab.SQL(s.ctx, n, "SELECT pg_is_in_recovery()"); err == nil && out == "f" {
				s.t.Fatalf("%s was promoted although nobody decided it", n)
			}
		}
	}
}

// saysWhatIsLost compares the number of bytes that the new primary's log and journal call lost with what lies on the old
// one's disk, by pg_waldump: from where the new timeline forks to where the old primary was by its last word, or by one
// before it that is no older than a standby's monitor makes it. What it wrote after that nobody else can know of.
func (s *scenario) saysWhatIsLost(now string, was uint32, began time.Time, words []word) {
	s.t.Helper()
	timeline := s.timeline(now)
	fork := s.fork(now, timeline, was)
	promoted := s.promotion(now, began)
	bytes, err := strconv.ParseUint(promoted.Details["missing_bytes"], 10, 64)
	s.must(err)
	i := slices.IndexFunc(words, func(w word) bool { return w.said == fork+bytes })
	if i < 0 {
		s.t.Fatalf("%s says that %d bytes are lost, up to %s; timeline %d forks at %s, and %s has said %v", now, bytes, formatLSN(fork+bytes), timeline, formatLSN(fork), s.old, words)
	}
	if i+1 < len(words) {
		if age := words[len(words)-1].at.Sub(words[i+1].at); age > standbyLooks {
			s.t.Errorf("%s counts with a word of %s that was out of date for %s when there was another one", now, s.old, age)
		}
	}
	// Every byte between the two is WAL of the old primary.
	first, end := s.walBetween(s.old, was, fork, fork+bytes)
	if first > fork+40 || end > fork+bytes { // a page header may lie before the first record
		s.t.Errorf("the WAL of %s from %s to %s: the first record is at %s, the last one ends at %s", s.old, formatLSN(fork), formatLSN(fork+bytes), formatLSN(first), formatLSN(end))
	}
	last := s.lastRecord(s.old, was, fork+bytes)
	if last.end < fork+bytes {
		s.t.Errorf("the WAL of %s ends at %s, and %d bytes from %s on are said to be lost", s.old, formatLSN(last.end), bytes, formatLSN(fork))
	}
	if !strings.Contains(promoted.Reason, fmt.Sprintf("%d bytes", bytes)) {
		s.t.Errorf("the journal of %s says %q, expected that %d bytes are lost", now, promoted.Reason, bytes)
	}
	line, err := s.logs.Await(s.within(roleLimit), 0, "the promotion of "+now, func(l follow.Line) bool { return l.Node == now && l.Msg == "promoted" })
	s.must(err)
	if line.Attrs["missing_bytes"] != fmt.Sprint(bytes) {
		s.t.Errorf("the log of %s says %+v, expected missing_bytes=%d", now, line, bytes)
	}
	s.t.Logf("%s says that %d bytes are lost, by word %d of %d; its timeline forks at %s; by pg_waldump the WAL of %s has records from %s to %s there, and ends at %s",
		now, bytes, i+1, len(words), formatLSN(fork), s.old, formatLSN(first), formatLSN(end), formatLSN(last.end))
}
