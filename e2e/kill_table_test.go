package e2e

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Ensure docs/effects.md names every effect that the code has, and no other.
func TestEffectsTable(t *testing.T) {
	points, named := effectsTable(t)
	inCode := map[string]token.Position{}
	files, err := filepath.Glob("../internal/agent/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no source of the agent: %v", err)
	}
	fset := token.NewFileSet()
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || !slices.Contains([]string{"do", "save", "publish"}, sel.Sel.Name) {
				return true
			}
			for _, arg := range call.Args[:min(2, len(call.Args))] {
				if sum, ok := arg.(*ast.BinaryExpr); ok {
					arg = sum.X // a name with a variable end: "spawn-" + what
				}
				lit, ok := arg.(*ast.BasicLit)
				if !ok || lit.Kind != token.STRING {
					continue
				}
				if name, err := strconv.Unquote(lit.Value); err == nil {
					inCode[name] = fset.Position(lit.Pos())
				}
			}
			return true
		})
	}
	if len(inCode) < 20 {
		t.Fatalf("found only %d effects in the source: %v", len(inCode), inCode)
	}
	// A name in the source may have a variable end: "spawn-".
	same := func(row, code string) bool {
		_, name, _ := strings.Cut(row, "/")
		return name == code || strings.HasSuffix(code, "-") && strings.HasPrefix(name, code)
	}
	for code, pos := range inCode {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(named)), func(row string) bool { return same(row, code) }) {
			t.Errorf("docs/effects.md does not name the effect %q of %s: add a row", code, pos)
		}
	}
	for row := range named {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(inCode)), func(code string) bool { return same(row, code) }) {
			t.Errorf("docs/effects.md names the effect %q, which the code does not have", row)
		}
	}
	for _, plan := range killPlans() {
		if !slices.ContainsFunc(points, func(p killPoint) bool { return p.plan == plan.name }) {
			t.Errorf("docs/effects.md has no table in a section %q", plan.name)
		}
	}
}
