package lab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// request is one line of JSON to the supervisor, reply the line that answers it.
type request struct {
	Op   string // state, on, off, reboot, stop, cut, heal
	Node string `json:",omitempty"`
	Link Link   `json:",omitzero"`
}

type reply struct {
	Error string         `json:",omitempty"`
	Inits map[string]int `json:",omitempty"` // node to the host's pid of its init; absent: off
	Cut   []Link         `json:",omitempty"`
}

// supervisor is the init of the namespace that holds a lab: it starts and kills
// nodes, and it owns the bridge and the firewall on it.
type supervisor struct {
	o Options

	// power serialises the power switch: of two nodes that fence each other only the
	// first one is served, the other one is dead when its turn comes.
	power sync.Mutex

	mu    sync.Mutex // guards what follows
	nodes map[string]*machine
	cut   []Link
}

// machine is a node that is powered on.
type machine struct {
	cmd    *exec.Cmd
	host   int           // pid of its init as the host sees it
	exited chan struct{} // closed when init was reaped: then nothing of the node runs
}

func runSupervisor(dir string) error {
	ready := os.NewFile(3, "ready")
	var o Options
	if err := readJSON(filepath.Join(dir, "lab.json"), &o); err != nil {
		return err
	}
	// Held as long as this process lives: how others tell a running lab from the
	// remains of one.
	lock, err := lockFile(filepath.Join(dir, "lock"))
	if err != nil {
		return fmt.Errorf("another supervisor holds %s: %w", dir, err)
	}
	defer lock.Close()
	s := &supervisor{o: o, nodes: map[string]*machine{}}
	err = s.setup()
	if err == nil && !o.StayOff {
		err = s.startAll()
	}
	msg := "ok\n"
	if err != nil {
		msg = err.Error() + "\n"
	}
	_, _ = io.WriteString(ready, msg)
	ready.Close()
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	if o.Lifeline {
		go func() {
			_, _ = io.Copy(io.Discard, os.NewFile(4, "lifeline"))
			stop <- syscall.SIGTERM
		}()
	}
	<-stop
	// The kernel kills all the rest when this process, their init, ends.
	return nil
}

func (s *supervisor) setup() error {
	// The sockets first: nodes are told where the power switch is when they start.
	for _, l := range []struct {
		path  string
		fence bool
	}{{filepath.Join(s.o.Dir, "control.sock"), false}, {filepath.Join(s.o.Dir, "switch", "power.sock"), true}} {
		_ = os.Remove(l.path)
		ln, err := net.Listen("unix", l.path)
		if err != nil {
			return err
		}
		go s.serve(ln, l.fence)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := s.makeCgroups(); err != nil {
		return err
	}
	if err := runInput("link set lo up\nlink add br0 type bridge\nlink set br0 up\n", "ip", "-batch", "-"); err != nil {
		return err
	}
	return runInput(ruleset(s.o, nil), "nft", "-f", "-")
}

func (s *supervisor) startAll() error {
	errs := make(chan error)
	for _, n := range s.o.all() {
		go func() { errs <- s.on(n) }()
	}
	var err error
	for range s.o.all() {
		err = errors.Join(err, <-errs)
	}
	return err
}

func (s *supervisor) serve(ln net.Listener, fence bool) {
	for {
		c, err := ln.Accept()
		if err != nil {
			fmt.Println("accept:", err)
			return
		}
		go func() {
			defer c.Close()
			var req request
			if err := json.NewDecoder(bufio.NewReader(c)).Decode(&req); err != nil {
				return
			}
			if fence && !slices.Contains([]string{"state", "on", "off", "reboot"}, req.Op) {
				return
			}
			_ = json.NewEncoder(c).Encode(s.answer(c, req))
		}()
	}
}

func (s *supervisor) answer(c net.Conn, req request) reply {
	var err error
	if req.Op != "state" {
		fmt.Printf("%s %s %s%s\n", stamp(), req.Op, req.Node, linkText(req.Link))
	}
	switch req.Op {
	case "state":
	case "on", "off", "reboot", "stop":
		if err = s.o.check(req.Node); err == nil {
			err = s.switchPower(c, req)
		}
	case "cut", "heal":
		err = s.setLinks(req)
	default:
		err = fmt.Errorf("unknown request %q", req.Op)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := reply{Inits: map[string]int{}, Cut: slices.Clone(s.cut)}
	for n, m := range s.nodes {
		r.Inits[n] = m.host
	}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

// StampFormat is that of the first word of each line of supervisor.log and console.log, in local time.
const StampFormat = "2006-01-02T15:04:05.000"

func stamp() string { return time.Now().Format(StampFormat) }

func linkText(l Link) string {
	if l == (Link{}) {
		return ""
	}
	return l.String()
}

func (s *supervisor) switchPower(c net.Conn, req request) error {
	s.power.Lock()
	defer s.power.Unlock()
	if gone(c) {
		return errors.New("who asked for it is gone")
	}
	switch req.Op {
	case "on":
		return s.on(req.Node)
	case "stop":
		return s.stop(req.Node)
	case "off":
		return s.off(req.Node)
	}
	if err := s.off(req.Node); err != nil {
		return err
	}
	if s.o.AutoReturn > 0 {
		time.AfterFunc(s.o.AutoReturn, func() {
			s.power.Lock()
			defer s.power.Unlock()
			if err := s.on(req.Node); err != nil {
				fmt.Println("auto return:", err)
			}
		})
	}
	return nil
}

// gone tells whether the other end was closed: the node that asked was killed while
// it waited for its turn.
func gone(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	return errors.Is(err, io.EOF)
}

func (s *supervisor) get(node string) *machine {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[node]
}

// on powers a node on, and returns once its init runs. No error if it was on.
func (s *supervisor) on(node string) error {
	if s.get(node) != nil {
		return nil
	}
	out, err := os.OpenFile(s.o.nodeDir(node, "console.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	fromChild, childWrites, err := os.Pipe()
	if err != nil {
		return err
	}
	defer fromChild.Close()
	childReads, toChild, err := os.Pipe()
	if err != nil {
		return err
	}
	defer toChild.Close()
	cmd := exec.Command("/proc/self/exe", s.o.Dir, node)
	cmd.Args[0] = "pgbaton-lab"
	cmd.Env = []string{modeVar + "=init", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{childWrites, childReads}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET |
			syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
	}
	if s.o.Systemd {
		group, err := s.cgroup(node)
		if err != nil {
			return err
		}
		defer group.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	}
	err = cmd.Start()
	childWrites.Close()
	childReads.Close()
	if err != nil {
		return fmt.Errorf("start %s: %w", node, err)
	}
	m := &machine{cmd: cmd, exited: make(chan struct{})}
	fail := func(err error) error {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return fmt.Errorf("start %s: %w (see %s)", node, err, s.o.nodeDir(node, "console.log"))
	}
	r := bufio.NewReader(fromChild)
	if _, err := fmt.Fscanf(r, "%d\n", &m.host); err != nil {
		return fail(fmt.Errorf("its init did not say its pid: %w", err))
	}
	// What is left of the port of an earlier life goes away by itself, but later.
	port := s.o.port(node)
	_ = run("ip", "link", "del", port)
	if err := runInput(fmt.Sprintf("link add %s type veth peer name eth0 netns %d\nlink set %s master br0 up\n", port, cmd.Process.Pid, port), "ip", "-batch", "-"); err != nil {
		return fail(err)
	}
	toChild.Close()
	line, _ := r.ReadString('\n')
	if strings.TrimSpace(line) != "ok" {
		return fail(errors.New("its init did not come up"))
	}
	s.mu.Lock()
	s.nodes[node] = m
	s.mu.Unlock()
	go func() {
		err := cmd.Wait()
		fmt.Printf("%s %s is off: %v\n", stamp(), node, err)
		s.mu.Lock()
		if s.nodes[node] == m {
			delete(s.nodes, node)
		}
		s.mu.Unlock()
		close(m.exited)
	}()
	return nil
}

// off takes a node's power away, and returns when nothing of it runs any more. The
// port goes first: a kernel that closes a killed process's connections would say
// goodbye to the peers, which a node without power does not do.
func (s *supervisor) off(node string) error {
	m := s.get(node)
	if m == nil {
		return nil
	}
	if err := run("ip", "link", "set", s.o.port(node), "nomaster"); err != nil {
		fmt.Println("off:", err)
	}
	_ = m.cmd.Process.Signal(syscall.SIGKILL)
	s.o.thaw(node)
	return s.waitOff(node, m, 10*time.Second)
}

// shutdownLimit bounds a shutdown in good order: a demote's time-out and a stop's.
const shutdownLimit = 180 * time.Second

// stop shuts a node down in good order: Pacemaker, Corosync, then init.
func (s *supervisor) stop(node string) error {
	m := s.get(node)
	if m == nil {
		return nil
	}
	end := syscall.SIGTERM
	if s.o.Systemd {
		end = poweroff
	}
	_ = m.cmd.Process.Signal(end)
	return s.waitOff(node, m, shutdownLimit)
}

func (s *supervisor) waitOff(node string, m *machine, limit time.Duration) error {
	select {
	case <-m.exited:
		return nil
	case <-time.After(limit):
		return fmt.Errorf("%s still runs %v after it was told to end: a process of it may be held in the kernel or by a stopped parent on the host (pid of its init: %d)", node, limit, m.host)
	}
}

func (s *supervisor) setLinks(req request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := slices.Clone(s.cut)
	switch {
	case req.Op == "heal" && req.Link == (Link{}):
		next = nil
	case req.Op == "heal":
		if !slices.Contains(next, req.Link) {
			return fmt.Errorf("%s is not cut", req.Link)
		}
		next = slices.DeleteFunc(next, func(l Link) bool { return l == req.Link })
	default:
		if err := req.Link.validate(s.o); err != nil {
			return err
		}
		if !slices.Contains(next, req.Link) {
			next = append(next, req.Link)
		}
	}
	if err := runInput(ruleset(s.o, next), "nft", "-f", "-"); err != nil {
		return err
	}
	s.cut = next
	return nil
}

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
