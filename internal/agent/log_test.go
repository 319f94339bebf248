package agent

import (
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Ensure a journald that hangs keeps no action: what it does not take in time it does not get.
func TestSyslog_Hung(t *testing.T) {
	addr := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "log"), Net: "unixgram"}
	journald, err := net.ListenUnixgram("unixgram", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer journald.Close()
	c, err := net.Dial("unixgram", addr.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w := &syslogWriter{conn: c, resource: "pgsqld"}
	l := slog.New(syslogHandler{slog.NewTextHandler(w, nil), w})
	began := time.Now()
	for range 3000 { // more than any queue holds (net.unix.max_dgram_qlen)
		l.Info("a line", "text", strings.Repeat("x", 500))
	}
	if took := time.Since(began); !w.hung || took > 20*syslogPatience {
		t.Errorf("3000 lines that nobody reads took %s (hung: %v), expected that it gives up after %s", took, w.hung, syslogPatience)
	}
	b := make([]byte, 1024)
	if n, err := journald.Read(b); err != nil || !strings.HasPrefix(string(b[:n]), "<29>pgbaton(pgsqld)[") {
		t.Errorf("the first line is %q, %v", b[:n], err)
	}
}
