package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/pgbaton/pgbaton/internal/ocf"
)

// Log writes one line a fact: to syslog, so that it stands in the system's journal beside Pacemaker's own lines, and to
// /var/log/pgbaton/RESOURCE.log.
type Log struct {
	*slog.Logger
	closers []io.Closer
}

// OpenLog opens the agent's log. Where nothing can be opened it is silent: an agent must not fail over its log.
func OpenLog(inv ocf.Invocation, env ocf.Env) *Log {
	l := &Log{}
	var out []slog.Handler
	path := "/var/log/pgbaton/" + inv.Resource + ".log"
	if f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644); err == nil {
		l.closers = append(l.closers, f)
		out = append(out, slog.NewTextHandler(f, &slog.HandlerOptions{ReplaceAttr: millis}))
	} else if os.IsNotExist(err) && os.MkdirAll(filepath.Dir(path), 0o755) == nil {
		if f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644); err == nil {
			l.closers = append(l.closers, f)
			out = append(out, slog.NewTextHandler(f, &slog.HandlerOptions{ReplaceAttr: millis}))
		}
	}
	if c, err := net.DialTimeout("unixgram", "/dev/log", 50*time.Millisecond); err == nil {
		l.closers = append(l.closers, c)
		w := &syslogWriter{conn: c, resource: inv.Resource}
		out = append(out, syslogHandler{slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: noTime}), w})
	}
	node := inv.Node
	if node == "" {
		node, _ = os.Hostname()
	}
	l.Logger = slog.New(fanout(out)).With("node", node)
	return l
}

// Close closes the log's outputs.
func (l *Log) Close() {
	for _, c := range l.closers {
		c.Close()
	}
}

func millis(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		a.Value = slog.StringValue(a.Value.Time().Format("2006-01-02T15:04:05.000Z07:00"))
	}
	return a
}

func noTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// syslogPatience is how long a line may wait for journald, which may hang with its disk. No action may fail over that.
const syslogPatience = 100 * time.Millisecond

// syslogWriter frames a line for the local syslog socket (RFC 3164, facility daemon).
type syslogWriter struct {
	conn     net.Conn
	resource string
	level    slog.Level
	hung     bool // a line was not taken in time: the rest of this process' lines stand in its own file alone
}

func (w *syslogWriter) Write(p []byte) (int, error) {
	if w.hung {
		return len(p), nil
	}
	_ = w.conn.SetWriteDeadline(time.Now().Add(syslogPatience))
	_, err := fmt.Fprintf(w.conn, "<%d>pgbaton(%s)[%d]: %s", 3<<3|severity(w.level), w.resource, os.Getpid(), p)
	w.hung = errors.Is(err, os.ErrDeadlineExceeded)
	return len(p), err
}

// severity is syslog's, so that journalctl -p finds what went wrong. What is worth a line is worth more than "info" there.
func severity(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	}
	return 5
}

// syslogHandler tells the writer of what severity the line is that it gets next. An agent logs from one goroutine.
type syslogHandler struct {
	slog.Handler
	w *syslogWriter
}

func (h syslogHandler) Handle(ctx context.Context, r slog.Record) error {
	h.w.level = r.Level
	return h.Handler.Handle(ctx, r)
}

func (h syslogHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return syslogHandler{h.Handler.WithAttrs(attrs), h.w}
}

func (h syslogHandler) WithGroup(name string) slog.Handler {
	return syslogHandler{h.Handler.WithGroup(name), h.w}
}

// fanout hands a record to several handlers.
type fanout []slog.Handler

func (f fanout) Enabled(context.Context, slog.Level) bool { return true }

func (f fanout) Handle(ctx context.Context, r slog.Record) error {
	for _, h := range f {
		h.Handle(ctx, r.Clone())
	}
	return nil
}

func (f fanout) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := make(fanout, len(f))
	for n, h := range f {
		out[n] = h.WithAttrs(attrs)
	}
	return out
}

func (f fanout) WithGroup(name string) slog.Handler {
	out := make(fanout, len(f))
	for n, h := range f {
		out[n] = h.WithGroup(name)
	}
	return out
}
