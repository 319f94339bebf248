package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// Session is one connection to the instance, as the user that owns it.
type Session struct{ conn *pgconn.PgConn }

// ErrStarting says that the server runs and does not take connections yet: in recovery, or not consistent.
var ErrStarting = errors.New("the server is starting up or recovering")

// ErrTooManyClients says that the server runs and all its connections are taken.
var ErrTooManyClients = errors.New("all connections of the server are taken")

// Connect opens a session on the local socket. For the time of the connect(2) call it takes the identity of the
// server's user, which is what `peer` authentication looks at.
func (i *Instance) Connect(ctx context.Context) (*Session, error) {
	cfg, err := pgconn.ParseConfig("sslmode=disable application_name=pgbaton connect_timeout=0 target_session_attrs=any")
	if err != nil {
		return nil, err
	}
	cfg.Host, cfg.Port = i.SocketDir, uint16(i.Port)
	cfg.User, cfg.Database, cfg.Password = i.Owner.Name, "postgres", ""
	cfg.Fallbacks = nil
	cfg.RuntimeParams = map[string]string{
		"application_name": "pgbaton",
		// The agent's own statements must neither wait for a synchronous standby nor be cut by a setting of the user.
		"synchronous_commit": "local", "statement_timeout": "0", "lock_timeout": "0", "idle_session_timeout": "0",
		"transaction_timeout": "0", "client_min_messages": "error",
	}
	if i.major() < 14 {
		delete(cfg.RuntimeParams, "idle_session_timeout")
	}
	if i.major() < 17 {
		delete(cfg.RuntimeParams, "transaction_timeout")
	}
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		return dialAs(ctx, i.Owner, network, addr)
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		var pe *pgconn.PgError
		if errors.As(err, &pe) {
			switch pe.Code {
			case "57P03": // cannot_connect_now
				return nil, fmt.Errorf("%w: %s", ErrStarting, pe.Message)
			case "53300": // too_many_connections
				return nil, fmt.Errorf("%w: %s", ErrTooManyClients, pe.Message)
			}
		}
		return nil, fmt.Errorf("connecting to port %d in %s as %s: %w", i.Port, i.SocketDir, i.Owner.Name, cause(err))
	}
	return &Session{conn}, nil
}

// cause takes the address that the caller names himself out of a failed connection's error.
func cause(err error) error {
	var failed *pgconn.ConnectError
	if errors.As(err, &failed) {
		err = failed.Unwrap()
	}
	var dial *net.OpError
	if errors.As(err, &dial) {
		return dial.Err
	}
	return err
}

// Close ends the session. It does not wait long for a server that does not answer.
func (s *Session) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	s.conn.Close(ctx)
}

// Row runs one statement and returns its first row as text, NULL as "".
func (s *Session) Row(ctx context.Context, sql string, args ...string) ([]string, error) {
	rows, err := s.Rows(ctx, sql, args...)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	return rows[0], nil
}

// Rows runs one statement and returns its rows as text, NULL as "".
func (s *Session) Rows(ctx context.Context, sql string, args ...string) ([][]string, error) {
	params := make([][]byte, len(args))
	for n, a := range args {
		params[n] = []byte(a)
	}
	res := s.conn.ExecParams(ctx, sql, params, nil, nil, nil).Read()
	if res.Err != nil {
		return nil, fmt.Errorf("%s: %w", firstLine(sql), res.Err)
	}
	out := make([][]string, len(res.Rows))
	for n, r := range res.Rows {
		out[n] = make([]string, len(r))
		for m, v := range r {
			out[n][m] = string(v)
		}
	}
	return out, nil
}

// InRecovery reports whether the server is a standby.
func (s *Session) InRecovery(ctx context.Context) (bool, error) {
	r, err := s.Row(ctx, "select pg_catalog.pg_is_in_recovery()")
	if err != nil || len(r) == 0 {
		return false, err
	}
	return r[0] == "t", nil
}

// StandbyView is what a standby says of itself.
type StandbyView struct {
	Replayed pgdisk.LSN // end of the last replayed record
	// Received is up to where the WAL receiver has flushed WAL to disk, or a segment's start at or before that
	// (RequestXLogStreaming in src/backend/replication/walreceiverfuncs.c); 0 if it never ran. It says that WAL up to there
	// is valid, not where it ends.
	Received  pgdisk.LSN
	Streaming bool // the WAL receiver is connected, to another server
	Timeline  pgdisk.TimelineID
	// CaughtUp: it streams, and has flushed all that its primary had when it last sent something.
	CaughtUp bool
	// Itself: the WAL receiver is connected to this very server. That is what becomes of an old primary that still holds
	// the virtual IP its primary_conninfo names; it looks like a healthy standby and receives nothing.
	Itself bool
}

// Standby asks a server in recovery how far it is.
func (s *Session) Standby(ctx context.Context) (StandbyView, error) {
	var v StandbyView
	r, err := s.Row(ctx, `select coalesce(pg_catalog.pg_last_wal_replay_lsn()::text, '0/0'),
  coalesce((select status = 'streaming' from pg_catalog.pg_stat_wal_receiver), false),
  coalesce((select received_tli from pg_catalog.pg_stat_wal_receiver), 0),
  coalesce(pg_catalog.pg_last_wal_receive_lsn()::text, '0/0'),
  coalesce((select conninfo from pg_catalog.pg_stat_wal_receiver), ''),
  coalesce((select pg_catalog.string_agg(application_name, E'\n') from pg_catalog.pg_stat_replication), ''),
  coalesce((select status = 'streaming' and flushed_lsn >= latest_end_lsn from pg_catalog.pg_stat_wal_receiver), false)`)
	if err != nil {
		return v, err
	}
	if v.Replayed, err = pgdisk.ParseLSN(r[0]); err != nil {
		return v, err
	}
	if v.Received, err = pgdisk.ParseLSN(r[3]); err != nil {
		return v, err
	}
	v.Streaming, v.CaughtUp = r[1] == "t", r[6] == "t"
	var tli uint32
	fmt.Sscan(r[2], &tli)
	v.Timeline = pgdisk.TimelineID(tli)
	name := ConninfoValue(r[4], "application_name")
	if name == "" {
		name = ConninfoValue(r[4], "fallback_application_name") // libpq's, from cluster_name or "walreceiver"
	}
	// Every node has an application_name of its own (validate-all): a walsender here that serves ours is our own.
	if name != "" && slices.Contains(strings.Split(r[5], "\n"), name) {
		v.Streaming, v.CaughtUp, v.Itself = false, false, true
	}
	return v, nil
}

// ResumeReplay lets a paused replay go on, and reports whether it was paused.
func (s *Session) ResumeReplay(ctx context.Context) (was bool, err error) {
	r, err := s.Row(ctx, "select pg_catalog.pg_is_wal_replay_paused()")
	if err != nil || len(r) != 1 || r[0] != "t" {
		return false, err
	}
	_, err = s.Row(ctx, "select pg_catalog.pg_wal_replay_resume()")
	return true, err
}

// EndTransactions ends all other sessions of clients that are in a transaction, and reports how many there were.
func (s *Session) EndTransactions(ctx context.Context) (int, error) {
	r, err := s.Row(ctx, `select count(pg_catalog.pg_terminate_backend(pid)) from pg_catalog.pg_stat_activity
 where backend_type = 'client backend' and pid <> pg_catalog.pg_backend_pid() and xact_start is not null`)
	if err != nil || len(r) != 1 {
		return 0, err
	}
	return strconv.Atoi(r[0])
}

// Sender is the primary's view of one standby (pg_stat_replication).
type Sender struct {
	Name     string // application_name
	State    string // startup, catchup, streaming, backup, stopping
	Unsent   int64  // bytes of WAL not yet sent
	Unflush  int64  // bytes not yet confirmed as flushed by the standby
	Unreplay int64  // bytes not yet confirmed as replayed
}

// Senders asks a primary for its standbys.
func (s *Session) Senders(ctx context.Context) ([]Sender, error) {
	rows, err := s.Rows(ctx, `select application_name, state,
  pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), sent_lsn)::bigint,
  pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), flush_lsn)::bigint,
  pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), replay_lsn)::bigint
  from pg_catalog.pg_stat_replication`)
	if err != nil {
		return nil, err
	}
	var list []Sender
	for _, r := range rows {
		v := Sender{Name: r[0], State: r[1], Unsent: -1, Unflush: -1, Unreplay: -1}
		fmt.Sscan(r[2], &v.Unsent)
		fmt.Sscan(r[3], &v.Unflush)
		fmt.Sscan(r[4], &v.Unreplay)
		list = append(list, v)
	}
	return list, nil
}

// Flushed is how far the standby named name has confirmed WAL, and whether it streams.
func (s *Session) Flushed(ctx context.Context, name string) (lsn pgdisk.LSN, streaming bool, err error) {
	r, err := s.Row(ctx, `select coalesce(max(flush_lsn)::text, '0/0'), coalesce(bool_or(state = 'streaming'), false)
  from pg_catalog.pg_stat_replication where application_name = $1`, name)
	if err != nil {
		return 0, false, err
	}
	lsn, err = pgdisk.ParseLSN(r[0])
	return lsn, r[1] == "t", err
}

// CurrentLSN is how far a primary has written.
func (s *Session) CurrentLSN(ctx context.Context) (pgdisk.LSN, error) {
	r, err := s.Row(ctx, "select pg_catalog.pg_current_wal_lsn()::text")
	if err != nil {
		return 0, err
	}
	return pgdisk.ParseLSN(r[0])
}

// Commits is what one look shows of whether commits end on a primary. It reads shared memory and touches no disk.
type Commits struct {
	Flushed pgdisk.LSN // how far WAL is on disk
	Waiting int        // processes that wait for WAL to be written
	Wait    string     // what the session that was asked about waits for, as TYPE/EVENT; "": it is gone, or waits for nothing
	ForWAL  bool       // that is WAL to be written
}

// Commits looks, and asks about the session of ours with that pid.
func (s *Session) Commits(ctx context.Context, pid int) (Commits, error) {
	// The names of some were spelt with other capitals before 17.
	r, err := s.Row(ctx, `select pg_catalog.pg_current_wal_flush_lsn()::text, count(*) filter (where for_wal),
  coalesce(max(wait) filter (where mine), ''), coalesce(bool_or(for_wal and mine), false)
  from (select wait_event_type || '/' || wait_event as wait, pid = $1::int and application_name = 'pgbaton' as mine,
    wait_event_type = 'IO' and pg_catalog.lower(wait_event) in ('walwrite', 'walsync', 'walinitwrite', 'walinitsync')
    or wait_event_type = 'LWLock' and pg_catalog.lower(wait_event) in ('walwrite', 'walinsert', 'walbufmapping') as for_wal
  from pg_catalog.pg_stat_activity) as a`, strconv.Itoa(pid))
	if err != nil {
		return Commits{}, err
	}
	c := Commits{Wait: r[2], ForWAL: r[3] == "t"}
	c.Waiting, _ = strconv.Atoi(r[1])
	c.Flushed, err = pgdisk.ParseLSN(r[0])
	return c, err
}

// Commit commits a transaction that has written WAL and touched no table, and waits until that is on this server's disk
// (synchronous_commit is local in our sessions): no standby is waited for.
func (s *Session) Commit(ctx context.Context) error {
	_, err := s.Rows(ctx, "select pg_catalog.pg_logical_emit_message(true, 'pgbaton', '')")
	return err
}

// PID is the process of the server that serves this session.
func (s *Session) PID() int { return int(s.conn.PID()) }

// Checkpoint runs CHECKPOINT.
func (s *Session) Checkpoint(ctx context.Context) error {
	_, err := s.Rows(ctx, "CHECKPOINT")
	return err
}

// Setting returns the value in force of a configuration parameter.
func (s *Session) Setting(ctx context.Context, name string) (string, error) {
	r, err := s.Row(ctx, "select pg_catalog.current_setting($1)", name)
	if err != nil {
		return "", err
	}
	return r[0], nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// dialAs connects while this thread alone has the effective user of the account: the kernel notes the peer's
// credentials at connect(2). Raw system calls change one thread only, glibc's and Go's wrappers change all.
func dialAs(ctx context.Context, a Account, network, addr string) (net.Conn, error) {
	var d net.Dialer
	if os.Geteuid() != 0 || network != "unix" {
		return d.DialContext(ctx, network, addr)
	}
	runtime.LockOSThread()
	keep := ^uintptr(0)
	if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, uintptr(a.UID), keep); errno != 0 {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("taking the identity of %s: %w", a.Name, errno)
	}
	conn, err := d.DialContext(ctx, network, addr)
	if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, 0, keep); errno != 0 {
		// A thread that stays somebody else must not run anything further: it ends with its goroutine, locked.
		return nil, fmt.Errorf("taking back the identity of root: %w", errno)
	}
	runtime.UnlockOSThread()
	return conn, err
}
