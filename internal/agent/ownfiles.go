package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pgbaton/pgbaton/internal/journal"
)

// ownFile is a file in the data directory that is not PostgreSQL's but the user's: configuration, certificates.
type ownFile struct {
	name  string // below the data directory
	small bool   // small enough to be put aside
}

// serversOwn are the entries of a data directory that initdb and the server make (documentation, "Database File Layout").
var serversOwn = []string{
	"PG_VERSION", "base", "current_logfiles", "global", "postmaster.opts", "postmaster.pid", "promote", "standby.signal", "recovery.signal",
	"backup_label", "backup_label.old", "backup_manifest", "tablespace_map", "tablespace_map.old", "logrotate", "fallback_promote",
}

// tablespace is the directory of a major version in a tablespace (GetTablespaceVersionDirectory).
var tablespace = regexp.MustCompile(`^PG_[0-9.]+_[0-9]+$`)

// ownFileLimit is the size up to which a file counts as configuration.
const ownFileLimit = 1 << 20

// ownFiles lists the user's files, without what the server logs.
func (a *Agent) ownFiles() ([]ownFile, error) {
	logs := a.pg.Settings()["log_directory"]
	if logs == "" {
		logs = "log"
	}
	root := a.pg.RealDataDir() // a walk does not follow a link to it
	if !filepath.IsAbs(logs) {
		logs = filepath.Join(root, logs)
	} else if real, err := filepath.EvalSymlinks(logs); err == nil {
		logs = real
	}
	var list []ownFile
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || path == root {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		top, _, _ := strings.Cut(name, "/")
		if top == name && (slices.Contains(serversOwn, name) || d.IsDir() && strings.HasPrefix(name, "pg_") || path == logs) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if d.IsDir() && tablespace.MatchString(d.Name()) {
			return filepath.SkipDir // PostgreSQL only warns of a tablespace inside the data directory
		}
		if d.IsDir() {
			return nil
		}
		if d.Type()&fs.ModeSymlink != 0 && strings.HasPrefix(name, "pg_") && !strings.HasSuffix(name, ".conf") {
			return nil // pg_wal elsewhere
		}
		info, err := d.Info()
		if err == nil && (info.Mode().IsRegular() || info.Mode()&fs.ModeSymlink != 0) {
			list = append(list, ownFile{name, info.Size() <= ownFileLimit})
		}
		return nil
	})
	return list, err
}

// restoreOwn puts the user's files back as they were before the rewind, and takes away those that came from the primary.
func (a *Agent) restoreOwn(r *journal.Rewind) error {
	now, err := a.ownFiles()
	if err != nil {
		return err
	}
	for _, f := range now {
		if !slices.Contains(r.Files, f.name) {
			if err := os.Remove(filepath.Join(a.pg.DataDir, f.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	aside := filepath.Join(r.Keep, asideOwn)
	for _, name := range r.Files {
		from, to := filepath.Join(aside, name), filepath.Join(a.pg.DataDir, name)
		if _, err := os.Lstat(from); err != nil {
			continue // too large to be put aside
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return err
		}
		if dir := filepath.Dir(to); dir != a.pg.DataDir && os.Geteuid() == 0 {
			if err := os.Lchown(dir, int(a.pg.Owner.UID), int(a.pg.Owner.GID)); err != nil {
				return err
			}
		}
		if err := copyAs(from, to); err != nil {
			return err
		}
	}
	return nil
}
