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
// RetryEvery, each attempt bounded by ConnectTimeout, longer only while a server takes the
// connection and says nothing. These bound what the clients themselves add to an outage. A row without an acknowledgement may be there or not;
// the client never sends it again, but goes on with the next number.
//
// # The appenders
//
// Appenders add to lists that they share, and read them, each by one statement, and record what they were shown. In the end
// every list that was shown must be a beginning of what the list is then; so must, of a list whose end was lost, what is left.
// That finds what numbered rows cannot show: writes that are there twice or in another order, and reads of a server that
// others have gone past.
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
