//go:build faults

package agent

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// The fault directory is read by an agent built with the tag "faults", for tests only.
//
//	trace    if it exists, every effect is appended to it: NAME WHEN
//	kill     "NAME WHEN": the agent's process group is killed there, once (the file is renamed to killed)
//	pause    "NAME WHEN": the agent waits there as long as the file exists
const faultDir = "/run/pgbaton/faults"

func faultPoint(effect, when string) {
	here := effect + " " + when
	if f, err := os.OpenFile(faultDir+"/trace", os.O_WRONLY|os.O_APPEND, 0); err == nil {
		fmt.Fprintln(f, here)
		f.Close()
	}
	if data, err := os.ReadFile(faultDir + "/kill"); err == nil && strings.TrimSpace(string(data)) == here {
		if os.Rename(faultDir+"/kill", faultDir+"/killed") == nil {
			syscall.Kill(0, syscall.SIGKILL)
			select {}
		}
	}
	for {
		data, err := os.ReadFile(faultDir + "/pause")
		if err != nil || strings.TrimSpace(string(data)) != here {
			return
		}
		os.WriteFile(faultDir+"/paused", []byte(here), 0o644)
		time.Sleep(2 * time.Millisecond)
	}
}
