package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
)

// setnsNumber is the number of setns(2), which package syscall lacks on amd64.
var setnsNumber = map[string]uintptr{"amd64": 308, "arm64": 268}

// DialFrom connects from inside a node's network namespace, in this process. It has
// the signature of net.Dialer.DialContext; addr must have a numeric address.
func (l *Lab) DialFrom(node string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		pid, err := l.InitPID(node)
		if err != nil {
			return nil, err
		}
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			return nil, err
		}
		defer ns.Close()
		onOwnThread(func() {
			number, ok := setnsNumber[runtime.GOARCH]
			if !ok {
				err = fmt.Errorf("setns is not known on %s", runtime.GOARCH)
				return
			}
			if _, _, errno := syscall.RawSyscall(number, ns.Fd(), syscall.CLONE_NEWNET, 0); errno != 0 {
				err = fmt.Errorf("enter the network of %s: %w", node, errno)
				return
			}
			conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		})
		return conn, err
	}
}

// onOwnThread runs f on a thread that ends with it, so that f may change the thread's
// namespace. Never on the main thread: Go cannot end that one, and the whole process
// would look as if it were in that namespace.
func onOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if syscall.Gettid() != syscall.Getpid() {
			f()
			return
		}
		defer runtime.UnlockOSThread()
		onOwnThread(f) // while this goroutine holds the main thread
	}()
	<-done
}
