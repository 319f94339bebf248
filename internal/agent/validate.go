package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// validateInstance checks on this node what start needs. Every error names the parameter or the path, what was expected
// and how to mend it, in this order and in the 128 characters that Pacemaker shows; its code bans this node at most,
// never the whole clone. Neither stop nor monitor ever asks for this.
func (a *Agent) validateInstance(ctx context.Context) error {
	owner, err := postgres.LookupAccount(a.params.SystemUser)
	if err != nil {
		return ocf.Errorf(ocf.ErrInstalled, "%w", err)
	}
	if os.Geteuid() != 0 && os.Geteuid() != int(owner.UID) {
		return ocf.Errorf(ocf.ErrPerm, "this agent runs as uid %d: it must run as root or as %s", os.Geteuid(), owner.Name)
	}
	if err := a.validateClone(); err != nil {
		return err
	}
	if err := a.validateDataDir(owner); err != nil {
		return err
	}
	major, err := a.validateVersion(ctx)
	if err != nil {
		return err
	}
	return a.validateSettings(ctx, major)
}

// validateClone checks what Pacemaker tells of the clone. An action run by hand, or before the clone is made, is told
// nothing.
func (a *Agent) validateClone() error {
	if !a.inv.Clone {
		return nil
	}
	if !a.inv.NotifyEnabled {
		return ocf.Errorf(ocf.ErrArgs, "the clone lacks the meta attribute notify=true: pcs resource meta CLONE notify=true")
	}
	for _, name := range []string{"promoted_max", "master_max"} {
		if v := a.env["OCF_RESKEY_CRM_meta_"+name]; v != "" && v != "1" {
			return ocf.Errorf(ocf.ErrArgs, "the clone has promoted-max=%s, only 1 is possible: pcs resource meta CLONE promoted-max=1", v)
		}
	}
	return nil
}

// validateDataDir checks that the data directory is one, and the owner's.
func (a *Agent) validateDataDir(owner postgres.Account) error {
	dir := a.params.DataDir
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ocf.Errorf(ocf.ErrInstalled, "data directory %s does not exist: clone the primary with pg_basebackup, or correct pgdata", dir)
	case err != nil:
		return ocf.Errorf(ocf.ErrInstalled, "data directory: %w", err)
	case !info.IsDir():
		return ocf.Errorf(ocf.ErrArgs, "pgdata %s is not a directory: correct pgdata", dir)
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) == 0 {
		return ocf.Errorf(ocf.ErrInstalled, "data directory %s is empty: clone the primary with pg_basebackup, or correct pgdata", dir)
	}
	if _, err := os.Stat(filepath.Join(dir, "PG_VERSION")); errors.Is(err, fs.ErrNotExist) {
		return ocf.Errorf(ocf.ErrInstalled, "%s is no data directory, it has no PG_VERSION: clone the primary with pg_basebackup, or correct pgdata", dir)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != owner.UID {
		return ocf.Errorf(ocf.ErrPerm, "data directory %s belongs to %s, not to %s: chown -R it, or correct system_user", dir, userName(uid), owner.Name)
	}
	if info.Mode().Perm()&0o027 != 0 {
		return ocf.Errorf(ocf.ErrPerm, "data directory %s has mode %04o, the server asks for 0700 or 0750: chmod 0700 it", dir, info.Mode().Perm())
	}
	return nil
}

func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "uid " + id
}

// validateVersion checks that data directory, pg_control and programs are of one version, and one that is known. It
// returns that version.
func (a *Agent) validateVersion(ctx context.Context) (int, error) {
	dir := a.params.DataDir
	text, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	if err != nil {
		return 0, ocf.Errorf(ocf.ErrInstalled, "data directory: %w", err)
	}
	version := strings.TrimSpace(string(text))
	major, err := strconv.Atoi(version)
	if err != nil || major < 13 || major > 18 {
		return 0, ocf.Errorf(ocf.ErrInstalled, "data directory %s is of PostgreSQL %.10q: expected 13 to 18", dir, version)
	}
	bin, err := a.params.FindBinDir()
	if err != nil {
		return 0, ocf.Errorf(ocf.ErrInstalled, "%w", err)
	}
	a.pg.BinDir = bin
	program, err := a.pg.ProgramMajor(ctx)
	if err != nil {
		return 0, ocf.Errorf(ocf.ErrInstalled, "%s does not run: install it anew or correct bindir: %w", filepath.Join(bin, "postgres"), err)
	}
	if program != major {
		return 0, ocf.Errorf(ocf.ErrInstalled, "%s is of PostgreSQL %d, but %s of %d: correct bindir, or pg_upgrade", bin, program, dir, major)
	}
	ctl, err := pgdisk.ReadControl(dir)
	if err != nil {
		return 0, ocf.Errorf(ocf.ErrInstalled, "%w", err)
	}
	if ctl.Major != major {
		return 0, ocf.Errorf(ocf.ErrInstalled, "%s: PG_VERSION says %d, pg_control %d: clone the primary with pg_basebackup", dir, major, ctl.Major)
	}
	return major, nil
}

// validateSettings asks the server's own configuration for what a change of roles cannot do without.
func (a *Agent) validateSettings(ctx context.Context, major int) error {
	file := a.pg.ConfigFile()
	if _, err := os.Stat(file); err != nil {
		return ocf.Errorf(ocf.ErrInstalled, "no %s: correct pgdata, or put -c config_file=FILE into start_opts", file)
	}
	if _, err := os.Stat(filepath.Join(a.params.DataDir, "recovery.conf")); err == nil {
		return ocf.Errorf(ocf.ErrInstalled, "%s/recovery.conf: PostgreSQL %d does not start with it: move its settings to postgresql.conf", a.params.DataDir, major)
	}
	// The server reads its own configuration: it knows best what is wrong with it.
	sockets, err := a.pg.ConfiguredValue(ctx, "unix_socket_directories")
	if err != nil {
		return ocf.Errorf(ocf.ErrInstalled, "%w", err)
	}
	if err := a.validateSocket(sockets); err != nil {
		return err
	}
	conf := a.pg.Settings()
	if dir := conf["data_directory"]; filepath.IsAbs(dir) && !sameFile(dir, a.params.DataDir) {
		return ocf.Errorf(ocf.ErrInstalled, "data_directory in the configuration is %s, datadir is %s: correct one of them", dir, a.params.DataDir)
	}
	if err := validateReplication(conf); err != nil {
		return err
	}
	if err := a.validateRoom(conf); err != nil {
		return err
	}
	return a.validateConninfo(conf)
}

// validateSocket: the agent must find the server on its own node.
func (a *Agent) validateSocket(configured string) error {
	dir := a.params.PGHost
	if !filepath.IsAbs(dir) {
		return nil // a host name or an address
	}
	if _, err := os.Stat(dir); err != nil {
		return ocf.Errorf(ocf.ErrInstalled, "socket directory %s does not exist: create it for %s, or correct pghost", dir, a.params.SystemUser)
	}
	if !slices.ContainsFunc(postgres.SplitList(configured), func(d string) bool { return sameFile(d, dir) }) {
		return ocf.Errorf(ocf.ErrInstalled, "pghost %s is not in unix_socket_directories (%s): correct one of them", dir, configured)
	}
	return nil
}

func sameFile(x, y string) bool {
	if filepath.Clean(x) == filepath.Clean(y) {
		return true
	}
	ix, errX := os.Stat(x)
	iy, errY := os.Stat(y)
	return errX == nil && errY == nil && os.SameFile(ix, iy)
}

// validateReplication refuses settings with which an instance cannot take part: it could not feed a standby, could not
// be asked as one, or would end its recovery by itself.
func validateReplication(conf map[string]string) error {
	if strings.EqualFold(conf["wal_level"], "minimal") {
		return ocf.Errorf(ocf.ErrInstalled, "wal_level is minimal, which no standby can follow: set it to replica")
	}
	if n, err := strconv.Atoi(conf["max_wal_senders"]); err == nil && n == 0 {
		return ocf.Errorf(ocf.ErrInstalled, "max_wal_senders is 0, no standby could connect: set it to 10")
	}
	if v, ok := conf["hot_standby"]; ok && isOff(v) {
		return ocf.Errorf(ocf.ErrInstalled, "hot_standby is off, a standby could not be asked how far it is: set it to on")
	}
	for _, name := range []string{"recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid"} {
		if conf[name] != "" {
			return ocf.Errorf(ocf.ErrInstalled, "%s is set, recovery would end there and not follow the primary: remove it", name)
		}
	}
	if v := conf["recovery_target_timeline"]; v != "" && v != "latest" {
		return ocf.Errorf(ocf.ErrInstalled, "recovery_target_timeline is %q, a standby could not follow a new primary: set it to latest", v)
	}
	return nil
}

// validateRoom refuses limits below those that the primary last had: a standby does not start with them (documentation,
// "Hot Standby", "Administrator's Overview"), and every instance of the cluster starts as one. To lower a limit, start
// the primary once by hand with it while the cluster does not manage it: only that writes the new one into WAL.
func (a *Agent) validateRoom(conf map[string]string) error {
	ctl, err := pgdisk.ReadControl(a.params.DataDir)
	if err != nil {
		return ocf.Errorf(ocf.ErrInstalled, "%w", err)
	}
	for _, limit := range []struct {
		name     string
		built    int // the server's default, the same in 13 to 18
		required int
	}{
		{"max_connections", 100, ctl.MaxConnections},
		{"max_worker_processes", 8, ctl.MaxWorkerProcesses},
		{"max_wal_senders", 10, ctl.MaxWALSenders},
		{"max_prepared_transactions", 0, ctl.MaxPreparedTransactions},
		{"max_locks_per_transaction", 64, ctl.MaxLocksPerTransaction},
	} {
		value := limit.built
		if v, ok := conf[limit.name]; ok {
			if value, err = strconv.Atoi(v); err != nil {
				continue // the server read it, in a form that is not read here
			}
		}
		if value < limit.required {
			return ocf.Errorf(ocf.ErrInstalled, "%s is %d, but the primary had %d and a standby does not start with less: raise it", limit.name, value, limit.required)
		}
	}
	return nil
}

// isOff knows PostgreSQL's words for false (parse_bool in src/backend/utils/adt/bool.c): they may be cut short.
func isOff(v string) bool {
	v = strings.ToLower(v)
	return v != "" && (v == "0" || strings.HasPrefix("false", v) || strings.HasPrefix("no", v) || v == "of" || v == "off")
}

// validateConninfo checks how this node would follow another primary. Nothing of primary_conninfo but its
// application_name is ever repeated.
func (a *Agent) validateConninfo(conf map[string]string) error {
	info := conf["primary_conninfo"]
	if strings.TrimSpace(info) == "" {
		return ocf.Errorf(ocf.ErrInstalled, "primary_conninfo is not set in %s: this node could not follow another primary", a.pg.ConfigFile())
	}
	node := a.inv.Node
	app, cluster := postgres.ConninfoValue(info, "application_name"), conf["cluster_name"]
	switch {
	case app == node, app == "" && cluster == node:
		return nil
	case app == "" && cluster == "":
		return ocf.Errorf(ocf.ErrInstalled, "primary_conninfo has no application_name: add application_name=%s, the name of this node", node)
	case app == "":
		return ocf.Errorf(ocf.ErrInstalled, "cluster_name is %q, and application_name is not set: set it in primary_conninfo to %s, this node's name", cluster, node)
	}
	return ocf.Errorf(ocf.ErrInstalled, "application_name in primary_conninfo is %q: expected the name of this node, %s", app, node)
}
