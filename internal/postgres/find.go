package postgres

import (
	"bytes"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Server is a running server that was found, and not started by an agent.
type Server struct {
	PID       int
	BinDir    string
	DataDir   string
	ConfigDir string // what -D must be for it: DataDir, or where postgresql.conf is
	Owner     string
	Port      int
	SocketDir string   // "" if it has none
	Args      []string // of its command line, without what is said above
}

// FindServers lists the postmasters that run on this machine, by their data directories.
func FindServers() ([]Server, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var list []Server
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		if s, ok := serverOf(pid); ok {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b Server) int { return strings.Compare(a.DataDir, b.DataDir) })
	return list, nil
}

// serverOf tells a postmaster by its executable and by the lock file in its working directory, which names it.
func serverOf(pid int) (Server, bool) {
	exe, err := os.Readlink(procPath(pid, "exe"))
	if err != nil || filepath.Base(strings.TrimSuffix(exe, " (deleted)")) != "postgres" {
		return Server{}, false
	}
	dir, err := os.Readlink(procPath(pid, "cwd"))
	if err != nil {
		return Server{}, false
	}
	lock, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	lines := strings.Split(string(lock), "\n")
	if err != nil || len(lines) < 6 || strings.TrimSpace(lines[0]) != strconv.Itoa(pid) {
		return Server{}, false
	}
	line, err := os.ReadFile(procPath(pid, "cmdline"))
	if err != nil {
		return Server{}, false
	}
	info, err := os.Stat(procPath(pid, ""))
	if err != nil {
		return Server{}, false
	}
	s := Server{PID: pid, BinDir: filepath.Dir(exe), DataDir: dir, SocketDir: strings.TrimSpace(lines[4])}
	s.Port, _ = strconv.Atoi(strings.TrimSpace(lines[3]))
	s.Owner = strconv.FormatUint(uint64(info.Sys().(*syscall.Stat_t).Uid), 10)
	if u, err := user.LookupId(s.Owner); err == nil {
		s.Owner = u.Username
	}
	s.readArgs(strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00"))
	return s, true
}

// readArgs finds out from a command line where postgresql.conf is, and keeps what else the server must be started with.
func (s *Server) readArgs(argv []string) {
	s.ConfigDir = s.DataDir
	for n := 1; n < len(argv); n++ {
		arg := []string{argv[n]}
		if (argv[n] == "-D" || argv[n] == "-c") && n+1 < len(argv) {
			n++
			arg = append(arg, argv[n])
		}
		dir := strings.TrimPrefix(strings.Join(arg, ""), "-D")
		file := argSettings(arg)["config_file"]
		switch {
		case strings.HasPrefix(arg[0], "-D"):
			if real, err := filepath.EvalSymlinks(dir); err == nil && real == s.DataDir && s.ConfigDir == s.DataDir {
				s.ConfigDir = filepath.Clean(dir) // by the name that the user gave it
			} else if _, err := os.Stat(filepath.Join(dir, "postgresql.conf")); err == nil && filepath.IsAbs(dir) {
				s.ConfigDir = filepath.Clean(dir)
			}
		case filepath.IsAbs(file) && filepath.Base(file) == "postgresql.conf":
			s.ConfigDir = filepath.Dir(file)
		default:
			s.Args = append(s.Args, arg...)
		}
	}
}
