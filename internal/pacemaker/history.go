package pacemaker

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// History is what a node's controller remembers of a resource: by whom it was run, and how each operation ended last.
type History struct {
	Agent string // such as "ocf:pgbaton:postgresql"
	Done  []DoneOperation
}

// DoneOperation is the last run of an operation.
type DoneOperation struct {
	Name     string
	Interval time.Duration // 0: a probe, or an operation that does not recur
	Code     int           // exit code
	Pending  bool          // it has not ended yet
	Reason   string
	failed   bool // a second record of an operation, for the failure
}

// Probe is the answer of the probe, if it was the last thing that the agent was asked.
func (h History) Probe() (DoneOperation, bool) {
	for _, op := range h.Done {
		if op.Name == "monitor" && op.Interval == 0 && !op.failed {
			return op, true
		}
	}
	return DoneOperation{}, false
}

// Monitor is the last answer of a recurring monitor.
func (h History) Monitor() (DoneOperation, bool) {
	for _, op := range h.Done {
		if op.Name == "monitor" && op.Interval > 0 && !op.failed {
			return op, true
		}
	}
	return DoneOperation{}, false
}

// Status is the part of the CIB that the nodes write, as this node's copy has it.
type Status struct{ root element }

// ReadStatus reads it.
func ReadStatus(ctx context.Context, r Runner) (Status, error) {
	out, err := r.Run(ctx, "cibadmin", "--query", "--local", "--scope=status")
	if err != nil {
		return Status{}, fmt.Errorf("read the cluster's status: %w", err)
	}
	root, err := parseXML(out)
	if err != nil {
		return Status{}, fmt.Errorf("read the cluster's status: cibadmin's answer is not XML: %w", err)
	}
	return Status{root}, nil
}

// Histories returns those of a resource by node name.
func (s Status) Histories(resource string) map[string]History {
	list := map[string]History{}
	for n := range s.root.all("node_state") {
		for rsc := range n.all("lrm_resource") {
			if instanceName(rsc.attr("id")) != resource {
				continue
			}
			h := History{Agent: rsc.attr("class") + ":" + rsc.attr("provider") + ":" + rsc.attr("type")}
			for op := range rsc.all("lrm_rsc_op") {
				ms, _ := strconv.Atoi(op.attr("interval"))
				code, _ := strconv.Atoi(op.attr("rc-code"))
				status, _ := strconv.Atoi(op.attr("op-status"))
				h.Done = append(h.Done, DoneOperation{
					Name: op.attr("operation"), Interval: time.Duration(ms) * time.Millisecond, Code: code, Pending: status < 0,
					Reason: op.attr("exit-reason"), failed: op.attr("id") == rsc.attr("id")+"_last_failure_0",
				})
			}
			list[n.attr("uname")] = h
		}
	}
	return list
}

// Transient returns the values of a transient attribute by node name.
func (s Status) Transient(name string) map[string]string {
	values := map[string]string{}
	for n := range s.root.all("node_state") {
		for set := range n.all("transient_attributes") {
			for nv := range set.all("nvpair") {
				if nv.attr("name") == name && nv.attr("value") != "" {
					values[n.attr("uname")] = nv.attr("value")
				}
			}
		}
	}
	return values
}
