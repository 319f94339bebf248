package lab

import (
	"context"
	"crypto/md5"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// What a node of a lab with Systemd needs besides what every node has. The rules for whoever starts systemd in namespaces
// are https://systemd.io/CONTAINER_INTERFACE: what is mounted already stays, /sys and /proc/sys are read-only, the
// environment says "container", and the cgroups are its own.

// poweroff is the signal that makes systemd shut down in good order: SIGRTMIN+4 (systemd(1)), in the C library's numbers.
const poweroff = syscall.Signal(34 + 4)

const systemdPath = "/lib/systemd/systemd"

// cgroupParent is below the root of the cgroups, version 2.
const cgroupParent = "pgbaton-lab"

// cgroupMount is where a lab's supervisor mounts the cgroups, below the lab's directory.
const cgroupMount = "cgroup"

// cgroupName is that of the cgroup of a lab in that directory, as of which there is only one.
func cgroupName(dir string) string { return strings.ReplaceAll(strings.Trim(dir, "/"), "/", "-") }

// makeCgroups mounts the cgroups where only the supervisor and what it starts see them: before that its mounts must be private.
func (s *supervisor) makeCgroups() error {
	if !s.o.Systemd {
		return nil
	}
	at := filepath.Join(s.o.Dir, cgroupMount)
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount("cgroup2", at, "cgroup2", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount the cgroups: %w", err)
	}
	return nil
}

// cgroup is a node's cgroup, made if it is not there.
func (s *supervisor) cgroup(node string) (*os.File, error) {
	dir := filepath.Join(s.o.Dir, cgroupMount, cgroupParent, cgroupName(s.o.Dir), node)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return os.Open(dir)
}

// removeCgroups removes what makeCgroups and systemd have left, if the lab of that directory had cgroups: they outlive their
// processes, and the supervisor.
func removeCgroups(dir string) error {
	at := filepath.Join(dir, cgroupMount)
	if _, err := os.Stat(at); err != nil {
		return nil
	}
	const script = `mount -t cgroup2 cgroup2 "$1" && { [ ! -d "$1/$2/$3" ] || find "$1/$2/$3" -depth -type d -exec rmdir {} +; } &&
		{ rmdir "$1/$2" 2>/dev/null || :; }`
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return Poll(ctx, 100*time.Millisecond, func() error { // the kernel counts a process a little longer than /proc shows it
		out, err := exec.CommandContext(ctx, "unshare", "--mount", "sh", "-c", script, "sh", at, cgroupParent, cgroupName(dir)).CombinedOutput()
		if err != nil {
			return NotYet("remove the cgroups of the lab in %s: %v: %s", dir, err, out)
		}
		return nil
	})
}

// ownCgroups makes the cgroup of this process the root of all that it, and what it becomes, can see. The thread is not let
// go again: a namespace is a thread's.
func ownCgroups() error {
	runtime.LockOSThread()
	if err := syscall.Unshare(syscall.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("a cgroup namespace: %w", err)
	}
	return nil
}

// systemdMounts are mounted below a node's root after those of every node.
func systemdMounts(root string) []mount {
	const quiet = syscall.MS_NOSUID | syscall.MS_NOEXEC
	readonly := func(target string) mount {
		return mount{"", target, "", syscall.MS_REMOUNT | syscall.MS_BIND | syscall.MS_RDONLY | quiet | syscall.MS_NODEV, ""}
	}
	return []mount{
		{"devpts", "dev/pts", "devpts", quiet, "newinstance,ptmxmode=0666,mode=620,gid=5"},
		{"cgroup2", "sys/fs/cgroup", "cgroup2", quiet | syscall.MS_NODEV, ""},
		readonly("sys"),
		// What is the kernel's own, and so every lab's and this machine's, is not this systemd's to set; the network's is.
		{filepath.Join(root, "proc/sys"), "proc/sys", "", syscall.MS_BIND, ""},
		{filepath.Join(root, "proc/sys/net"), "proc/sys/net", "", syscall.MS_BIND, ""},
		readonly("proc/sys"),
	}
}

// systemdFiles makes the part of /etc that decides what systemd starts: pcsd, PostgreSQL as its package has it, and what Debian's
// systemd itself wants. What else this machine has enabled is not there, nor is the package's example of a corosync.conf.
func (l *Lab) systemdFiles(n string) error {
	root := l.nodeDir(n, "root")
	for _, d := range []string{"etc/corosync", "etc/systemd/system"} {
		p := filepath.Join(root, d)
		if err := os.MkdirAll(p, 0o755); err != nil {
			return err
		}
		// Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories".
		if err := syscall.Setxattr(p, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	links := map[string]string{
		"default.target":                             "/lib/systemd/system/multi-user.target",
		"multi-user.target.wants/pcsd.service":       "/lib/systemd/system/pcsd.service",
		"multi-user.target.wants/postgresql.service": "/lib/systemd/system/postgresql.service",
	}
	for _, unit := range []string{
		"getty.target", "console-getty.service", // there is no console
		"proc-sys-fs-binfmt_misc.automount", "sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", // of the kernel that all share
		"systemd-modules-load.service", "systemd-udevd.service",
	} {
		links[unit] = "/dev/null"
	}
	for name, to := range links {
		p := filepath.Join(root, "etc/systemd/system", name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(to, p); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"etc/fstab":      "",
		"etc/machine-id": fmt.Sprintf("%x\n", md5.Sum([]byte(l.Dir+n))),
		// One that is asked to end less than a second after its start may ignore that, and hold a shutdown up for systemd's 90 s.
		"etc/systemd/system/pcsd.service.d/lab.conf": "[Service]\nTimeoutStopSec=5s\n",
	} {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return makeDirs(l.nodeDir(n, "log"), []ownedDir{
		{"journal", "root", 0o755}, // journald keeps its journal there if there is such a directory
		{"pcsd", "root", 0o700},
	})
}

// waitBooted waits until every node's systemd says that it has started all.
func (l *Lab) waitBooted(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	for _, n := range l.Names {
		err := Poll(ctx, 200*time.Millisecond, func() error {
			out, errs, code, err := l.Exec(ctx, n, "systemctl", "is-system-running", "--wait")
			if code != 0 {
				failed, _, _, _ := l.Exec(ctx, n, "systemctl", "--failed", "--plain", "--no-legend")
				return NotYet("%s has not booted: %s %s %v %s", n, strings.TrimSpace(out), errs, err, failed)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// execSystemd makes the first process of a node systemd. It does not return unless that fails.
func execSystemd() error {
	return fmt.Errorf("exec %s: %w", systemdPath, syscall.Exec(systemdPath, []string{systemdPath}, []string{
		"container=pgbaton-lab", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8",
	}))
}
