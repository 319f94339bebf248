package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// Limits that have nothing to do with how good an outage is: what takes longer has gone wrong.
const (
	roleLimit = 60 * time.Second // until there is a primary again
	healLimit = 60 * time.Second // until every node streams
)

// cluster is a lab that several scenarios use one after the other.
type cluster struct {
	lab    *lab.Lab
	faulty bool // the agent in place is the one that can be paused and killed
}

// running is the one lab that testCluster keeps: two would disturb each other on a small machine.
var running *cluster

// Where a node has both builds of the agent: a scenario chooses one.
const (
	plainAgent  = "/usr/lib/pgbaton-e2e/agent"
	faultyAgent = "/usr/lib/pgbaton-e2e/agent-faults"
	agentInNode = "/usr/lib/ocf/resource.d/pgbaton/postgresql"
)

// ordinary are the options of a lab for scenarios in general: what heals by the next monitor does not make them long, and
// neither does what waits for as long as Pacemaker lets a notification or a stop run. A standby that is connected through
// the virtual IP, which has moved meanwhile, notices when it next sends its status.
func ordinary() lab.Options {
	return lab.Options{
		Ops: map[string]lab.Op{
			"promote":            {OnFail: "demote"},
			"monitor-promoted":   {Interval: "4s"},
			"monitor-unpromoted": {Interval: "5s"},
			"notify":             {Timeout: "20s"},
			"stop":               {Timeout: "30s"},
		},
		Conf: map[string]string{"wal_receiver_status_interval": "1s", "max_prepared_transactions": "5"},
	}
}

// testCluster returns the running lab of that name, or makes it: name tells labs of different options apart. The agent is
// built from this tree.
func testCluster(t *testing.T, name string, o lab.Options) *cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the lab makes namespaces: run this test as root")
	}
	// Another run of these tests at the same time has labs of its own.
	o.Name = fmt.Sprintf("e2e-%s-%d", name, os.Getpid())
	if running != nil && running.lab.Name == o.Name {
		return running
	}
	if err := endCluster(); err != nil {
		t.Fatal(err)
	}
	if err := lab.Sweep("e2e-"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	plain, faulty := built(t, buildAgent), built(t, buildFaultyAgent)
	t.Logf("%6.1f s  built the agent, with and without faults", time.Since(began).Seconds())
	if o.Files == nil {
		o.Files = map[string]string{}
	}
	if o.Agent == "" {
		o.Agent, o.AgentBinary = "pgbaton", plain
	} else {
		o.Files[agentInNode] = plain // installed, and not in charge
	}
	o.Lifeline, o.Replace, o.Log = true, true, t.Output()
	o.Files[plainAgent], o.Files[faultyAgent] = plain, faulty
	if o.AutoReturn == 0 {
		o.AutoReturn = 2 * time.Second
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	l, err := lab.Up(ctx, o)
	if l != nil {
		running = &cluster{lab: l}
		l.Log = nil // it belongs to this test
	}
	if err != nil {
		if l != nil {
			l.Dump(context.WithoutCancel(ctx), t.Output())
		}
		t.Fatal(err)
	}
	return running
}

// endCluster takes the running lab down.
func endCluster() error {
	if running == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	l := running.lab
	running = nil
	return l.Down(ctx)
}

// ownLab makes a lab for one test alone, which is not one for scenarios.
func ownLab(t *testing.T, name string, o lab.Options) *lab.Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the lab makes namespaces: run this test as root")
	}
	if err := endCluster(); err != nil { // two labs would disturb each other
		t.Fatal(err)
	}
	o.Name, o.Agent = fmt.Sprintf("e2e-%s-%d", name, os.Getpid()), "pgbaton"
	o.Lifeline, o.Replace, o.Log = true, true, t.Output()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	l, err := lab.Up(ctx, o)
	if l != nil {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			if err := l.Down(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// installAgent puts a file of a node in the place of its agent, as an upgrade does: there is one at every moment.
func installAgent(ctx context.Context, l *lab.Lab, node, from string) error {
	_, err := l.Run(ctx, node, "sh", "-c", "cp "+from+" "+agentInNode+".new && mv "+agentInNode+".new "+agentInNode)
	return err
}

// useFaults puts the agent that reads the fault directory in place on all nodes, or the one without.
func (c *cluster) useFaults(t *testing.T, on bool) {
	t.Helper()
	if c.faulty == on {
		return
	}
	agent := plainAgent
	if on {
		agent = faultyAgent
	}
	for _, n := range c.lab.Names {
		if err := installAgent(t.Context(), c.lab, n, agent); err != nil {
			t.Fatal(err)
		}
	}
	c.faulty = on
}
