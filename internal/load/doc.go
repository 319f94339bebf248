// Package load writes to a lab's cluster and afterwards says what became of it: which
// acknowledged rows are lost, how long nobody could write, and whether two nodes were
// ever writable at once. It is an oracle: it shares no code with the product.
//
// # Clients
//
// Each client has one connection through the virtual IP, from a node of its own that
// is outside the cluster, and inserts rows that carry its number and a sequence of
// its own. What the server acknowledged is recorded with this process's monotonic
// clock. A client gives a connection up when it is refused or broken, when the server
// is read-only, and when there is no answer for AnswerTimeout; it tries again every
// RetryEvery, each attempt bounded by ConnectTimeout. These bound what the clients
// themselves add to an outage. A row without an acknowledgement may be there or not;
// the client never sends it again, but goes on with the next number.
//
// # The prober
//
// On every node a connection to the node's own socket tries to write every ProbeEvery,
// with synchronous_commit=local, so that a primary that waits for its standbys is
// writable too. A node was certainly writable from the acknowledgement of the first to
// the start of the last of a row of successes. Two nodes of which that is true at the
// same time are an overlap, the worst that can happen.
//
// # The machine
//
// A starved machine makes outages of its own: the report says by how much a sleep of
// 10 ms overshot.
package load
