package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Account is the system user that owns the data directory and runs the server.
type Account struct {
	Name     string
	UID, GID uint32
	Groups   []uint32 // supplementary ones too: a server key readable for group ssl-cert depends on them
	Home     string
}

// LookupAccount finds the user by name: in /etc/passwd, or through the name service (getent) for users that come from
// LDAP or SSSD, which a static binary cannot ask itself.
func LookupAccount(name string) (Account, error) {
	a := Account{Name: name}
	var uid, gid, home string
	if u, err := user.Lookup(name); err == nil {
		uid, gid, home = u.Uid, u.Gid, u.HomeDir
		if ids, err := u.GroupIds(); err == nil {
			a.Groups = numbers(ids)
		}
	} else {
		out, err := ask("getent", "passwd", "--", name)
		f := strings.Split(strings.TrimSpace(string(out)), ":")
		if errors.Is(err, context.DeadlineExceeded) {
			return a, fmt.Errorf("system user %q: the name service did not answer within %s: mend it, or add the user to /etc/passwd", name, nameServicePatience)
		}
		if err != nil || len(f) < 7 {
			return a, fmt.Errorf("system user %q does not exist on this node: create it or correct the parameter system_user", name)
		}
		uid, gid, home = f[2], f[3], f[5]
		if out, err := ask("id", "-G", "--", name); err == nil {
			a.Groups = numbers(strings.Fields(string(out)))
		}
	}
	id := numbers([]string{uid, gid})
	if len(id) != 2 {
		return a, fmt.Errorf("system user %q has no numeric ids: %q, %q", name, uid, gid)
	}
	a.UID, a.GID, a.Home = id[0], id[1], home
	if len(a.Groups) == 0 {
		a.Groups = []uint32{a.GID}
	}
	return a, nil
}

// nameServicePatience bounds a question to a name service whose server does not answer: it must not take the time of a
// monitor or a stop.
const nameServicePatience = 2 * time.Second

func ask(argv ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), nameServicePatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = 100 * time.Millisecond
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return out, err
}

func numbers(list []string) []uint32 {
	var out []uint32
	for _, s := range list {
		if v, err := strconv.ParseUint(s, 10, 32); err == nil {
			out = append(out, uint32(v))
		}
	}
	return out
}

// Known reports whether the account was found: whoever runs a program as it needs its groups too.
func (a Account) Known() bool { return len(a.Groups) > 0 }

// ErrUnknownAccount says that nothing can be run as the server's user, since nobody says which groups it is in.
var ErrUnknownAccount = errors.New("the server's user cannot be looked up now: is the name service down?")

// credential makes a child run as the account, or nil where this process cannot or need not change its user.
func (a Account) credential() *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	return &syscall.Credential{Uid: a.UID, Gid: a.GID, Groups: a.Groups}
}

// env is the little that a server's or an archive command's environment holds. The agent's own OCF_* variables do not
// leak into it.
func (a Account) env() []string {
	return []string{
		"HOME=" + a.Home, "USER=" + a.Name, "LOGNAME=" + a.Name, "LC_ALL=C",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	}
}
