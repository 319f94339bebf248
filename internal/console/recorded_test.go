package console

import (
	"context"
	"encoding/xml"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/golden"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// recorded answers with what the commands of a real cluster said; testdata/README.md tells how that was recorded. What
// would change something is only noted.
type recorded struct {
	t       *testing.T
	dir     string
	replace map[string]string // in every answer
	hang    string            // this command does not answer
	broken  string            // the answer of this one is cut short
	told    map[string]string // what the nodes published of their histories; it is not recorded

	lock    sync.Mutex
	changes []string
}

func (r *recorded) Run(ctx context.Context, argv ...string) ([]byte, error) {
	name := map[string]string{"crm_mon": "crm_mon", "cibadmin": "cibadmin", "crm_node": "crm_node", "attrd_updater": "bulletins"}[argv[0]]
	line := strings.Join(argv, " ")
	switch {
	case argv[0] == "attrd_updater" && strings.Contains(line, "pgbaton-view-"):
		name = "views"
	case argv[0] == "cibadmin" && strings.Contains(line, "--query --xpath //resources//*[@id='pgsql-ha']"):
		name = "clone"
	case argv[0] == "crmadmin":
		name = "crmadmin"
	case strings.HasPrefix(line, "crm_resource --show-metadata "):
		name = "metadata-" + line[strings.LastIndexByte(line, ':')+1:]
		if _, err := os.Stat(filepath.Join(r.dir, name+".xml")); err != nil {
			return nil, &pacemaker.RunError{Argv: argv, Status: 105}
		}
	}
	if argv[0] == "attrd_updater" && strings.Contains(line, "pgbaton-history-") {
		var b strings.Builder
		b.WriteString("<pacemaker-result>")
		for node, value := range r.told {
			b.WriteString(`<attribute name="x" host="` + node + `" value="`)
			xml.EscapeText(&b, []byte(value))
			b.WriteString(`"/>`)
		}
		return []byte(b.String() + "</pacemaker-result>"), nil
	}
	if argv[0] == "crm_simulate" { // it would do nothing
		return nil, os.WriteFile(argv[len(argv)-1], []byte("<transition_graph/>"), 0o600)
	}
	if name == "" || !strings.Contains(line, "--query") && (argv[0] == "cibadmin" || argv[0] == "attrd_updater") {
		r.lock.Lock()
		defer r.lock.Unlock()
		r.changes = append(r.changes, line)
		return nil, nil
	}
	if argv[0] == r.hang {
		<-ctx.Done()
		return nil, &pacemaker.RunError{Argv: argv, Status: -1, Err: context.Cause(ctx)}
	}
	read := func(ext string) string {
		b, err := os.ReadFile(filepath.Join(r.dir, name+ext))
		if err != nil {
			r.t.Error(err)
		}
		return string(b)
	}
	out := read(".xml")
	r.lock.Lock()
	replace := r.replace
	r.lock.Unlock()
	for old, now := range replace {
		out = strings.ReplaceAll(out, old, now)
	}
	if argv[0] == r.broken {
		out = out[:len(out)/2]
	}
	if status, _ := strconv.Atoi(strings.TrimSpace(read(".rc"))); status != 0 {
		return []byte(out), &pacemaker.RunError{Argv: argv, Status: status, Stderr: strings.TrimSpace(read(".err")), Err: errors.New("failed")}
	}
	return []byte(out), nil
}

// replay is the world of a recorded moment, in which this node's server cannot be asked.
func replay(t *testing.T, name string) (World, *recorded) {
	t.Helper()
	r := &recorded{t: t, dir: filepath.Join("testdata", "cluster", name)}
	b, err := os.ReadFile(filepath.Join(r.dir, "now"))
	if err != nil {
		t.Fatal(err)
	}
	sec, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return World{
		Run: r,
		Ask: func(context.Context, map[string]string) (postgres.Overview, error) {
			return postgres.Overview{}, errNotHere
		},
		Now:     func() time.Time { return time.Unix(sec, 0).UTC() },
		Journal: func(string) []journal.Event { return nil },
	}, r
}

// goldenPage compares text with testdata/NAME.golden; what is for a person, whose name has no dot, fits in 80 columns.
func goldenPage(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if !strings.Contains(name, ".") {
		for line := range strings.Lines(got) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > 80 {
				t.Errorf("%s: %d columns: %s", path, n, line)
			}
		}
	}
	golden.Compare(t, path, got)
}
