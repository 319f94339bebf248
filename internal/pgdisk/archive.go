package pgdisk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ArchiveBacklog lists the files in pg_wal that wait for archive_command, in the order
// in which the server would archive them: history files first, then by name
// (src/backend/postmaster/pgarch.c). The names are without ".ready". Without an archive the
// list is empty.
func ArchiveBacklog(dataDir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(dataDir, "pg_wal", "archive_status"))
	if errors.Is(err, fs.ErrNotExist) {
		// A base backup has no archive_status before its first start. But a data directory
		// that is not there must not look like an archive that is complete.
		if _, statErr := os.Stat(filepath.Join(dataDir, "pg_wal")); statErr != nil {
			return nil, statErr
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".ready"); ok && Archivable(name) {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		ha, hb := strings.HasSuffix(a, ".history"), strings.HasSuffix(b, ".history")
		switch {
		case ha && !hb:
			return -1
		case hb && !ha:
			return 1
		}
		return strings.Compare(a, b)
	})
	return names, nil
}

// Archivable says whether a name may be that of a WAL file. The server passes over all
// others (MIN_XFN_CHARS, MAX_XFN_CHARS and VALID_XFN_CHARS in
// src/include/postmaster/pgarch.h).
func Archivable(name string) bool {
	return len(name) >= 16 && len(name) <= 40 &&
		strings.Trim(name, "0123456789ABCDEF.abchikloprstuy") == ""
}
