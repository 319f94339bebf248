package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// mark ends every line that pgbaton adds to postgresql.auto.conf for the duration of a change of roles.
const mark = " # pgbaton: for the duration of a change of roles"

// ours knows such a line, also after an ALTER SYSTEM, which writes the file anew without comments (write_auto_conf_file in
// src/backend/utils/misc/guc.c): the name stays as it was written, and nobody else writes one in capitals there.
func ours(line string) bool {
	name, _, _ := strings.Cut(line, " = ")
	return strings.HasSuffix(line, mark) || capitals.MatchString(name)
}

var capitals = regexp.MustCompile(`^[A-Z_]+$`)

// Override puts settings in force for the duration of a change of roles, and takes those back that an earlier call put in force: as
// marked lines at the end of postgresql.auto.conf, which wins over every other file, also on a standby, where ALTER SYSTEM is
// refused. It reports whether that changed anything, so that the caller knows whether a reload is due. Names and values come from
// our own code.
func (i *Instance) Override(settings ...[2]string) (changed bool, err error) {
	was, rest, err := i.autoConf()
	if err != nil {
		return false, err
	}
	for _, s := range settings {
		rest = fmt.Appendf(rest, "%s = '%s'%s\n", strings.ToUpper(s[0]), s[1], mark)
	}
	if bytes.Equal(rest, was) {
		return false, nil
	}
	return true, i.write(i.autoConfPath(), rest)
}

func (i *Instance) autoConfPath() string { return filepath.Join(i.DataDir, "postgresql.auto.conf") }

// autoConf returns the file, with a line feed at its end, and what of it is not ours.
func (i *Instance) autoConf() (all, rest []byte, err error) {
	all, err = os.ReadFile(i.autoConfPath())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	if len(all) > 0 && !bytes.HasSuffix(all, []byte("\n")) {
		all = append(all, '\n')
	}
	for line := range strings.Lines(string(all)) {
		if !ours(strings.TrimRight(line, "\n")) {
			rest = append(rest, line...)
		}
	}
	return all, rest, nil
}
