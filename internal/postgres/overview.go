package postgres

import (
	"context"
	"fmt"
	"strconv"
)

// Overview is how one instance stands, in its own words: for the people who run the cluster, never for the rules.
type Overview struct {
	Primary  bool   `json:"primary"`
	Timeline uint32 `json:"timeline,omitempty"`
	LSN      string `json:"lsn"` // written by a primary, replayed by a standby

	// Of a standby.
	Received  string  `json:"received,omitempty"`  // how far it has WAL from its primary since it started
	Streaming bool    `json:"streaming,omitempty"` // its WAL receiver is connected
	Paused    bool    `json:"paused,omitempty"`    // replay is paused
	Behind    float64 `json:"behind_s,omitempty"`  // age of what was replayed last, 0 if there is nothing to replay
	Sent      int     `json:"senders,omitempty"`   // walsenders in use, of a primary too
	MaxSent   int     `json:"max_senders,omitempty"`

	// Of a primary.
	Standbys  []StandbyOverview `json:"standbys,omitempty"`
	Sync      string            `json:"sync_names,omitempty"` // synchronous_standby_names
	Prepared  int               `json:"prepared,omitempty"`   // prepared transactions
	OldestX   float64           `json:"oldest_s,omitempty"`   // age of the oldest transaction of a client
	Archiving bool              `json:"archiving,omitempty"`  // archive_mode is on
	Unarch    int               `json:"unarchived,omitempty"` // files that wait to be archived
	ArchFails bool              `json:"archive_fails,omitempty"`
	Logical   int64             `json:"logical_bytes,omitempty"` // what the slowest connected logical subscriber has not confirmed
}

// StandbyOverview is a primary's view of one standby. The bytes are -1 where the standby has said nothing yet.
type StandbyOverview struct {
	Name     string  `json:"name"` // application_name
	State    string  `json:"state"`
	Sync     string  `json:"sync"` // async, potential, sync, quorum
	Unsent   int64   `json:"unsent"`
	Unflush  int64   `json:"unflushed"`
	Unreplay int64   `json:"unreplayed"`
	Behind   float64 `json:"behind_s"` // replay_lag
}

// Overview asks the server how it stands: two short statements.
func (s *Session) Overview(ctx context.Context) (Overview, error) {
	in, err := s.InRecovery(ctx)
	if err != nil {
		return Overview{}, err
	}
	if in {
		return s.standbyOverview(ctx)
	}
	return s.primaryOverview(ctx)
}

func (s *Session) standbyOverview(ctx context.Context) (Overview, error) {
	r, err := s.Row(ctx, `select coalesce((select received_tli from pg_catalog.pg_stat_wal_receiver),
    (select timeline_id from pg_catalog.pg_control_checkpoint())),
  coalesce(pg_catalog.pg_last_wal_replay_lsn()::text, '0/0'), coalesce(pg_catalog.pg_last_wal_receive_lsn()::text, ''),
  pg_catalog.pg_is_wal_replay_paused(),
  case when pg_catalog.pg_last_wal_receive_lsn() <= pg_catalog.pg_last_wal_replay_lsn() then 0
    else coalesce(extract(epoch from pg_catalog.clock_timestamp() - pg_catalog.pg_last_xact_replay_timestamp()), 0) end,
  (select count(*) from pg_catalog.pg_stat_replication), pg_catalog.current_setting('max_wal_senders')`)
	if err != nil {
		return Overview{}, err
	}
	v, err := s.Standby(ctx) // knows a receiver that is connected to its own server
	if err != nil {
		return Overview{}, err
	}
	o := Overview{LSN: r[1], Received: r[2], Streaming: v.Streaming, Paused: r[3] == "t", Behind: float(r[4])}
	o.Timeline, o.Sent, o.MaxSent = uint32(whole(r[0])), int(whole(r[5])), int(whole(r[6]))
	return o, nil
}

func (s *Session) primaryOverview(ctx context.Context) (Overview, error) {
	r, err := s.Row(ctx, `select pg_catalog.pg_current_wal_lsn()::text,
  ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int,
  (select count(*) from pg_catalog.pg_stat_replication), pg_catalog.current_setting('max_wal_senders'),
  pg_catalog.current_setting('synchronous_standby_names'), (select count(*) from pg_catalog.pg_prepared_xacts),
  coalesce((select extract(epoch from pg_catalog.clock_timestamp() - min(xact_start)) from pg_catalog.pg_stat_activity
    where backend_type = 'client backend' and pid <> pg_catalog.pg_backend_pid()), 0),
  pg_catalog.current_setting('archive_mode') <> 'off',
  case when pg_catalog.current_setting('archive_mode') <> 'off'
    then (select count(*) from pg_catalog.pg_ls_archive_statusdir() where name like '%.ready') else 0 end,
  coalesce((select last_failed_time > coalesce(last_archived_time, '-infinity') from pg_catalog.pg_stat_archiver), false),
  coalesce((select max(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), confirmed_flush_lsn))
    from pg_catalog.pg_replication_slots where slot_type = 'logical' and active), 0)::bigint`)
	if err != nil {
		return Overview{}, err
	}
	o := Overview{
		Primary: true, LSN: r[0], Timeline: uint32(whole(r[1])), Sent: int(whole(r[2])), MaxSent: int(whole(r[3])), Sync: r[4],
		Prepared: int(whole(r[5])), OldestX: float(r[6]), Archiving: r[7] == "t", Unarch: int(whole(r[8])), ArchFails: r[9] == "t", Logical: whole(r[10]),
	}
	rows, err := s.Rows(ctx, `select application_name, state, sync_state,
  coalesce(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), sent_lsn), -1)::bigint,
  coalesce(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), flush_lsn), -1)::bigint,
  coalesce(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), replay_lsn), -1)::bigint,
  coalesce(extract(epoch from replay_lag), 0)
  from pg_catalog.pg_stat_replication order by application_name`)
	if err != nil {
		return Overview{}, err
	}
	for _, r := range rows {
		o.Standbys = append(o.Standbys, StandbyOverview{
			Name: r[0], State: r[1], Sync: r[2], Unsent: whole(r[3]), Unflush: whole(r[4]), Unreplay: whole(r[5]), Behind: float(r[6]),
		})
	}
	return o, nil
}

func whole(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}

// float reads a number of seconds, to the millisecond.
func float(s string) float64 {
	var f float64
	fmt.Sscan(s, &f)
	return float64(int64(f*1000)) / 1000
}
