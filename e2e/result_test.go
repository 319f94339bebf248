package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
	"github.com/pgbaton/pgbaton/internal/load"
)

// resultsFile is where each scenario leaves a line for the table of make soak, which pgbaton-lab results prints.
var resultsFile = os.Getenv("PGBATON_RESULTS")

// endLoad ends the clients and keeps what the table is about.
func (s *scenario) endLoad() load.Report {
	r := s.load.Stop()
	s.load = nil
	s.result.Acknowledged += r.Acknowledged
	s.result.Lost += r.LostWrites()
	s.result.TwoWritable += len(r.Overlaps)
	for _, a := range r.Anomalies {
		s.t.Error(a)
	}
	return r
}

// keepResult writes the scenario's line. Healed means that the cluster is whole again without anybody's help; with
// rewind_conninfo, which is set now where a node has diverged and waits for that.
func (s *scenario) keepResult() {
	if resultsFile == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	healed := s.whole(ctx)
	if healed != nil && !s.t.Failed() {
		s.t.Errorf("not whole again: %v", healed)
	}
	s.result.Scenario, s.result.Passed, s.result.Healed, s.result.Fenced = s.t.Name(), !s.t.Failed(), healed == nil, s.fencedSince()
	b, err := json.Marshal(s.result)
	if err != nil {
		s.t.Error(err)
		return
	}
	f, err := os.OpenFile(resultsFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		s.t.Error(err)
		return
	}
	defer f.Close()
	if _, err := f.Write(append(b, '\n')); err != nil {
		s.t.Error(err)
	}
}

// whole waits until there is one primary, from which every other node streams, and nobody is kept out. It rewinds, as a
// person would by the first command that is shown, and then compares the rows.
func (s *scenario) whole(ctx context.Context) error {
	rewinds := false
	err := lab.Poll(ctx, 500*time.Millisecond, func() error {
		st, err := s.lab.View(ctx)
		if err != nil {
			return lab.NotYet("%v", err)
		}
		for _, n := range st.Nodes {
			says := n.Attributes[statusAttribute]
			if !rewinds && strings.Contains(says, "to have it rewound: ") {
				rewinds = true
				if _, err := s.lab.Run(ctx, st.Asked, "crm_resource", "-r", lab.Resource, "-p", "rewind_conninfo", "-v", "host="+lab.VIP+" user=postgres"); err != nil { // who may order the checkpoint that a rewind waits for
					return err
				}
			}
			if says != "" || scoreOf(n) < 0 {
				return lab.NotYet("%s is %q, with the score %q: %s", n.Name, n.Role, n.Score, says)
			}
		}
		brief, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if err := s.lab.WaitAllStreaming(brief); err != nil {
			return lab.NotYet("%v", err)
		}
		return nil
	})
	if !rewinds {
		return err
	}
	if err == nil {
		err = sameRows(ctx, s.lab)
	}
	st, verr := s.lab.View(ctx)
	if verr == nil {
		_, verr = s.lab.Run(ctx, st.Asked, "crm_resource", "-r", lab.Resource, "-d", "rewind_conninfo")
	}
	// A parameter that is changed takes the place of the promotion in Pacemaker's history for a moment.
	if verr == nil {
		verr = s.lab.WaitIdle(ctx)
	}
	return errors.Join(err, verr)
}
