package lab_test

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// Ensure a lab that is taken down harms nobody who has meanwhile got the number of a network namespace that it had: the
// kernel gives a number to the next namespace as soon as it is free.
func TestDown_SparesOthers(t *testing.T) {
	l := up(t, lab.Options{StayOff: true})
	ctx := within(t, 30*time.Second)
	namespace := func(pid int) string {
		t.Helper()
		var link string
		must(t, lab.Poll(ctx, time.Millisecond, func() (err error) {
			if link, err = os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil {
				return lab.NotYet("%v", err) // a process that has just begun may be changing into another program
			}
			return nil
		}))
		return link
	}
	var had []string
	var heir *exec.Cmd
	for heir == nil {
		if ctx.Err() != nil {
			t.Fatalf("nobody has got one of %q, which the node had: this shows nothing", had)
		}
		must(t, l.Power(ctx, lab.Client, true))
		pid, err := l.InitPID(lab.Client)
		must(t, err)
		had = append(had, namespace(pid))
		must(t, l.Power(ctx, lab.Client, false))
		for range 10 {
			time.Sleep(50 * time.Millisecond) // the kernel takes a namespace apart in its own time
			other := exec.CommandContext(ctx, "sleep", "60")
			other.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
			must(t, other.Start())
			t.Cleanup(func() {
				other.Process.Kill()
				other.Wait()
			})
			if slices.Contains(had, namespace(other.Process.Pid)) {
				heir = other
				break
			}
		}
	}
	left, err := l.Leftovers()
	must(t, err)
	if slices.ContainsFunc(left, func(p lab.Process) bool { return p.PID == heir.Process.Pid }) {
		t.Errorf("the lab takes process %d for its own, which only has one of the numbers %q: %+v", heir.Process.Pid, had, left)
	}
	began := time.Now()
	must(t, l.Down(ctx))
	t.Logf("down in %.1f s", time.Since(began).Seconds())
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", heir.Process.Pid))
	if err != nil || !strings.Contains(string(stat), ") S ") {
		t.Errorf("a process that has nothing to do with the lab was killed: %s (%v)", stat, err)
	}
}
