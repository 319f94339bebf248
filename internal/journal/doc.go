// Package journal is what one node durably knows and did: its [State] (notes, claims, a refusal) and its journal of
// role changes. The agent writes both; the operator's command reads them.
//
// Everything lies under /var/lib/pgbaton/RESOURCE: state.json, replaced as a whole and flushed, and journal.jsonl, one
// line an event.
package journal
