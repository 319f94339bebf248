package lab

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// DumpLines is how many lines of each log Dump writes.
const DumpLines = 120

// Dump writes everything that explains a failed test: the status, the scores, the
// state that pgbaton keeps, and the ends of all logs. It works on a lab that is dead
// too, and does not stop at errors.
func (l *Lab) Dump(ctx context.Context, w io.Writer) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	fmt.Fprintf(w, "===== lab %s, %s, %s\n", l.Name, l.Dir, time.Now().Format("15:04:05.000"))
	s, err := l.Status(ctx)
	if err != nil {
		fmt.Fprintf(w, "no status: %v\n", err)
	} else {
		fmt.Fprint(w, l.Describe(ctx, s))
	}
	if s != nil && s.Asked != "" {
		for _, argv := range [][]string{{"crm_mon", "-1Arf"}, {"crm_simulate", "-sL"}} {
			out, _ := l.Run(ctx, s.Asked, argv...)
			fmt.Fprintf(w, "===== %s on %s\n%s\n", strings.Join(argv, " "), s.Asked, out)
		}
	}
	l.tail(w, filepath.Join(l.Dir, "supervisor.log"))
	for _, n := range l.Names {
		l.tail(w, l.nodeDir(n, "console.log"))
		l.tree(w, l.nodeDir(n, "lib"))
		for _, path := range l.Logs(n) {
			l.tail(w, path)
		}
		if l.Systemd {
			out, err := exec.CommandContext(ctx, "journalctl", "-D", l.nodeDir(n, "log/journal"), "--no-pager", "-o", "short-precise", "-n", fmt.Sprint(DumpLines)).CombinedOutput()
			fmt.Fprintf(w, "===== journal of %s (%v)\n%s\n", n, err, out)
		}
	}
}

// binary are files below /var/log that nobody reads as they are.
var binary = regexp.MustCompile(`(\.journal|btmp|wtmp|lastlog)$`)

// Logs are the paths on the host of all log files of a node.
func (l *Lab) Logs(node string) []string {
	var paths []string
	_ = filepath.WalkDir(l.nodeDir(node, "log"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && filepath.Base(filepath.Dir(path)) != "actions" && !binary.MatchString(path) {
			paths = append(paths, path)
		}
		return nil
	})
	slices.Sort(paths)
	return paths
}

func (l *Lab) tail(w io.Writer, path string) {
	f, err := os.Open(path)
	if err != nil {
		fmt.Fprintf(w, "===== %v\n", err)
		return
	}
	defer f.Close()
	fmt.Fprintf(w, "===== %s\n", path)
	var last []string
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := sc.Text()
		if noise(line) {
			continue
		}
		last = append(last, line)
		if len(last) > 2*DumpLines {
			last = slices.Clone(last[DumpLines:])
		}
	}
	for _, line := range last[max(0, len(last)-DumpLines):] {
		fmt.Fprintln(w, line)
	}
}

// noise is what Pacemaker logs about every change of the CIB, line by line.
func noise(line string) bool {
	for _, s := range []string{"(cib_perform_op)", "(cib_process_request)", "(cib_file_", "(cib_process_ping)", "(throttle_"} {
		if strings.Contains(line, s) {
			return true
		}
	}
	return false
}

// tree writes the small text files below a directory whole, the others by name.
func (l *Lab) tree(w io.Writer, dir string) {
	fmt.Fprintf(w, "===== %s\n", dir)
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		b, err := os.ReadFile(path)
		switch {
		case err != nil:
			fmt.Fprintf(w, "%v\n", err)
		case len(b) <= 64<<10 && utf8.Valid(b):
			fmt.Fprintf(w, "--- %s\n%s\n", path, b)
		default:
			fmt.Fprintf(w, "--- %s: %d bytes\n", path, len(b))
		}
		return nil
	})
}
