package ocf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// The defaults of the parameters, as the meta-data advertises them.
const (
	DefaultSystemUser = "postgres"
	DefaultPGData     = "/var/lib/pgsql/data"
	DefaultPGHost     = "/var/run/postgresql"
	DefaultPGPort     = 5432
	DefaultRewindKeep = 1024
	defaultLogDir     = "/var/log/pgbaton"
)

// Params are the instance parameters of the resource. MetaData describes each to
// the user.
type Params struct {
	SystemUser string // the account that owns the data directory and runs the server
	BinDir     string // absolute; empty: to be found by FindBinDir
	PGData     string // absolute: what the server is started with, its -D
	DataDir    string // absolute: where PG_VERSION and pg_wal are; PGData if not set (the agent looks for data_directory then)
	PGHost     string // absolute: a directory with the socket; else a host name or address
	PGPort     int    // 1 to 65535

	StartOpts string   // as the user wrote it
	StartArgs []string // the same, split by SplitArgs

	// MaxLag is in bytes of WAL: a standby that is known to miss more is not
	// promoted after a failure. 0: not enforced.
	MaxLag int64

	// RecoveryLimit is how many seconds the crash recovery of a primary may take
	// before the role goes to another node. 0: as long as it takes.
	RecoveryLimit int64

	// RewindConninfo is how pg_rewind reaches the primary; empty: an instance that has
	// diverged stays out. It may hold a password and is never shown.
	RewindConninfo string
	// RewindKeep is how many megabytes of WAL that nobody else has a rewind keeps
	// without asking; 0: it keeps nothing.
	RewindKeep int64

	// LogFile is where the server's stderr goes as long as nothing collects it;
	// absolute.
	LogFile string
}

// ParseParams reads the parameters and fills the defaults in. A parameter that is
// set to the empty string counts as not set, as it does for Pacemaker.
//
// The error lists every wrong parameter, with what is allowed (an *Error with
// ErrArgs: it says nothing about other nodes). The Params are returned in any
// case, with the default in the place of a wrong value where there is one, since
// stop and monitor must work under every configuration.
func ParseParams(env Env) (Params, error) {
	var wrong []string
	get := func(name, def string, check func(string) error) string {
		v := env["OCF_RESKEY_"+name]
		if v == "" {
			return def
		}
		if err := check(v); err != nil {
			if name != "rewind_conninfo" && conninfoPassword.MatchString(v) {
				err = errors.New("holds a password, which the cluster's configuration shows to everybody: put it into the .pgpass of system_user")
			}
			wrong = append(wrong, name+" "+err.Error())
			return def
		}
		return v
	}
	var p Params
	p.SystemUser = get("system_user", DefaultSystemUser, checkUser)
	p.BinDir = cleanPath(get("bindir", "", checkPath))
	p.PGData = cleanPath(get("pgdata", DefaultPGData, checkPath))
	p.DataDir = cleanPath(get("datadir", p.PGData, checkPath))
	p.PGHost = get("pghost", DefaultPGHost, checkHost)
	p.PGPort = DefaultPGPort
	get("pgport", "", func(v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 65535 {
			return fmt.Errorf("is %q: expected a port number from 1 to 65535", v)
		}
		p.PGPort = n
		return nil
	})
	p.StartOpts = get("start_opts", "", func(v string) error {
		args, err := SplitArgs(v)
		p.StartArgs = args
		return err
	})
	get("maxlag", "", func(v string) error {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("is %q: expected a number of bytes, 0 (not enforced) or more", v)
		}
		p.MaxLag = n
		return nil
	})
	get("crash_recovery_limit", "", func(v string) error {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 || n > 1<<30 {
			return fmt.Errorf("is %q: expected a number of seconds, 0 (no limit) or more", v)
		}
		p.RecoveryLimit = n
		return nil
	})
	p.RewindConninfo = get("rewind_conninfo", "", CheckConninfo)
	p.RewindKeep = DefaultRewindKeep
	get("rewind_keep", "", func(v string) error {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 || n > 1<<30 {
			return fmt.Errorf("is %q: expected a number of megabytes, 0 (nothing is kept) or more", v)
		}
		p.RewindKeep = n
		return nil
	})
	instance := instanceName(env["OCF_RESOURCE_INSTANCE"])
	if instance == "" || strings.ContainsRune(instance, '/') {
		instance = "default" // called by hand
	}
	p.LogFile = cleanPath(get("logfile", filepath.Join(defaultLogDir, instance+"-postgresql.log"), checkPath))
	if len(wrong) > 0 {
		return p, Errorf(ErrArgs, "wrong parameters: %s", strings.Join(wrong, "; "))
	}
	return p, nil
}

func cleanPath(s string) string {
	if s == "" {
		return ""
	}
	return filepath.Clean(s)
}

func checkPath(v string) error {
	switch {
	case !filepath.IsAbs(v):
		return fmt.Errorf("is %q: expected an absolute path", v)
	case strings.ContainsFunc(v, isControl):
		return fmt.Errorf("is %q: control characters are not allowed in a path", v)
	}
	return nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// checkUser refuses what passwd(5) cannot hold; whether the user exists is asked
// of the system, not here.
func checkUser(v string) error {
	if strings.ContainsAny(v, ":/ ") || strings.ContainsFunc(v, isControl) || strings.HasPrefix(v, "-") {
		return fmt.Errorf("is %q: expected the name of a user", v)
	}
	return nil
}

// checkHost: one host only. libpq would take a list, but then the agent could
// speak to another node's server and believe that it is its own.
func checkHost(v string) error {
	if filepath.IsAbs(v) {
		return checkPath(v)
	}
	if strings.ContainsAny(v, ", /'\\=") || strings.ContainsFunc(v, isControl) {
		return fmt.Errorf("is %q: expected the absolute path of the socket's directory, or one host name or address", v)
	}
	return nil
}

// CheckConninfo is what is asked of a connection string. It never repeats what it was given: there may be a password in it.
func CheckConninfo(v string) error {
	switch {
	case strings.ContainsFunc(v, isControl):
		return errors.New("holds control characters")
	case strings.HasPrefix(v, "postgresql://"), strings.HasPrefix(v, "postgres://"):
	case !strings.Contains(v, "="):
		return errors.New("is no connection string: expected one such as 'host=10.0.0.10 user=rewind dbname=postgres'")
	}
	if strings.Contains(strings.ToLower(v), "sslpassword") {
		return errors.New("holds an sslpassword, which programs show to everybody on the node: use a key without one")
	}
	return nil
}

var conninfoPassword = regexp.MustCompile(`(?i)(^|[\s?&])(ssl)?password\s*=|://[^/@]*:[^/@]*@`)

// SplitArgs splits a line into arguments:
//
//   - spaces, tabs and line breaks separate arguments;
//   - between single quotes every character stands for itself;
//   - between double quotes too, but \" is a double quote and \\ a backslash;
//   - outside of quotes a backslash makes the next character stand for itself.
//
// Nothing else is special: no variable, pattern, comment or command is expanded,
// for no shell ever sees it. The error says what is not closed.
func SplitArgs(s string) ([]string, error) {
	if strings.ContainsRune(s, 0) {
		return nil, errors.New("holds a NUL character")
	}
	var args []string
	var cur strings.Builder
	inArg := false
	var quote rune // ' or ", 0 outside
	rs := []rune(s)
	for i := 0; i < len(rs); i++ {
		r := rs[i]
		next := func() (rune, bool) {
			if i+1 < len(rs) {
				return rs[i+1], true
			}
			return 0, false
		}
		switch {
		case quote == '\'' && r != '\'':
			cur.WriteRune(r)
		case quote != 0 && r == quote:
			quote = 0
		case quote == '"':
			if n, ok := next(); r == '\\' && ok && (n == '"' || n == '\\') {
				r = n
				i++
			}
			cur.WriteRune(r)
		case r == '\'' || r == '"':
			quote, inArg = r, true
		case r == '\\':
			n, ok := next()
			if !ok {
				return nil, errors.New("ends with a backslash: expected a character after it")
			}
			cur.WriteRune(n)
			inArg = true
			i++
		case r == ' ' || r == '\t' || r == '\n' || r == '\r':
			if inArg {
				args = append(args, cur.String())
				cur.Reset()
				inArg = false
			}
		default:
			cur.WriteRune(r)
			inArg = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("has a %c that is not closed", quote)
	}
	if inArg {
		args = append(args, cur.String())
	}
	return args, nil
}

// JoinArgs is the line that SplitArgs takes apart into these arguments again, and so
// does a shell.
func JoinArgs(args ...string) string {
	words := make([]string, len(args))
	for n, a := range args {
		if a == "" || strings.ContainsFunc(a, isSpecial) {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words[n] = a
	}
	return strings.Join(words, " ")
}

func isSpecial(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_@%+=:,./-", r)
}

// FindBinDir returns the directory of the server's programs for this instance:
// BinDir if the user set it, else the first of the usual places that holds a
// "postgres" and fits the PG_VERSION of the data directory. The error is an
// *Error with ErrInstalled that names the places that were searched.
func (p Params) FindBinDir() (string, error) {
	if p.BinDir != "" {
		if !isProgram(filepath.Join(p.BinDir, "postgres")) {
			return "", Errorf(ErrInstalled, "bindir %s holds no program postgres: install PostgreSQL there or correct bindir", p.BinDir)
		}
		return p.BinDir, nil
	}
	versionFile := filepath.Join(p.DataDir, "PG_VERSION")
	b, err := os.ReadFile(versionFile)
	if err != nil {
		return "", &Error{
			Code:   ErrInstalled,
			Reason: fmt.Sprintf("%s cannot be read: set pgdata, or bindir", versionFile),
			Err:    err,
		}
	}
	version := strings.TrimSpace(string(b))
	if n, err := strconv.Atoi(version); err != nil || n < 1 {
		return "", Errorf(ErrInstalled, "%s holds %q: expected a major version such as 15", versionFile, shorten(oneLine(version), 20))
	}
	dirs := binDirs(version)
	for _, dir := range dirs {
		if isProgram(filepath.Join(dir, "postgres")) {
			return dir, nil
		}
	}
	return "", Errorf(ErrInstalled, "PostgreSQL %s is not installed: install it or set bindir (looked in %s)", version, strings.Join(dirs, ", "))
}

// binDirs are the places of Debian's and the PGDG packages, then that of RHEL's
// own package and of a build into /usr/local, which hold one version only.
func binDirs(version string) []string {
	return []string{
		"/usr/lib/postgresql/" + version + "/bin",
		"/usr/pgsql-" + version + "/bin",
		"/usr/bin",
		"/usr/local/pgsql/bin",
	}
}

func isProgram(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular() && fi.Mode().Perm()&0o111 != 0
}
