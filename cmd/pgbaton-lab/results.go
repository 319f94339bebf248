package main

import (
	"os"

	"github.com/pgbaton/pgbaton/internal/lab"
)

type resultsCmd struct {
	File string `arg:"" help:"Lines of JSON, as the end-to-end tests leave them with PGBATON_RESULTS."`
}

// Help is shown by --help.
func (resultsCmd) Help() string {
	return `A row for each scenario: runs, runs passed, outage of the clients in the median and at
worst, acknowledged rows lost, moments with two writable nodes, nodes fenced, runs after
which the cluster was whole without help. make soak prints it at its end.`
}

func (r resultsCmd) Run() error {
	f, err := os.Open(r.File)
	if err != nil {
		return err
	}
	defer f.Close()
	return lab.WriteResults(os.Stdout, f)
}
