package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// runInit is the first process of a node: it makes the node's root file system and
// network, then becomes tini.
func runInit(dir, node string) error {
	up, down := os.NewFile(3, "up"), os.NewFile(4, "down")
	var o Options
	if err := readJSON(filepath.Join(dir, "lab.json"), &o); err != nil {
		return err
	}
	// /proc is still the host's here.
	host, err := os.Readlink("/proc/self")
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(up, host); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, down); err != nil {
		return err
	}
	if err := syscall.Sethostname([]byte(node)); err != nil {
		return err
	}
	if err := runInput(fmt.Sprintf("link set lo up\nlink set eth0 up\naddr add %s/24 dev eth0\n", o.ip(node)), "ip", "-batch", "-"); err != nil {
		return err
	}
	if node == Client {
		// The clients must not add to an outage what the kernel spends on asking for the
		// virtual IP's address once a second. /proc/sys/net is this network's own.
		if err := os.WriteFile("/proc/sys/net/ipv4/neigh/eth0/retrans_time_ms", []byte("100"), 0); err != nil {
			return err
		}
	}
	systemd := o.Systemd && node != Client
	if systemd {
		if err := ownCgroups(); err != nil {
			return err
		}
	}
	if err := mountRoot(o, node); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(up, "ok"); err != nil {
		return err
	}
	syscall.CloseOnExec(3)
	syscall.CloseOnExec(4)
	if systemd {
		return execSystemd()
	}
	argv := []string{"tini", "-s", "--", helperPath}
	env := []string{
		modeVar + "=node", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LANG=C.UTF-8", "PGBATON_LAB_NODE=" + node,
	}
	if node == Client {
		argv = []string{"tini", "-s", "--", "sleep", "infinity"}
	}
	return fmt.Errorf("exec tini: %w", syscall.Exec("/usr/bin/tini", argv, env))
}

// mount is one mount of a node below its root.
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func mountRoot(o Options, node string) error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	root := o.nodeDir(node, "merged")
	data := fmt.Sprintf("lowerdir=/,upperdir=%s,workdir=%s", o.nodeDir(node, "root"), o.nodeDir(node, "work"))
	const quiet = syscall.MS_NOSUID | syscall.MS_NODEV
	bind := func(name, target string) mount {
		return mount{o.nodeDir(node, name), target, "", syscall.MS_BIND, ""}
	}
	mounts := []mount{
		{"overlay", "", "overlay", 0, data},
		{"proc", "proc", "proc", quiet | syscall.MS_NOEXEC, ""},
		{"sysfs", "sys", "sysfs", quiet | syscall.MS_NOEXEC, ""},
		{"tmpfs", "run", "tmpfs", quiet, "mode=755"},
		{"tmpfs", "tmp", "tmpfs", quiet, "mode=1777"},
		// /dev is the node's own: /dev/log and /dev/shm must be.
		{"tmpfs", "dev", "tmpfs", syscall.MS_NOSUID, "mode=755"},
		{"tmpfs", "dev/shm", "tmpfs", quiet, "mode=1777"},
		{filepath.Join(o.Dir, "bin"), "usr/lib/pgbaton-lab", "", syscall.MS_BIND, ""},
		bind("log", "var/log"),
	}
	if node != Client {
		mounts = append(
			mounts,
			mount{filepath.Join(o.Dir, "switch"), "run/pgbaton-lab/switch", "", syscall.MS_BIND, ""},
			bind("data", strings.TrimPrefix(o.DataDir(), "/")),
			bind("lib", "var/lib/pgbaton"),
			bind("pacemaker", "var/lib/pacemaker"),
			bind("corosync", "var/lib/corosync"),
		)
	}
	if o.Systemd && node != Client {
		mounts = append(mounts, systemdMounts(root)...)
	}
	for _, dev := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		mounts = append(mounts, mount{"/dev/" + dev, "dev/" + dev, "", syscall.MS_BIND, ""})
	}
	// A node sees neither other labs nor its own files by a second path.
	hide := []string{DefaultRoot}
	if !strings.HasPrefix(o.Dir, DefaultRoot+"/") {
		hide = append(hide, o.Dir)
	}
	for _, d := range hide {
		mounts = append(mounts, mount{"tmpfs", strings.TrimPrefix(d, "/"), "tmpfs", quiet, "mode=700"})
	}
	for _, m := range mounts {
		target := filepath.Join(root, m.target)
		if err := makeMountPoint(m, target); err != nil {
			return err
		}
		if err := syscall.Mount(m.source, target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on /%s of %s: %w", m.source, m.target, node, err)
		}
	}
	if err := os.Symlink("/proc/self/fd", filepath.Join(root, "dev/fd")); err != nil {
		return err
	}
	if err := makeRun(root); err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := syscall.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := syscall.Unmount(".", syscall.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the host's root: %w", err)
	}
	return os.Chdir("/")
}

func makeMountPoint(m mount, target string) error {
	if m.flags&syscall.MS_BIND != 0 {
		if fi, err := os.Stat(m.source); err == nil && !fi.IsDir() {
			f, err := os.OpenFile(target, os.O_CREATE|os.O_WRONLY, 0o666)
			if err != nil {
				return err
			}
			return f.Close()
		}
	}
	return os.MkdirAll(target, 0o755)
}

// makeRun fills /run as systemd-tmpfiles would when the node boots.
func makeRun(root string) error {
	return makeDirs(root, []ownedDir{
		{"run/postgresql", "postgres", 0o2775},
		{"run/lock", "root", 0o1777},
		{"run/resource-agents", "root", 0o755},
		{"run/corosync", "root", 0o755},
		{"run/crm", "hacluster", 0o750},
	})
}

// runNode plays systemd in a node: it starts Corosync and Pacemaker, keeps a syslog,
// and stops both in order on SIGTERM. On SIGUSR1 it starts what was stopped again.
func runNode() error {
	go syslog("/dev/log", "/var/log/syslog")
	sig := make(chan os.Signal, 4)
	signal.Notify(sig, syscall.SIGTERM, syscall.SIGUSR1)
	corosync := &service{argv: []string{"/usr/sbin/corosync", "-f"}}
	pacemaker := &service{argv: []string{"/usr/sbin/pacemakerd", "-f"}, env: []string{
		"PCMK_logfile=/var/log/pacemaker/pacemaker.log", "PCMK_logfacility=none",
	}}
	start := func() {
		corosync.start()
		waitCorosync()
		pacemaker.start()
	}
	start()
	const restarts = 5
	for left := restarts; ; {
		select {
		case s := <-sig:
			if s == syscall.SIGTERM {
				pacemaker.stop()
				corosync.stop()
				return nil
			}
			left = restarts
			start()
		case <-corosync.exited():
			corosync.reaped()
			// pacemaker.service requires corosync.service.
			pacemaker.stop()
		case <-pacemaker.exited():
			err := pacemaker.reaped()
			// Restart=on-failure, but not after 100: Pacemaker asks for that itself.
			var exit *exec.ExitError
			if errors.As(err, &exit) && exit.ExitCode() != 100 && left > 0 {
				left--
				time.Sleep(100 * time.Millisecond)
				pacemaker.start()
			}
		}
	}
}

// waitCorosync waits until Corosync has a quorum, for a few seconds: Pacemaker on a
// node without one would only wait longer, and a node that starts alone must start.
func waitCorosync() {
	for range 20 {
		out, _ := exec.Command("/usr/sbin/corosync-quorumtool", "-s").Output()
		if strings.Contains(string(out), "Quorate:          Yes") {
			return
		}
		// Every one that asks costs Corosync some megabytes of shared memory to clear.
		time.Sleep(250 * time.Millisecond)
	}
}

// service is a daemon that runs in the foreground.
type service struct {
	argv, env []string
	cmd       *exec.Cmd     // nil: not started
	done      chan struct{} // closed when it ended, err is set then
	err       error
}

func (s *service) start() {
	select {
	case <-s.exited(): // just now: nobody has heard of it yet
		_ = s.reaped()
	default:
	}
	if s.cmd != nil {
		return
	}
	cmd := exec.Command(s.argv[0], s.argv[1:]...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8"}, s.env...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	fmt.Printf("%s start %s\n", stamp(), s.argv[0])
	if err := cmd.Start(); err != nil {
		fmt.Println(err)
		return
	}
	s.cmd, s.done = cmd, make(chan struct{})
	go func() {
		s.err = cmd.Wait()
		close(s.done)
	}()
}

// exited is closed when the service ended; nil, so never, while it is not started.
func (s *service) exited() <-chan struct{} {
	if s.cmd == nil {
		return nil
	}
	return s.done
}

// reaped waits for the end of the service and returns how it ended.
func (s *service) reaped() error {
	<-s.done
	fmt.Printf("%s %s ended: %v\n", stamp(), s.argv[0], s.err)
	s.cmd = nil
	return s.err
}

func (s *service) stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.reaped()
}

// syslog appends what arrives on a socket to a file, as is.
func syslog(socket, path string) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		fmt.Println("syslog:", err)
		return
	}
	_ = os.Chmod(socket, 0o666)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		fmt.Println("syslog:", err)
		return
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		fmt.Fprintf(f, "%s\n", strings.TrimRight(string(buf[:n]), "\x00\n"))
	}
}
