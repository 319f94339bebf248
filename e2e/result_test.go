package e2e

import (
	"context"
	"encoding/json"
	"os"
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

// keepResult writes the scenario's line. Healed means that the cluster is whole again without anybody's help.
func (s *scenario) keepResult() {
	if resultsFile == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	healed := lab.Poll(ctx, 500*time.Millisecond, func() error {
		if err := s.lab.Healthy(ctx); err != nil {
			return lab.NotYet("%v", err)
		}
		return nil
	})
	s.result.Scenario, s.result.Passed, s.result.Healed, s.result.Fenced = s.t.Name(), !s.t.Failed(), healed == nil, s.fencedSince()
	if healed != nil {
		s.t.Logf("left for the reset: %v", healed)
	}
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
