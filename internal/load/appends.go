package load

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	appendEvery = 40 * time.Millisecond // between two appends of an appender
	listsAtOnce = 4                     // that all appenders add to in turn
	listLength  = 40                    // appends of one appender to a list, then it takes the next ones
)

// operation is an append to a list, or the reading of one, and what the server showed of the list then. Times count from the
// run's begin.
type operation struct {
	key        int
	id         int64 // what was appended; 0: only read
	answered   bool
	list       []int64 // as the server showed it: after the append
	start, end time.Duration
}

// appender appends to lists that all appenders share, and reads them.
type appender struct {
	run    *Run
	number int // from 1

	mu     sync.Mutex
	errors map[string]int
	ops    []operation
}

func (a *appender) loop(ctx context.Context) {
	var conn *pgx.Conn
	wait := patience{least: a.run.o.ConnectTimeout}
	defer func() {
		if conn != nil {
			abandon(conn)
		}
	}()
	for n := 0; ctx.Err() == nil; n++ {
		key := n/(listsAtOnce*listLength)*listsAtOnce + n%listsAtOnce
		for _, op := range []operation{
			{key: key, id: int64(a.number)<<32 + int64(n)},
			{key: key - n%listsAtOnce + (n+a.number)%listsAtOnce},
		} {
			err := a.do(ctx, &conn, &wait, &op)
			a.mu.Lock()
			a.ops = append(a.ops, op)
			if err != nil && ctx.Err() == nil {
				a.errors[Kind(err)]++
			}
			a.mu.Unlock()
			if err != nil {
				if conn != nil {
					abandon(conn)
					conn = nil
				}
				pause(ctx, a.run.o.RetryEvery)
			}
		}
		pause(ctx, appendEvery)
	}
}

// do does one operation, on a new connection if there is none.
func (a *appender) do(ctx context.Context, conn **pgx.Conn, wait *patience, op *operation) (err error) {
	o := a.run.o
	if *conn == nil {
		if *conn, err = a.run.connect(ctx, wait); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, o.AnswerTimeout)
	defer cancel()
	op.start = time.Since(a.run.begin)
	if op.id != 0 {
		err = (*conn).QueryRow(ctx, `INSERT INTO appended VALUES ($1, $2, ARRAY[$3::bigint])
			ON CONFLICT (run, key) DO UPDATE SET list = appended.list || excluded.list RETURNING list`, a.run.base, op.key, op.id).Scan(&op.list)
	} else {
		// A list that nobody has begun is empty. FOR SHARE: a standby does not answer, so that what is read is the primary's.
		err = (*conn).QueryRow(ctx, `WITH l AS (SELECT list FROM appended WHERE run = $1 AND key = $2 FOR SHARE)
			SELECT coalesce((SELECT list FROM l), '{}')`, a.run.base, op.key).Scan(&op.list)
	}
	op.end, op.answered = time.Since(a.run.begin), err == nil
	return err
}

// lists reads what became of a run's lists.
func (r *Run) lists(ctx context.Context, conn *pgx.Conn) (map[int][]int64, error) {
	rows, err := conn.Query(ctx, "SELECT key, list FROM appended WHERE run = $1", r.base)
	if err != nil {
		return nil, err
	}
	final := map[int][]int64{}
	for rows.Next() {
		var key int
		var list []int64
		if err := rows.Scan(&key, &list); err != nil {
			return nil, err
		}
		final[key] = list
	}
	return final, rows.Err()
}

// checkLists holds what the appenders were shown to what the lists are in the end. Lost is how many acknowledged appends are
// not there. Anomalies are what must not be whatever was lost: an append that is there twice, a list that was shown in an
// order which it does not have in the end, and one that lacked what had been shown or acknowledged before it was asked for.
// What is lost must be lost from some moment on: of a list that was shown, what is not there in the end is its tail.
func checkLists(ops []operation, final map[int][]int64) (lost int, anomalies []string) {
	byKey := map[int][]operation{}
	for _, op := range ops {
		if op.answered {
			byKey[op.key] = append(byKey[op.key], op)
		}
	}
	bad := func(format string, args ...any) { anomalies = append(anomalies, fmt.Sprintf(format, args...)) }
	for key, list := range final {
		seen := map[int64]bool{}
		for _, id := range list {
			if seen[id] {
				bad("list %d has %s twice", key, name(id))
			}
			seen[id] = true
		}
	}
	for key, ops := range byKey {
		end := final[key]
		kept := map[int64]bool{}
		for _, id := range end {
			kept[id] = true
		}
		slices.SortFunc(ops, func(a, b operation) int { return int(a.end - b.end) })
		for i, op := range ops {
			if op.id != 0 {
				if n := len(op.list); n == 0 || op.list[n-1] != op.id {
					bad("list %d: the answer to the append of %s does not end with it", key, name(op.id))
				}
				if !kept[op.id] {
					lost++
				}
			}
			same := 0
			for same < len(op.list) && same < len(end) && op.list[same] == end[same] {
				same++
			}
			if at := slices.IndexFunc(op.list[same:], func(id int64) bool { return kept[id] }); at >= 0 {
				bad("list %d was shown with %s in place %d, it is elsewhere in the end", key, name(op.list[same+at]), same+at)
				continue
			}
			for _, before := range ops[:i] {
				if before.end >= op.start {
					break
				}
				if n := len(before.list); n > same && kept[before.list[n-1]] {
					bad("list %d was shown with %d at %s, after it had been shown with %d", key, len(op.list), op.start, n)
					break
				}
			}
		}
	}
	slices.Sort(anomalies)
	return lost, anomalies
}

// name is a person's for what was appended.
func name(id int64) string { return fmt.Sprintf("append %d of client %d", id&(1<<32-1), id>>32) }
