package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// RemoveStaleLocks removes the lock files of a server that is gone, if some other process has its pid: the server's own
// zombie, or whoever got the number after a reboot. PostgreSQL itself would refuse to start then, since it only asks
// whether a process of that number exists (CreateLockFile in src/backend/utils/init/miscinit.c). It returns the files
// that it removed. The caller has made sure that no process holds the data directory: see [Instance.KillLeftovers].
func (i *Instance) RemoveStaleLocks() ([]string, error) {
	pm, err := i.Postmaster()
	if err == nil {
		return nil, fmt.Errorf("a server (pid %d) runs in %s", pm.PID, i.DataDir)
	}
	if !errors.Is(err, ErrNotRunning) {
		return nil, err
	}
	files := []string{filepath.Join(i.DataDir, "postmaster.pid")}
	for _, dir := range []string{i.SocketDir, "/tmp", "/run/postgresql"} { // it may have more sockets than the one to connect to
		if filepath.IsAbs(dir) {
			files = append(files, filepath.Join(dir, fmt.Sprintf(".s.PGSQL.%d.lock", i.Port)))
		}
	}
	var removed []string
	for _, f := range files {
		stale, err := i.staleLock(f)
		if err != nil {
			return removed, err
		}
		if !stale {
			continue
		}
		if err := os.Remove(f); err != nil {
			return removed, err
		}
		removed = append(removed, f)
	}
	return removed, nil
}

// staleLock reports whether a lock file was written by a server of this data directory (line 2) and names a process
// that exists. The same two lines begin postmaster.pid and the lock file of a socket.
func (i *Instance) staleLock(path string) (bool, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	lines := strings.Split(string(data), "\n")
	if len(lines) < 2 {
		return false, nil
	}
	dir := strings.TrimSpace(lines[1])
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	pid, err := strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil || dir != i.RealDataDir() {
		return false, nil
	}
	_, exists := readStat(max(pid, -pid))
	return exists, nil
}
