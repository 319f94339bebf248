package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"time"

	"github.com/pgbaton/pgbaton/internal/console"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

type statusCmd struct {
	JSON bool `name:"json" help:"As one JSON object."`
}

// Help is shown by --help.
func (statusCmd) Help() string {
	return `Roles, promotion scores, what keeps a node from being promoted, constraints, failed
actions, and how the last primary ended, as this node's part of the cluster sees it.
Exit code 1 unless there is one primary and nothing for a person to do.`
}

func (s statusCmd) Run(c *common) error {
	resource, err := console.Resource(journal.Root, c.Resource)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	status, err := console.ReadStatus(ctx, pacemaker.ExecRunner{}, resource)
	if err != nil {
		return err
	}
	if s.JSON {
		out := json.NewEncoder(os.Stdout)
		out.SetIndent("", "  ")
		if err := out.Encode(status); err != nil {
			return err
		}
	} else {
		status.Text(os.Stdout)
	}
	if !status.Healthy() {
		return errors.New("something needs a person: see above")
	}
	return nil
}
