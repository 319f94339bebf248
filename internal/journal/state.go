package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/durable"
)

// Root is where the nodes keep their state.
const Root = "/var/lib/pgbaton"

// State is what a node knows durably.
type State struct {
	Version      int             `json:"version"`
	SystemID     uint64          `json:"system_id,omitempty"` // of the database cluster that all of this is about
	Note         *baton.Note     `json:"note,omitempty"`
	Claims       []baton.Claim   `json:"claims,omitempty"`
	Participants []string        `json:"participants,omitempty"` // nodes ever seen with a bulletin
	Refusal      *baton.Refusal  `json:"refusal,omitempty"`
	Left         *baton.Left     `json:"left,omitempty"` // this standby left a running primary, and has not caught up since
	Away         bool            `json:"away,omitempty"` // see baton.Answer
	Instance     *InstanceRecord `json:"instance,omitempty"`
	Rewound      string          `json:"rewound,omitempty"` // nonce of the newest claim when this node was last rewound
	// Recovered: what pg_control says of a clean shutdown is the work of this agent, which had a single-user server recover the
	// instance so that it can be rewound. No server has run since.
	Recovered bool `json:"recovered,omitempty"`
}

// InstanceRecord is where the instance was when it last started: stop and monitor rely on it when the parameters are
// broken or were changed under a running server.
type InstanceRecord struct {
	DataDir string   `json:"data_dir"` // without symbolic links
	Owner   string   `json:"owner"`
	UID     uint32   `json:"uid"`
	GID     uint32   `json:"gid,omitempty"`
	Groups  []uint32 `json:"groups,omitempty"`
	Home    string   `json:"home,omitempty"`
}

const stateVersion = 1

// Store reads and writes one node's state of one resource.
type Store struct{ Dir string }

// Open returns the store of a resource under [Root].
func Open(resource string) Store { return Store{Dir: filepath.Join(Root, resource)} }

func (s Store) path() string { return filepath.Join(s.Dir, "state.json") }

// Load reads the state; a node that has none yet gets the zero state.
func (s Store) Load() (State, error) {
	var st State
	data, err := os.ReadFile(s.path())
	if errors.Is(err, fs.ErrNotExist) {
		return State{Version: stateVersion}, nil
	}
	if err != nil {
		return st, fmt.Errorf("state of this node: %w", err)
	}
	if err := json.Unmarshal(data, &st); err != nil {
		return st, fmt.Errorf("%s is damaged: restore it, or clone this node anew and remove it: %w", s.path(), err)
	}
	if st.Version != stateVersion {
		return st, fmt.Errorf("%s has version %d, this release reads version %d: upgrade pgbaton on this node", s.path(), st.Version, stateVersion)
	}
	return st, nil
}

// Save replaces the state durably: when it returns, a loss of power does not lose it, and at no moment is there less
// than the old or the new state on disk.
func (s Store) Save(st State) error {
	st.Version = stateVersion
	data, err := json.MarshalIndent(st, "", " ")
	if err != nil {
		return err
	}
	return replace(s.path(), append(data, '\n'))
}

// replace writes aside, flushes, renames, flushes the directory.
func replace(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	return durable.Put(f, data, path)
}
