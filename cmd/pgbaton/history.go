package main

import (
	"encoding/json"
	"os"

	"github.com/pgbaton/pgbaton/internal/console"
	"github.com/pgbaton/pgbaton/internal/journal"
)

type historyCmd struct {
	N    int  `arg:"" optional:"" default:"20" help:"How many actions, the last ones; 0: all that is kept."`
	JSON bool `name:"json" help:"One JSON object a line, as the journal has them."`
}

// Help is shown by --help.
func (historyCmd) Help() string {
	return `Every action of the agent that had a part in a handover, takeover, restart in place or
cold start leaves a line in /var/lib/pgbaton/RESOURCE/journal.jsonl, on its own node.`
}

func (h historyCmd) Run(c *common) error {
	resource, err := console.Resource(journal.Root, c.Resource)
	if err != nil {
		return err
	}
	events, err := journal.Open(resource).Events()
	if err != nil {
		return err
	}
	if h.N > 0 && len(events) > h.N {
		events = events[len(events)-h.N:]
	}
	if !h.JSON {
		console.History(os.Stdout, events)
		return nil
	}
	out := json.NewEncoder(os.Stdout)
	for _, e := range events {
		if err := out.Encode(e); err != nil {
			return err
		}
	}
	return nil
}
