// Package durable replaces files so that a loss of power leaves the old or the new content, never less, and loses nothing
// that was said to be written.
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// Put writes content into f, which was opened aside in the directory of path, flushes it, closes it, gives it the name
// path, and flushes the directory. f is closed in any case; after an error it may still be there under its own name.
func Put(f *os.File, content []byte, path string) error {
	_, err := f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDirs(filepath.Dir(path))
}

// SyncDirs flushes directories: the names in them.
func SyncDirs(dirs ...string) error {
	for _, dir := range dirs {
		d, err := os.Open(dir)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return err
		}
	}
	return nil
}
