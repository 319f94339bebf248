package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// With Disks every node's data directory is a file system of its own on a loop device, which can be made to hang: reads
// of what is in memory go on, whoever writes waits in the kernel and cannot be killed.

// diskMB is its size. The file is sparse.
const diskMB = 2048

func (o Options) disk(node string) string { return o.nodeDir(node, "data") }

// makeDisk makes and mounts a node's disk, on the host: by the same path everybody sees the same files.
func (o Options) makeDisk(node string) error {
	image := o.nodeDir(node, "disk.img")
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	err = errors.Join(f.Truncate(diskMB<<20), f.Close())
	if err != nil {
		return err
	}
	if err := run("mkfs.ext4", "-q", "-F", "-m", "0", image); err != nil {
		return err
	}
	if err := run("mount", "-o", "loop,noatime", image, o.disk(node)); err != nil {
		return err
	}
	return os.Remove(filepath.Join(o.disk(node), "lost+found"))
}

// HangDisk makes the disk of a node hang, or go on. The lab must have been made with Disks.
func (l *Lab) HangDisk(node string, on bool) error {
	if !l.Disks {
		return fmt.Errorf("lab %s was made without Disks", l.Name)
	}
	if err := l.check(node); err != nil {
		return err
	}
	return freeze(l.disk(node), on)
}

// freeze stops all writing to a file system, or lets it go on (FIFREEZE and FITHAW of linux/fs.h).
func freeze(dir string, on bool) error {
	const fiFreeze, fiThaw = 0xC0045877, 0xC0045878
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	req := uintptr(fiThaw)
	if on {
		req = fiFreeze
	}
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), req, 0); errno != 0 {
		return fmt.Errorf("freeze %s (%t): %w", dir, on, errno)
	}
	return nil
}

// thaw lets a disk go on whether it hangs or not: a machine without power has no process that waits for its disk.
func (o Options) thaw(node string) {
	if o.Disks {
		_ = freeze(o.disk(node), false) // EINVAL: it does not hang
	}
}

// removeDir removes a lab's directory, and the disks that are mounted below it.
func removeDir(dir string) error {
	if err := errors.Join(unmountDisks(dir), removeCgroups(dir)); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// unmountDisks takes away whatever is mounted below a lab's directory.
func unmountDisks(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	for _, p := range slices.Backward(points) {
		_ = freeze(p, false)
		if err := syscall.Unmount(p, syscall.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", p, err)
		}
	}
	return nil
}
