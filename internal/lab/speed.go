package lab

import (
	"fmt"
	"math"
	"os/exec"
	"sync"
	"time"
)

// commonStart is what a start of one of Pacemaker's commands is taken to last on a common machine, by choice: a program with some thirty
// shared libraries that does nothing. A change of roles starts hundreds of programs and server processes on the lab's one machine,
// and takes longer by that factor on a virtual machine whose page tables are kept in software.
const commonStart = 8 * time.Millisecond

// Slowness is how many times slower than a common machine this one starts programs: 1 if it is not slower by half. The quickest of
// many starts counts, so that it says what the machine is, and not what else it does just now.
var Slowness = sync.OnceValues(func() (float64, error) {
	quickest := time.Duration(math.MaxInt64)
	for range 25 {
		begin := time.Now()
		if out, err := exec.Command("crm_mon", "--version").CombinedOutput(); err != nil {
			return 0, fmt.Errorf("crm_mon --version: %w: %s", err, out)
		}
		quickest = min(quickest, time.Since(begin))
	}
	return slowness(quickest), nil
})

func slowness(start time.Duration) float64 {
	if f := start.Seconds() / commonStart.Seconds(); f > 1.5 {
		return f
	}
	return 1
}
