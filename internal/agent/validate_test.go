package agent

import (
	"os"
	"path/filepath"
	"testing"
)

func TestIsOff(t *testing.T) {
	for v, want := range map[string]bool{
		"off": true, "OFF": true, "of": true, "false": true, "fa": true, "f": true, "no": true, "n": true, "0": true,
		"on": false, "o": false, "true": false, "t": false, "yes": false, "1": false, "": false, "offf": false,
	} {
		if got := isOff(v); got != want {
			t.Errorf("%q: %v, want %v", v, got, want)
		}
	}
}

// Ensure two names of one directory are the same, and that what does not exist is only the same as itself.
func TestSameFile(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		x, y string
		want bool
	}{
		{dir, link, true},
		{dir, dir + "/", true},
		{dir, filepath.Dir(dir), false},
		{"/nowhere", "/nowhere/", true},
		{"/nowhere", "/nowhere else", false},
	} {
		if got := sameFile(tt.x, tt.y); got != tt.want {
			t.Errorf("%s, %s: %v, want %v", tt.x, tt.y, got, tt.want)
		}
	}
}

// Ensure the reason for a server's end is what it said itself, and never what a WAL receiver said, which may hold a
// password.
func TestLastFatal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log := `x LOG:  starting
x [1] FATAL:  hot standby is not possible because of insufficient parameter settings
x [2] FATAL:  could not connect to the primary server: missing "=" after "sEcr3t" in connection info string
x [3] FATAL:  invalid connection string syntax: missing "=" after "sEcr3t" in connection info string
x LOG:  database system is shut down
`
	if err := os.WriteFile(path, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := lastFatal(path, 0), "hot standby is not possible because of insufficient parameter settings"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := lastFatal(path, int64(len(log)-10)); got != "" {
		t.Errorf("of an earlier run: %q", got)
	}
	if got := lastFatal(path+"x", 0); got != "" {
		t.Errorf("no log: %q", got)
	}
}
