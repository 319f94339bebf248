package postgres

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Ensure a server's command line says where its configuration is and what else it must be started with.
func TestServer_readArgs(t *testing.T) {
	data, conf := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(conf, "postgresql.conf"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "current")
	if err := os.Symlink(data, link); err != nil {
		t.Fatal(err)
	}
	const bin = "/usr/lib/postgresql/15/bin/postgres"
	for name, tt := range map[string]struct {
		argv   []string
		config string
		args   []string
	}{
		"nothing":                         {[]string{bin}, data, nil},
		"the data directory":              {[]string{bin, "-D", data}, data, nil},
		"by a symbolic link":              {[]string{bin, "-D", link}, link, nil},
		"a configuration":                 {[]string{bin, "-D" + conf}, conf, nil},
		"Debian":                          {[]string{bin, "-D", data, "-c", "config_file=" + conf + "/postgresql.conf"}, conf, nil},
		"Debian, long":                    {[]string{bin, "-D", link, "--config-file=" + conf + "/postgresql.conf"}, conf, nil},
		"another name of a file":          {[]string{bin, "-D", data, "-c", "config_file=" + conf + "/pg.conf"}, data, []string{"-c", "config_file=" + conf + "/pg.conf"}},
		"more arguments":                  {[]string{bin, "-D", data, "-p", "5433", "-c", "work_mem=1MB", "--shared_buffers=1GB"}, data, []string{"-p", "5433", "-c", "work_mem=1MB", "--shared_buffers=1GB"}},
		"a directory that is not its own": {[]string{bin, "-D", "/does/not/exist"}, data, nil},
	} {
		s := Server{DataDir: data}
		s.readArgs(tt.argv)
		if s.ConfigDir != tt.config || !slices.Equal(s.Args, tt.args) {
			t.Errorf("%s: got %s and %q, want %s and %q", name, s.ConfigDir, s.Args, tt.config, tt.args)
		}
	}
}
