// Package view is what each node's monitor publishes of its instance for the operator's command, which runs on one node
// and can ask no other. Nothing that decides rests on it.
package view

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/pgbaton/pgbaton/internal/postgres"
)

// version stands in every view: a reader that meets a higher one says so and does not guess. New fields do not change it.
const version = 1

// View is how an instance stood when its monitor looked last.
type View struct {
	Version int       `json:"v"`
	Node    string    `json:"node"`
	At      time.Time `json:"at"` // by the clock of that node
	postgres.Overview
}

// Attribute is the name of the private node attribute that holds a node's view.
func Attribute(resource string) string { return "pgbaton-view-" + resource }

// StatusAttribute is the name of the transient node attribute that says, to whoever looks at crm_mon -A, why a node refuses
// or is kept out.
func StatusAttribute(resource string) string { return "pgbaton-status-" + resource }

// Encode is printable ASCII without line breaks.
func Encode(node string, at time.Time, o postgres.Overview) (string, error) {
	b, err := json.Marshal(View{Version: version, Node: node, At: at.UTC().Truncate(time.Millisecond), Overview: o})
	if err != nil {
		return "", err
	}
	return ascii(b), nil
}

// Decode reads what Encode wrote.
func Decode(s string) (View, error) {
	var v View
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		return v, fmt.Errorf("a node's view of its instance cannot be read: %w", err)
	}
	if v.Version != version {
		return v, fmt.Errorf("a view of version %d, this release reads version %d: upgrade pgbaton on this node", v.Version, version)
	}
	return v, nil
}

// ascii writes what is not ASCII as JSON's \u escapes: attribute values must be.
func ascii(b []byte) string {
	out := make([]byte, 0, len(b))
	for _, r := range string(b) {
		switch {
		case r < 0x80:
			out = append(out, byte(r))
		case r < 0x10000:
			out = fmt.Appendf(out, `\u%04x`, r)
		default:
			r -= 0x10000
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xd800+(r>>10), 0xdc00+(r&0x3ff))
		}
	}
	return string(out)
}
