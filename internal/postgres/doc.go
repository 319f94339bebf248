// Package postgres is one living PostgreSQL instance on this node: its processes, its signals, its queries. What lies
// on disk is read by internal/pgdisk; what any of it means is decided elsewhere.
package postgres
