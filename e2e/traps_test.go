package e2e

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Ensure every trap that others fell into has a test that names it, by a comment of the form "Trap 7: ..." within the
// test, or within what it runs. testdata/traps.txt numbers them, testdata/traps-open.txt says what is still missing and
// of which: such a trap is not forgotten, and not called tested either, before its line is gone.
func TestTraps(t *testing.T) {
	traps := numbered(t, "testdata/traps.txt")
	open := numbered(t, "testdata/traps-open.txt")
	named := map[int][]string{}
	comment := regexp.MustCompile(`(?m)^(?://)?\s*Trap (\d+): \S`)
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		for _, group := range file.Comments {
			for _, c := range group.List {
				m := comment.FindStringSubmatch(c.Text)
				if m == nil {
					continue
				}
				at := fset.Position(c.Pos())
				f := functionOf(file, c.Pos())
				if f == "" {
					t.Errorf("%s: the comment is in no function, and says nothing about a test", at)
					continue
				}
				n, err := strconv.Atoi(m[1])
				if err != nil || traps[n] == "" {
					t.Errorf("%s: there is no trap %s in testdata/traps.txt", at, m[1])
					continue
				}
				named[n] = append(named[n], at.String()+" "+f)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= len(traps); n++ {
		switch {
		case traps[n] == "":
			t.Errorf("testdata/traps.txt has no number %d", n)
		case len(named[n]) == 0 && open[n] == "":
			t.Errorf("no test names trap %d: %s", n, traps[n])
		case open[n] != "":
			t.Logf("open: trap %d, %s: %s", n, traps[n], open[n])
		}
	}
	for n := range open {
		if traps[n] == "" {
			t.Errorf("testdata/traps-open.txt: there is no trap %d", n)
		}
	}
	t.Logf("%d traps, %d with something open", len(traps), len(open))
}

// functionOf is the function in whose comment or body a position lies.
func functionOf(file *ast.File, pos token.Pos) string {
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok {
			from := f.Pos()
			if f.Doc != nil {
				from = f.Doc.Pos()
			}
			if from <= pos && pos <= f.End() {
				return f.Name.Name
			}
		}
	}
	return ""
}

// numbered reads lines that begin with a number.
func numbered(t *testing.T, path string) map[int]string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	list := map[int]string{}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		number, text, ok := strings.Cut(line, " ")
		n, err := strconv.Atoi(number)
		if err != nil || !ok || list[n] != "" {
			t.Fatalf("%s: %q does not begin with a number of its own", path, line)
		}
		list[n] = text
	}
	return list
}

// Ensure every test that docs/failures.md cites exists, a part of one too.
func TestFailuresPage(t *testing.T) {
	page, err := os.ReadFile("../docs/failures.md")
	if err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		source.Write(b)
	}
	cited := regexp.MustCompile("`(Test\\w+)(?:/([^`]+))?`").FindAllStringSubmatch(string(page), -1)
	if len(cited) < 20 {
		t.Fatalf("docs/failures.md cites only %d tests", len(cited))
	}
	for _, m := range cited {
		if !strings.Contains(source.String(), "func "+m[1]+"(") {
			t.Errorf("docs/failures.md cites %s, which is not there", m[1])
		}
		if part := strings.ReplaceAll(m[2], "_", " "); part != "" && !strings.Contains(source.String(), `"`+part) {
			t.Errorf("docs/failures.md cites %s/%s, and no part of a test begins so", m[1], m[2])
		}
	}
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "| ") && !strings.HasPrefix(line, "| failure") && !regexp.MustCompile("`Test[^|]*\\|\\s*$").MatchString(line) {
			t.Errorf("docs/failures.md: no test is cited for %q", strings.TrimSpace(line))
		}
	}
}

// Ensure no action of the agent ever ends with exit code 6, which stops the whole clone on every node.
//
// Trap 24: exit code 6 is never returned.
func TestTraps_NotConfigured(t *testing.T) {
	seen := 0
	err := filepath.WalkDir("../internal", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || filepath.Base(path) == "exitcode.go" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.Contains(string(b), "ocf.Err") {
			seen++
		}
		if strings.Contains(string(b), "ErrConfigured") {
			t.Errorf("%s uses ErrConfigured", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen == 0 {
		t.Error("no source that uses an exit code was found: this shows nothing")
	}
}
