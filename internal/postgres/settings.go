package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// mark ends every line that pgbaton adds to postgresql.auto.conf for the duration of a change of roles.
const mark = " # pgbaton: for the duration of a change of roles"

// Override puts settings in force for the duration of a change of roles: as marked lines at the end of
// postgresql.auto.conf, which wins over every other file, also on a standby, where ALTER SYSTEM is refused. The caller
// reloads. Names and values come from our own code.
func (i *Instance) Override(settings ...[2]string) error {
	rest, _, err := i.autoConf()
	if err != nil {
		return err
	}
	for _, s := range settings {
		rest = fmt.Appendf(rest, "%s = '%s'%s\n", s[0], s[1], mark)
	}
	return i.write(i.autoConfPath(), rest)
}

// DropOverrides takes the marked lines out again. It reports whether there were any, so that the caller knows whether a
// reload is due.
func (i *Instance) DropOverrides() (bool, error) {
	rest, found, err := i.autoConf()
	if err != nil || !found {
		return false, err
	}
	return true, i.write(i.autoConfPath(), rest)
}

func (i *Instance) autoConfPath() string { return filepath.Join(i.DataDir, "postgresql.auto.conf") }

// autoConf returns the file without our lines, and whether it had any.
func (i *Instance) autoConf() ([]byte, bool, error) {
	data, err := os.ReadFile(i.autoConfPath())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, false, err
	}
	if len(data) > 0 && !bytes.HasSuffix(data, []byte("\n")) {
		data = append(data, '\n')
	}
	var rest []byte
	found := false
	for line := range strings.Lines(string(data)) {
		if strings.HasSuffix(strings.TrimRight(line, "\n"), mark) {
			found = true
			continue
		}
		rest = append(rest, line...)
	}
	return rest, found, nil
}
