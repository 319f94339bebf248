package main

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/pgbaton/pgbaton/internal/ocf"
)

// Ensure the man page names every command and flag, and that groff has nothing to complain of.
func TestManPage(t *testing.T) {
	const path = "../../docs/man/pgbaton.1"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := strings.ReplaceAll(string(b), `\-`, "-")
	var c cli
	k, err := kong.New(&c)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range k.Model.Children {
		if !strings.Contains(page, "\n.B "+n.Name) && !strings.Contains(page, "\n.BR "+n.Name) {
			t.Errorf("%s has no command %s", path, n.Name)
		}
		for _, group := range n.AllFlags(true) {
			for _, f := range group {
				if !strings.Contains(page, "--"+f.Name) {
					t.Errorf("%s has no --%s of %s", path, f.Name, n.Name)
				}
			}
		}
	}
	wellFormed(t, path)
}

// Ensure the command's page in docs has a section of each command, which names its flags.
func TestCommandPage(t *testing.T) {
	const path = "../../docs/command.md"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var c cli
	k, err := kong.New(&c)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range k.Model.Children {
		if n.Name == "version" {
			continue // it says what it is
		}
		section := regexp.MustCompile(`(?ms)^## (?:pgbaton \w+, )?pgbaton ` + n.Name + `\b.*?(?:^## |\z)`).FindString(string(b))
		if section == "" {
			t.Errorf("%s has no section of %s", path, n.Name)
			continue
		}
		for _, f := range n.Flags {
			if !strings.Contains(section, "--"+f.Name) {
				t.Errorf("%s has no --%s of %s", path, f.Name, n.Name)
			}
		}
	}
}

// Ensure the agent's man page names every parameter.
func TestManPage_Agent(t *testing.T) {
	const path = "../../docs/man/ocf_pgbaton_postgresql.7"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`<parameter name="([^"]+)"`).FindAllStringSubmatch(ocf.MetaData("0"), -1)
	if len(names) < 5 {
		t.Fatalf("found only the parameters %q", names)
	}
	for _, n := range names {
		if !strings.Contains(string(b), "\n.B "+n[1]+"\n") {
			t.Errorf("%s has no parameter %s", path, n[1])
		}
	}
	wellFormed(t, path)
}

func wellFormed(t *testing.T, path string) {
	t.Helper()
	out, err := exec.Command("groff", "-man", "-ww", "-z", path).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("groff (of the package groff-base) on %s: %v: %s", path, err, out)
	}
}
