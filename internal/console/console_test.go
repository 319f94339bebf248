package console

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Ensure the command finds the one resource of a node, and says what there is when it cannot.
func TestResource(t *testing.T) {
	root := t.TempDir()
	if _, err := Resource(filepath.Join(root, "missing"), ""); err == nil || !strings.Contains(err.Error(), "no resource") {
		t.Errorf("nothing there: got %v", err)
	}
	mkdir(t, root, "pgsqld")
	if got, err := Resource(root, ""); err != nil || got != "pgsqld" {
		t.Errorf("one there: got %q, %v", got, err)
	}
	if _, err := Resource(root, "other"); err == nil || !strings.Contains(err.Error(), "pgsqld") {
		t.Errorf("another asked for: got %v, want an error that names pgsqld", err)
	}
	mkdir(t, root, "second")
	if _, err := Resource(root, ""); err == nil || !strings.Contains(err.Error(), "--resource") {
		t.Errorf("two there: got %v, want an error that names --resource", err)
	}
	if got, err := Resource(root, "second"); err != nil || got != "second" {
		t.Errorf("second asked for: got %q, %v", got, err)
	}
}

func mkdir(t *testing.T, elem ...string) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(elem...), 0o755); err != nil {
		t.Fatal(err)
	}
}
