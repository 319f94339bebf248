package postgres

import "testing"

// Ensure a commit of our own flushes WAL, and that who waits for something else is not said to wait for WAL.
func TestCommits(t *testing.T) {
	i := testInstance(t)
	if _, err := i.Spawn(); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	sess, other := connect(t, i), connect(t, i)
	before, err := sess.Commits(ctx, 0)
	if err != nil || before.Flushed == 0 || before.ForWAL || before.Wait != "" {
		t.Fatalf("%+v, %v; want a position, and nobody asked about", before, err)
	}
	if err := other.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	after, err := sess.Commits(ctx, other.PID())
	if err != nil || after.Flushed <= before.Flushed || after.ForWAL {
		t.Errorf("%+v, %v; want WAL flushed beyond %s, and no wait for it", after, err, before.Flushed)
	}
	if n, err := sess.Row(ctx, "select count(*) from pg_stat_user_tables"); err != nil || n[0] != "0" {
		t.Errorf("%v tables of a user, %v; want none", n, err)
	}
	if _, err := sess.Rows(ctx, "select pg_advisory_lock(1)"); err != nil {
		t.Fatal(err)
	}
	go other.Rows(ctx, "select pg_advisory_lock(1)")
	eventually(t, "the other session to wait for the lock", func() bool {
		c, err := sess.Commits(ctx, other.PID())
		return err == nil && c.Wait == "Lock/advisory" && !c.ForWAL
	})
	// Of a process that is not ours nothing is said.
	if c, err := sess.Commits(ctx, 1); err != nil || c.Wait != "" || c.ForWAL {
		t.Errorf("%+v, %v; want nothing about a process that is not ours", c, err)
	}
}
