package postgres

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func fmtLock(pid int, dir string) string { return fmt.Sprintf("%d\n%s\n1700000000\n5433\n", pid, dir) }

// Ensure the configuration files are read as the server reads them: it is asked for each parameter.
func TestSettings(t *testing.T) {
	i := testInstance(t)
	i.StartArgs = append(i.StartArgs, "-c", "work-mem=3072", "--maintenance_work_mem=5120", "-cwal_keep_size=1024")
	write := func(name, content string) {
		t.Helper()
		path := filepath.Join(i.DataDir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("postgresql.conf", `
primary_conninfo = 'host=a password=''x'' application_name=n1' # the node
Cluster_Name='n1'
archive_command   'cp %p "/a b/%f"'
restore_command='cp ''/a#b''/%f\t"%p" \101\\ \q'   # a comment
recovery_end_command = none
wal_level = logical # replica
  hot_standby on
work_mem = 1MB
wal_keep_size=128MB
log_line_prefix='%m [%p] '
include 'more conf/one.conf'
include_if_exists 'nowhere.conf'
include_dir 'more [conf]'
`)
	write("more conf/one.conf", "max_wal_senders = 7\ninclude '../two.conf'\n")
	write("two.conf", "max_connections = 77\nwal_sender_timeout = '1min'\n")
	write("more [conf]/b.conf", "max_worker_processes = 11\n")
	write("more [conf]/a.conf", "max_worker_processes = 9\ntemp_buffers = 1152\n")
	write("more [conf]/.hidden.conf", "temp_buffers = 99MB\n")
	write("more [conf]/not.conf.bak", "temp_buffers = 99MB\n")
	write("postgresql.auto.conf", "wal_sender_timeout = '9000'\n")

	got := i.Settings() // values as written; the server answers in its base units, so that is how they are written here
	for _, name := range []string{
		"primary_conninfo", "cluster_name", "archive_command", "restore_command", "recovery_end_command", "wal_level", "hot_standby", "work_mem",
		"maintenance_work_mem", "wal_keep_size", "log_line_prefix", "max_wal_senders", "max_connections", "wal_sender_timeout", "max_worker_processes", "temp_buffers",
	} {
		want, err := i.ConfiguredValue(context.Background(), name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if strings.TrimSpace(got[name]) != want {
			t.Errorf("%s is %q, the server says %q", name, got[name], want)
		}
	}
	if _, err := i.ConfiguredValue(t.Context(), "no_such_parameter"); err == nil || !strings.Contains(err.Error(), "no_such_parameter") {
		t.Errorf("unknown parameter: %v", err)
	}
	write("more [conf]/c.conf", "work_mem = lots\n")
	if _, err := i.ConfiguredValue(t.Context(), "work_mem"); err == nil || !strings.Contains(err.Error(), `invalid value for parameter "work_mem"`) {
		t.Errorf("wrong configuration: %v; want what the server says first", err)
	}
	if got, err := i.ProgramMajor(t.Context()); got != 15 || err != nil {
		t.Errorf("the program is of %d, %v; want 15", got, err)
	}
}

// Ensure the data directory is found as the server would find it.
func TestConfiguredDataDir(t *testing.T) {
	conf, data := t.TempDir(), t.TempDir()
	file := filepath.Join(conf, "postgresql.conf")
	for _, tt := range []struct {
		name, content string
		args          []string
		want          string
	}{
		{"no file", "", nil, conf},
		{"not set", "port = 1\n", nil, conf},
		{"set", "data_directory = '" + data + "/'\n", nil, data},
		{"relative", "data_directory = 'main'\n", nil, conf},
		{"on the command line", "data_directory = '/x'\n", []string{"-c", "data_directory=" + data}, data},
		{"another file", "data_directory = '/x'\n", []string{"-c", "config_file=/nowhere"}, conf},
	} {
		os.Remove(file)
		if tt.content != "" {
			if err := os.WriteFile(file, []byte(tt.content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		i := &Instance{ConfigDir: conf, StartArgs: tt.args}
		if got := i.ConfiguredDataDir(); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	if err := os.WriteFile(filepath.Join(conf, "PG_VERSION"), []byte("15\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := (&Instance{ConfigDir: conf}).ConfiguredDataDir(); got != conf {
		t.Errorf("a directory with PG_VERSION: %q, want %q", got, conf)
	}
}

func TestConninfoValue(t *testing.T) {
	for _, tt := range []struct{ info, want string }{
		{"", ""},
		{"application_name=n1", "n1"},
		{" host = a  application_name = n1 ", "n1"},
		{"host=a application_name='n 1' port=1", "n 1"},
		{`application_name='it\'s'`, "it's"},
		{`application_name=a\ b`, "a b"},
		{"application_name=", ""},
		{"application_name='' host=x", ""},
		{"application_name=n1 application_name=n2", "n2"},
		{"password='x application_name=n2' application_name=n1", "n1"},
		{"password='x application_name=n2", ""},
		{"fallback_application_name=n2", ""},
		{"nonsense", ""},
		{"options=-c a=b application_name=n1", "n1"}, // as pg_stat_wal_receiver has it
		{"postgresql://u:p@h:1/db?application_name=n1", "n1"},
		{"postgres://h1:1,h2:2/?sslmode=disable&application_name=n%2D1", "n-1"},
		{"postgresql:///?host=/run", ""},
		{"host=/x://y application_name=n1", "n1"},
	} {
		if got := ConninfoValue(tt.info, "application_name"); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.info, got, tt.want)
		}
	}
}

func TestSplitPassword(t *testing.T) {
	for _, tt := range []struct{ info, rest, password string }{
		{"host=a user=u", "host=a user=u dbname=postgres", ""},
		{"host=a password=s3cret dbname=x", "host=a dbname=x", "s3cret"},
		{`host=a password='it\'s a \\' user='u 1'`, `host=a user='u 1' dbname=postgres`, `it's a \`},
		{"password=a password=b host=h", "host=h dbname=postgres", "b"},
		{"host=a options=", "host=a options='' dbname=postgres", ""},
		{"postgresql://u:s%20x@h1:1,h2:2/db?sslmode=require", "postgresql://u@h1:1,h2:2/db?sslmode=require", "s x"},
		{"postgres://h/?password=x&user=u", "postgres://h/?user=u&dbname=postgres", "x"},
		{"postgres://u@h", "postgres://u@h?dbname=postgres", ""},
		{"postgres://u:s?x@h", "postgres://u@h?dbname=postgres", "s?x"},
		{"postgres://u:s@x@h/db", "postgres://u@h/db", "s@x"},
	} {
		rest, password := SplitPassword(tt.info, [2]string{"dbname", "postgres"})
		if rest != tt.rest || password != tt.password {
			t.Errorf("%q: %q and %q, want %q and %q", tt.info, rest, password, tt.rest, tt.password)
		}
	}
}

// Ensure the parts of a URI before its parameters are keywords too.
func TestConninfoValue_URI(t *testing.T) {
	const info = "postgresql://u%201:s@10.0.0.1:1,[fe80::1]:2/d?application_name=a+b&application_name=n%2B1"
	for key, want := range map[string]string{"user": "u 1", "password": "s", "host": "10.0.0.1,fe80::1", "port": "1,2", "dbname": "d", "application_name": "n+1"} {
		if got := ConninfoValue(info, key); got != want {
			t.Errorf("%s: got %q, want %q", key, got, want)
		}
	}
}

func TestSetConninfo(t *testing.T) {
	for _, tt := range []struct {
		info, want string
		ok         bool
	}{
		{"", "application_name='n 1'", true},
		{`host=a application_name=x password='it\'s' application_name = y`, `host=a password='it\'s' application_name='n 1'`, true},
		{"postgresql://u:p%20x@h1:1,h2:2/db", "postgresql://u:p%20x@h1:1,h2:2/db?application_name=n%201", true},
		{"postgres:///?application_name=x&host=/run", "postgres:///?host=/run&application_name=n%201", true},
		{"host=a nonsense", "", false},
		{"host=a password='x", "", false},
		{"a b=c", "", false},
		{"postgres://u:p/x@h/", "", false},
		{"postgres://h/?nonsense", "", false},
		{"postgres://h/?a=%zz", "", false},
	} {
		if got, ok := SetConninfo(tt.info, "application_name", "n 1"); ok != tt.ok || ok && got != tt.want {
			t.Errorf("%q: got %q, %v, want %q, %v", tt.info, got, ok, tt.want, tt.ok)
		}
	}
}

// Ensure no part of a password is shown, however it is written, also where libpq would not understand it.
func TestShownConninfo(t *testing.T) {
	for _, tt := range []struct {
		info, want string
		secret     bool
	}{
		{"host=a  user='u 1'", "host=a user='u 1'", false},
		{"host=a passfile=/x", "host=a passfile=/x", false},
		{"host=a password=geheim user=b", "host=a password=(not shown) user=b", true},
		{"password='ge heim' host=a", "password=(not shown) host=a", true},
		{"sslpassword = geheim", "sslpassword=(not shown)", true},
		{`password=ge\ heim host=a`, "password=(not shown) host=a", true},
		{`password = 'ge\'heim' host=a`, "password=(not shown) host=a", true},
		{"PASSWORD=geheim sslpassword=geheim", "PASSWORD=(not shown) sslpassword=(not shown)", true},
		{"password=ge heim host=a", "(not shown)", true},
		{"password='geheim", "(not shown)", true},
		{"geheim", "(not shown)", false},
		{" postgresql://rep:geheim@10.0.0.5/?application_name=n1", "(not shown)", false},
		{"host=a password=my pass!wo=rd user=b", "(not shown)", true},
		{"postgresql://u@h:1/db?sslmode=require", "postgresql://u@h:1/db?sslmode=require", false},
		{"postgresql://u:geheim@h/?application_name=x", "postgresql://u:(not shown)@h/?application_name=x", true},
		{"postgresql://u:ge@heim@h/", "postgresql://u:(not shown)@h/", true},
		{"postgresql://u:ge?heim@h/", "postgresql://u:(not shown)@h/", true},
		{"postgresql://u:ge/heim@h/", "(not shown)", false},
		{"postgresql://u:geheim/db", "(not shown)", false},
		{"postgres://h/?pass%77ord=geheim&user=u&sslpassword=geheim", "postgres://h/?password=(not shown)&user=u&sslpassword=(not shown)", true},
	} {
		got, secret := ShownConninfo(tt.info)
		if got != tt.want || secret != tt.secret {
			t.Errorf("%q: got %q, %v, want %q, %v", tt.info, got, secret, tt.want, tt.secret)
		}
	}
}

func TestSplitList(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want []string
	}{
		{"", nil},
		{"/tmp", []string{"/tmp"}},
		{" /run/a , /tmp ", []string{"/run/a", "/tmp"}},
		{`"/a, b", /c`, []string{"/a, b", "/c"}},
		{`"/a ""b""",/c`, []string{`/a "b"`, "/c"}},
		{`"/a`, []string{"/a"}},
		{",,", nil},
	} {
		if got := SplitList(tt.in); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: %q, want %q", tt.in, got, tt.want)
		}
	}
}

func FuzzParseConfLine(f *testing.F) {
	f.Add(`a = 'b\'' # c`)
	f.Add(`a '\`)
	f.Fuzz(func(t *testing.T, line string) {
		parseConfLine(line)
		ConninfoValue(line, "application_name")
		ConninfoValue("postgres://"+line, "application_name")
		SplitList(line)
	})
}
