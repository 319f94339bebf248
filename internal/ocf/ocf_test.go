package ocf_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/pgbaton/pgbaton/internal/ocf"
)

// Ensure the number of each exit code is that of the standard.
func TestExitCode(t *testing.T) {
	for code, want := range map[ocf.ExitCode]int{
		ocf.Success: 0, ocf.ErrGeneric: 1, ocf.ErrArgs: 2, ocf.ErrUnimplemented: 3, ocf.ErrPerm: 4, ocf.ErrInstalled: 5,
		ocf.ErrConfigured: 6, ocf.NotRunning: 7, ocf.RunningPromoted: 8, ocf.FailedPromoted: 9, ocf.Degraded: 190, ocf.DegradedPromoted: 191,
	} {
		if int(code) != want || !strings.HasSuffix(code.String(), fmt.Sprintf("(%d)", want)) {
			t.Errorf("%v is %d, want %d", code, int(code), want)
		}
	}
	if got := ocf.ExitCode(42).String(); got != "exit code 42" {
		t.Error(got)
	}
}

func TestCodeOf(t *testing.T) {
	cause := ocf.Errorf(ocf.ErrPerm, "cannot read %s: %w", "/x", fs.ErrPermission)
	for _, tt := range []struct {
		err    error
		code   ocf.ExitCode
		reason string
	}{
		{nil, ocf.Success, ""},
		{errors.New("boom"), ocf.ErrGeneric, "boom"},
		{cause, ocf.ErrPerm, "cannot read /x: permission denied"},
		{fmt.Errorf("start: %w", cause), ocf.ErrPerm, "cannot read /x: permission denied"},
		{&ocf.Error{Code: ocf.ErrInstalled, Reason: "no server", Err: fs.ErrNotExist}, ocf.ErrInstalled, "no server"},
	} {
		if got := ocf.CodeOf(tt.err); got != tt.code {
			t.Errorf("%v: code %v, want %v", tt.err, got, tt.code)
		}
		if got := ocf.ReasonOf(tt.err); got != tt.reason {
			t.Errorf("%v: reason %q, want %q", tt.err, got, tt.reason)
		}
	}
	if !errors.Is(cause, fs.ErrPermission) {
		t.Error("the cause is lost")
	}
	if got := (&ocf.Error{Reason: "no server", Err: fs.ErrNotExist}).Error(); got != "no server: file does not exist" {
		t.Error(got)
	}
}

func TestWriteReason(t *testing.T) {
	t.Setenv("OCF_EXIT_REASON_PREFIX", "")
	words := strings.Repeat("word ", 40)
	for _, tt := range []struct{ reason, want string }{
		{"", ""},
		{" \n ", ""},
		{"standby n2 lacks the last record", "standby n2 lacks the last record"},
		{"two\nlines\tand \x1b[1mmore", "two lines and [1mmore"},
		{"not \xff UTF-8", "not ? UTF-8"},
		{strings.Repeat("x", 128), strings.Repeat("x", 128)},
		{strings.Repeat("x", 129), strings.Repeat("x", 125) + "..."},
		{words, strings.TrimSpace(words[:125]) + "..."},
		{strings.Repeat("ü", 100), strings.Repeat("ü", 62) + "..."},
	} {
		var b bytes.Buffer
		ocf.WriteReason(&b, tt.reason)
		want := ""
		if tt.want != "" {
			want = "ocf-exit-reason:" + tt.want + "\n"
		}
		if b.String() != want {
			t.Errorf("%q:\n got %q\nwant %q", tt.reason, b.String(), want)
		}
		if n := len(strings.TrimSuffix(strings.TrimPrefix(b.String(), "ocf-exit-reason:"), "\n")); n > ocf.MaxReason || !utf8.Valid(b.Bytes()) {
			t.Errorf("%q: %d bytes: %q", tt.reason, n, b.String())
		}
	}
	t.Setenv("OCF_EXIT_REASON_PREFIX", "why=")
	var b bytes.Buffer
	ocf.WriteReason(&b, "x")
	if b.String() != "why=x\n" {
		t.Errorf("got %q", b.String())
	}
}

func TestEnvFromOS(t *testing.T) {
	got := ocf.EnvFromOS([]string{"A=1", "B=x=y", "C=", "A=2", "junk"})
	if want := (ocf.Env{"A": "1", "B": "x=y", "C": ""}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Trap 26: Pacemaker's time-outs are in milliseconds.
func TestParseInvocation(t *testing.T) {
	pacemaker := ocf.Env{
		"OCF_RESOURCE_INSTANCE": "pgsqld:2", "OCF_RESKEY_CRM_meta_on_node": "n1", "OCF_RESKEY_CRM_meta_timeout": "60000",
		"OCF_RESKEY_CRM_meta_interval": "15000", "OCF_RESKEY_CRM_meta_role": "Master", "OCF_RESKEY_CRM_meta_notify": "true",
		"OCF_RESKEY_CRM_meta_clone": "2", "OCF_RESKEY_CRM_meta_promoted_max": "1", "OCF_RESKEY_CRM_meta_clone_max": "3",
		"OCF_RESKEY_crm_feature_set": "3.16.1", "OCF_CHECK_LEVEL": "10",
	}
	for _, tt := range []struct {
		name string
		args []string
		env  ocf.Env
		want ocf.Invocation
		code ocf.ExitCode
	}{
		{"recurring monitor", []string{"monitor"}, pacemaker, ocf.Invocation{
			Action: "monitor", Resource: "pgsqld", Node: "n1", Timeout: time.Minute, Interval: 15 * time.Second, Role: "Promoted",
			NotifyEnabled: true, Clone: true, PromotedMax: 1, CloneMax: 3, FeatureSet: "3.16.1", CheckLevel: 10,
		}, 0},
		{"probe", []string{"monitor"}, ocf.Env{"OCF_RESOURCE_INSTANCE": "pgsqld", "OCF_RESKEY_CRM_meta_interval": "0", "OCF_RESKEY_CRM_meta_master_max": "2"}, ocf.Invocation{
			Action: "monitor", Resource: "pgsqld", Probe: true, PromotedMax: 2,
		}, 0},
		{"by hand", []string{"start"}, ocf.Env{}, ocf.Invocation{Action: "start"}, 0},
		{"nonsense counts as not said", []string{"stop"}, ocf.Env{
			"OCF_RESOURCE_INSTANCE": "a:b", "OCF_RESKEY_CRM_meta_timeout": "-1", "OCF_RESKEY_CRM_meta_interval": "20s", "OCF_RESKEY_CRM_meta_promoted_max": "x", "OCF_RESKEY_CRM_meta_notify": "false",
		}, ocf.Invocation{Action: "stop", Resource: "a:b"}, 0},
		{"timeout beyond measure", []string{"stop"}, ocf.Env{"OCF_RESKEY_CRM_meta_timeout": "9223372036854775807"}, ocf.Invocation{Action: "stop"}, 0},
		{"no action", nil, ocf.Env{}, ocf.Invocation{}, ocf.ErrArgs},
		{"two actions", []string{"start", "stop"}, ocf.Env{}, ocf.Invocation{}, ocf.ErrArgs},
		{"unknown action", []string{"migrate_to"}, ocf.Env{}, ocf.Invocation{Action: "migrate_to"}, ocf.ErrUnimplemented},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ocf.ParseInvocation(tt.args, tt.env)
			if ocf.CodeOf(err) != tt.code {
				t.Errorf("error %v, want code %v", err, tt.code)
			}
			if got != tt.want {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestParseParams_Defaults(t *testing.T) {
	got, err := ocf.ParseParams(ocf.Env{"OCF_RESOURCE_INSTANCE": "pgsqld:1", "OCF_RESKEY_pgport": "", "OCF_RESKEY_bindir": ""})
	want := ocf.Params{
		SystemUser: "postgres", PGData: "/var/lib/pgsql/data", DataDir: "/var/lib/pgsql/data", PGHost: "/var/run/postgresql", PGPort: 5432,
		RewindKeep: 1024, LogFile: "/var/log/pgbaton/pgsqld-postgresql.log",
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
}

func TestParseParams_Set(t *testing.T) {
	got, err := ocf.ParseParams(ocf.Env{
		"OCF_RESKEY_system_user": "pg", "OCF_RESKEY_bindir": "/opt/pg 15/bin/", "OCF_RESKEY_pgdata": "/etc/pg data", "OCF_RESKEY_datadir": "/srv/pg data/",
		"OCF_RESKEY_pghost": "127.0.0.1", "OCF_RESKEY_pgport": "5433", "OCF_RESKEY_start_opts": `-c config_file='/etc/pg data/x.conf'`,
		"OCF_RESKEY_maxlag": "16777216", "OCF_RESKEY_rewind_conninfo": "host=10.0.0.10 password=secret", "OCF_RESKEY_rewind_keep": "0", "OCF_RESKEY_logfile": "/var/log/x.log",
	})
	want := ocf.Params{
		SystemUser: "pg", BinDir: "/opt/pg 15/bin", PGData: "/etc/pg data", DataDir: "/srv/pg data", PGHost: "127.0.0.1", PGPort: 5433,
		StartOpts: `-c config_file='/etc/pg data/x.conf'`, StartArgs: []string{"-c", "config_file=/etc/pg data/x.conf"},
		MaxLag: 16 << 20, RewindConninfo: "host=10.0.0.10 password=secret", LogFile: "/var/log/x.log",
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
}

// Ensure each wrong value is named with what is allowed, all in one error, and that
// the other parameters survive it.
func TestParseParams_Wrong(t *testing.T) {
	for _, tt := range []struct{ name, value, want string }{
		{"system_user", "post gres", "expected the name of a user"},
		{"system_user", "../x", "expected the name of a user"},
		{"bindir", "usr/bin", "expected an absolute path"},
		{"pgdata", "data", "expected an absolute path"},
		{"pgdata", "/a\nb", "control characters"},
		{"datadir", ".", "expected an absolute path"},
		{"pghost", "n1,n2", "one host name"},
		{"pghost", "/a\x00b", "control characters"},
		{"pghost", "h port=1", "one host name"},
		{"pgport", "0", "from 1 to 65535"},
		{"pgport", "65536", "from 1 to 65535"},
		{"pgport", "five", "from 1 to 65535"},
		{"start_opts", `-c "a`, "not closed"},
		{"start_opts", `-c a\`, "backslash"},
		{"maxlag", "-1", "number of bytes"},
		{"crash_recovery_limit", "5min", "number of seconds"},
		{"maxlag", "16MB", "number of bytes"},
		{"logfile", "x.log", "expected an absolute path"},
		{"pghost", "host=x password=secret", ".pgpass"},
		{"rewind_conninfo", "secret", "no connection string"},
		{"rewind_conninfo", "host=x sslpassword=secret", "without one"},
		{"rewind_keep", "-1", "megabytes"},
	} {
		p, err := ocf.ParseParams(ocf.Env{"OCF_RESKEY_" + tt.name: tt.value})
		if ocf.CodeOf(err) != ocf.ErrArgs || !strings.Contains(err.Error(), tt.name+" ") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s=%q: error %v, want one with %q", tt.name, tt.value, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error tells the password: %v", err)
		}
		if p.PGData == "" || p.DataDir == "" || p.PGPort == 0 || p.SystemUser == "" || p.LogFile == "" {
			t.Errorf("%s=%q: stop and monitor get %+v", tt.name, tt.value, p)
		}
	}
	_, err := ocf.ParseParams(ocf.Env{"OCF_RESKEY_pgport": "x", "OCF_RESKEY_maxlag": "y", "OCF_RESKEY_pgdata": "z"})
	for _, name := range []string{"pgport", "maxlag", "pgdata"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not named in: %v", name, err)
		}
	}
}

func TestSplitArgs(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want []string
	}{
		{"", nil},
		{"  \t\n ", nil},
		{"-c a=b  -p 5432", []string{"-c", "a=b", "-p", "5432"}},
		{`-c 'a b'`, []string{"-c", "a b"}},
		{`'it''s'`, []string{"its"}},
		{`a\ b \' \\`, []string{"a b", "'", `\`}},
		{`"a \"b\" \\ \n 'c'"`, []string{`a "b" \ \n 'c'`}},
		{`'\' "" ''`, []string{`\`, "", ""}},
		{`x"y z"'w v'`, []string{"xy zw v"}},
		{`$HOME $(id) ; rm * # ~ ` + "`id`", []string{"$HOME", "$(id)", ";", "rm", "*", "#", "~", "`id`"}},
		{"é ü", []string{"é", "ü"}},
	} {
		got, err := ocf.SplitArgs(tt.in)
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: got %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
	for _, in := range []string{`'`, `"`, `\`, `a "b`, `"a\"`, "a\x00b"} {
		if got, err := ocf.SplitArgs(in); err == nil {
			t.Errorf("%q: got %q, want an error", in, got)
		}
	}
}

func FuzzSplitArgs(f *testing.F) {
	f.Add(`-c 'a b' "c\"d" e\ f`)
	f.Fuzz(func(t *testing.T, s string) {
		args, err := ocf.SplitArgs(s)
		if err != nil {
			return
		}
		// Each argument, quoted on its own, must come back alone and unchanged; and so all of them.
		for _, a := range args {
			quoted := `'` + strings.ReplaceAll(a, `'`, `'\''`) + `'`
			back, err := ocf.SplitArgs(quoted)
			if err != nil || len(back) != 1 || back[0] != a {
				t.Errorf("%q of %q: quoted %q gives %q, %v", a, s, quoted, back, err)
			}
		}
		line := ocf.JoinArgs(args...)
		if back, err := ocf.SplitArgs(line); err != nil || !slices.Equal(back, args) {
			t.Errorf("%q, joined to %q, gives %q, %v", args, line, back, err)
		}
	})
}

// Ensure a shell takes a joined line apart as it was, and that what needs no quotes has none.
func TestJoinArgs(t *testing.T) {
	args := []string{"-p", "/srv/a b", "", "it's", "$HOME", "`id`", "a\\b", "*", "~", "#", "x=y", "ü", "n1,n2", "two\nlines", "a;b", "\"q\""}
	line := ocf.JoinArgs(args...)
	out, err := exec.Command("sh", "-c", `printf '%s\0' `+line).Output()
	if got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"); err != nil || !slices.Equal(got, args) {
		t.Errorf("%s: a shell makes %q of it, %v; want %q", line, got, err, args)
	}
	if got := ocf.JoinArgs("crm_resource", "-N", "n1.example", "-p", "a_b=c:d,/e@%+"); got != "crm_resource -N n1.example -p a_b=c:d,/e@%+" {
		t.Errorf("got %s", got)
	}
}

func TestFindBinDir(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode fs.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("good/postgres", "", 0o755)
	write("bad/postgres", "", 0o644)
	write("data99/PG_VERSION", "99\n", 0o644)
	write("junk/PG_VERSION", "<html>\n", 0o644)
	for _, tt := range []struct {
		name   string
		p      ocf.Params
		want   string
		reason string
	}{
		{"set", ocf.Params{BinDir: dir + "/good"}, dir + "/good", ""},
		{"set, no program", ocf.Params{BinDir: dir + "/bad"}, "", "holds no program postgres"},
		{"no data directory", ocf.Params{DataDir: dir + "/none"}, "", "set pgdata"},
		{"no such version", ocf.Params{DataDir: dir + "/data99"}, "", "PostgreSQL 99 is not installed"},
		{"not a version", ocf.Params{DataDir: dir + "/junk"}, "", "expected a major version"},
	} {
		got, err := tt.p.FindBinDir()
		if got != tt.want || (tt.reason == "") != (err == nil) || !strings.Contains(ocf.ReasonOf(err), tt.reason) {
			t.Errorf("%s: got %q, %v; want %q, %q", tt.name, got, err, tt.want, tt.reason)
		}
		if err != nil && ocf.CodeOf(err) != ocf.ErrInstalled {
			t.Errorf("%s: code %v", tt.name, ocf.CodeOf(err))
		}
	}
}
