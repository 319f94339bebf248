package postgres

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// major is the server's major version by PG_VERSION of the data directory, 0 if that cannot be read.
func (i *Instance) major() int {
	data, err := os.ReadFile(filepath.Join(i.DataDir, "PG_VERSION"))
	if err != nil {
		return 0
	}
	v, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return v
}
