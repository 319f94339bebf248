package lab_test

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// Ensure a node can be booted by systemd, which reaches nothing of this machine's kernel, shuts down in good order and boots
// again; and that nothing of it is left after its supervisor was killed, cgroups neither.
func TestSystemd(t *testing.T) {
	l := up(t, lab.Options{Nodes: 2, Agent: "none", Systemd: true, Layout: "debian"})
	ctx := within(t, time.Minute)
	for _, n := range l.Names {
		out, err := l.Run(ctx, n, "sh", "-c", "cat /proc/1/comm; systemctl is-active pcsd postgresql@15-main; systemctl show --property TimeoutStopUSec --value pcsd; ls /etc/corosync")
		if want := "systemd\nactive\nactive\n5s\nuidgid.d"; err != nil || out != want {
			t.Errorf("%s has %q, want %q (%v)", n, out, want, err)
		}
	}
	for path, want := range map[string]bool{"/proc/sys/kernel/sysrq": false, "/sys/kernel/mm": false, "/proc/sys/net/ipv4/ip_forward": true, "/sys/fs/cgroup": true} {
		if _, _, code, err := l.Exec(ctx, "n1", "test", "-w", path); err != nil || (code == 0) != want {
			t.Errorf("%s can be written: %t, want %t (%v)", path, code == 0, want, err)
		}
	}
	must(t, l.Shutdown(ctx, "n2"))
	must(t, l.Power(ctx, "n2", true))
	must(t, lab.Poll(ctx, 200*time.Millisecond, func() error {
		if out, err := l.Run(ctx, "n2", "journalctl", "--list-boots", "--no-pager"); err != nil || strings.Count(out, "\n") != 1 {
			return lab.NotYet("n2 has not booted for the second time: %s (%v)", out, err)
		}
		return nil
	}))

	cgroups := func() string {
		t.Helper()
		out, err := exec.CommandContext(ctx, "unshare", "--mount", "sh", "-c", `mount -t cgroup2 cgroup2 /mnt && find /mnt -type d -path '*`+l.Name+`*'`).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if cgroups() == "" {
		t.Errorf("lab %s has no cgroup", l.Name)
	}
	must(t, l.Kill(ctx))
	must(t, l.Down(ctx))
	if left := cgroups(); left != "" {
		t.Errorf("left over:\n%s", left)
	}
}
