package console

import (
	"bytes"
	"testing"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/view"
)

// Ensure a person is told why an instance is kept out, what it has, and what will be done; and that only what pg_rewind can
// help is let on.
func TestRejoin(t *testing.T) {
	var all bytes.Buffer
	for _, tc := range []struct {
		name string
		o    view.Outside
		code ExitCode
	}{
		{"to be rewound", view.Outside{
			Verdict: baton.Rewind, Reason: "its WAL of timeline 4 ends at 0/3042350, but n2 started timeline 5 at 0/3041F98",
			Ends: pgdisk.Position{Timeline: 4, LSN: 0x3042350}, Timeline: 4, Fork: 0x3041F98, Bytes: 952, Transactions: 2,
			Waldump: "/usr/lib/postgresql/15/bin/pg_waldump -p /srv/pg/pg_wal -t 4 -s 0/3041F98 --rmgr=Transaction", Keeps: 1024, StateDir: "/var/lib/pgbaton/pgsqld",
		}, Done},
		{"nothing committed, nothing kept", view.Outside{
			Verdict: baton.Rewind, Reason: "its WAL of timeline 4 ends at 0/3042350, but n2 started timeline 5 at 0/3041F98",
			Ends: pgdisk.Position{Timeline: 4, LSN: 0x3042350}, Timeline: 4, Fork: 0x3041F98, Bytes: 952, Doing: "the rewind stopped: there is no pg_rewind",
		}, Done},
		{"cut short", view.Outside{Verdict: baton.Rewind, Reason: "its WAL ends elsewhere", Begun: true, Keeps: 1024, StateDir: "/var/lib/pgbaton/pgsqld", Transactions: -1}, Done},
		{"a twin", view.Outside{
			Verdict: baton.Clone, Reason: "its timeline 4 is a twin of that of n2: same number, but the first record has another checksum", Transactions: -1,
			Clone: []string{"crm_resource --ban -r pgsqld -N n1", "find /srv/pg -mindepth 1 -delete"},
		}, Refused},
		{"nobody is primary", view.Outside{Verdict: baton.Await, Reason: "it was promoted by hand to timeline 5, which nobody in the cluster claimed", Transactions: -1}, Refused},
	} {
		all.WriteString("--- " + tc.name + "\n")
		r := &Rejoin{Node: "n1", Resource: "pgsqld", Needs: &tc.o}
		r.Text(&all, "host=10.77.0.10 user=replicator dbname=postgres")
		err := r.Possible()
		if CodeOf(err) != tc.code {
			t.Errorf("%s: %v", tc.name, err)
		}
		if err != nil {
			indented(&all, "pgbaton: ", 9, err.Error())
		}
	}
	goldenPage(t, "rejoin.commands", all.String()) // commands are not broken
}
