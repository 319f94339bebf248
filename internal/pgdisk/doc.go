// Package pgdisk reads what PostgreSQL left on disk: pg_control, timeline history
// files, WAL segments and the archive's backlog. Bytes in, values out: no server is
// asked, no process is started, nothing is written.
//
// It understands PostgreSQL 13 to 18 on little-endian 64-bit machines, with WAL
// segments of 1 MB to 1 GB. It never guesses: whatever is not exactly as the server
// writes it is an error that says where (path and position), what was expected and
// what was found, and callers must take any error as "no proof".
//
// # Two kinds of failure
//
// That the WAL ends somewhere is no failure: the place after the last valid record
// holds zeros, old bytes of a recycled segment, or nothing. What makes such a place
// invalid is an [*InvalidError]; [WAL.FindEnd] returns it as [End].Stop and
// [WAL.ReadRecord] as its error. Everything else (a file that cannot be read or is cut
// short, a segment of another cluster, a version that is not known) is a failure of
// the reading itself, and FindEnd returns it as an error, since then nothing can be
// said about where the WAL ends.
//
// # Rules
//
// The formats are those of PostgreSQL's src/include/access/xlog_internal.h,
// xlogrecord.h, src/include/catalog/pg_control.h; what counts as a valid record is
// decided as recovery decides it in src/backend/access/transam/xlogreader.c, and the
// choice of the file for a segment as in xlogrecovery.c. Where this package is
// stricter, the comment says so and why.
package pgdisk
