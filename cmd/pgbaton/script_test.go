package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain makes this program the command, and each of Pacemaker's commands that it runs: those answer with what a real
// cluster said ($RECORDED, see internal/console/testdata/README.md).
func TestMain(m *testing.M) {
	commands := map[string]func(){"pgbaton": main}
	for _, name := range []string{"crm_mon", "cibadmin", "crm_node", "crmadmin", "crm_resource", "attrd_updater"} {
		commands[name] = func() { answer(name) }
	}
	testscript.Main(m, commands)
}

// answer plays one of Pacemaker's commands. What would change something is noted in $CHANGES.
func answer(name string) {
	line := strings.Join(os.Args, " ")
	switch {
	case name == os.Getenv("HANGS"):
		time.Sleep(time.Minute)
	case name == "crm_resource" && strings.Contains(line, "--show-metadata"):
		name = "metadata-" + line[strings.LastIndexByte(line, ':')+1:]
		if _, err := os.Stat(filepath.Join(os.Getenv("RECORDED"), name+".xml")); err != nil {
			os.Exit(105) // there is no such agent
		}
	case name == "crm_resource", name == "cibadmin" && !strings.Contains(line, "--query"), name == "attrd_updater" && !strings.Contains(line, "--query"):
		f, err := os.OpenFile(os.Getenv("CHANGES"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			panic(err)
		}
		f.WriteString(filepath.Base(line) + "\n")
		f.Close()
		return
	case name == "attrd_updater" && strings.Contains(line, "pgbaton-view-"):
		name = "views"
	case name == "attrd_updater" && strings.Contains(line, "pgbaton-history-"):
		name = "histories"
	case name == "attrd_updater":
		name = "bulletins"
	}
	read := func(ext string) string {
		b, err := os.ReadFile(filepath.Join(os.Getenv("RECORDED"), name+ext))
		if err != nil {
			panic(err)
		}
		return string(b)
	}
	out := read(".xml")
	if name == os.Getenv("BREAKS") {
		out = out[:len(out)/2]
	}
	os.Stdout.WriteString(out)
	os.Stderr.WriteString(read(".err"))
	status, _ := strconv.Atoi(strings.TrimSpace(read(".rc")))
	os.Exit(status)
}

// Ensure what a person types ends with the documented exit code and a clear sentence, on the right stream, and that bad
// input changes nothing.
func TestScripts(t *testing.T) {
	recorded, err := filepath.Abs("../../internal/console/testdata/cluster")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("CLUSTER", recorded)
			env.Setenv("RECORDED", filepath.Join(recorded, "healthy"))
			env.Setenv("CHANGES", filepath.Join(env.WorkDir, "changes"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// exits CODE COMMAND... runs a command and checks its exit code; stdout and stderr see what it wrote.
			"exits": func(ts *testscript.TestScript, _ bool, args []string) {
				err := ts.Exec(args[1], args[2:]...)
				code := 0
				if err != nil {
					code = -1
					if e, ok := err.(interface{ ExitCode() int }); ok {
						code = e.ExitCode()
					}
				}
				if want, _ := strconv.Atoi(args[0]); code != want {
					ts.Fatalf("exit code %d, want %d", code, want)
				}
			},
		},
	})
}
