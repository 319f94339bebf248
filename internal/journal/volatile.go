package journal

import (
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
)

// RunRoot is where the nodes keep what must not survive a reboot.
const RunRoot = "/run/pgbaton"

// Volatile is what a node knows since it booted. Its loss is always safe.
type Volatile struct {
	Live       bool             `json:"live,omitempty"`        // a primary was seen since boot
	Saw        uint64           `json:"saw,omitempty"`         // Seq of the newest claim this node was there for since it booted
	Parked     bool             `json:"parked,omitempty"`      // demote left the instance down, to be started as a standby
	Informed   string           `json:"informed,omitempty"`    // incarnation of attrd in which stop ended the instance beside a node that was gone: see baton.Candidate
	Stopped    bool             `json:"stopped,omitempty"`     // stop ended the instance: that it is down is no crash, whatever pg_control says
	Challenge  string           `json:"challenge,omitempty"`   // nonce this node asked with last, as a target
	Asked      *Asked           `json:"asked,omitempty"`       // a challenge published ahead of the attempt it is for
	Recorded   string           `json:"recorded,omitempty"`    // nonce of this node's claim that is in the cluster's configuration
	Forgotten  bool             `json:"forgotten,omitempty"`   // and it was seen to be there no more
	Unread     bool             `json:"unread,omitempty"`      // the claims in the cluster's configuration could not be read when the instance started
	Heard      *Heard           `json:"heard,omitempty"`       // what the verdict of pre-promote rested on
	Asking     *baton.Challenge `json:"asking,omitempty"`      // the challenge in this node's bulletin
	LastAnswer *baton.Answer    `json:"last_answer,omitempty"` // the answer in it
	Refused    time.Time        `json:"refused,omitzero"`      // when a crashed primary left the role to others
	Out        *Out             `json:"out,omitempty"`         // the instance is kept out: it is down, and Pacemaker believes it started
	Stall      *baton.Stall     `json:"stall,omitempty"`       // no commit ends on this primary
	Probed     time.Time        `json:"probed,omitzero"`       // when a commit of our own ended last, on an idle server
	Found      *Found           `json:"found,omitempty"`       // the last record that was found in this instance's WAL, since it was started
	Primary    *pgdisk.Position `json:"primary,omitempty"`     // how far the primary had written, by its last monitor
	Score      string           `json:"score,omitempty"`       // the promotion score set last
	Status     string           `json:"status,omitempty"`      // the status attribute set last
	Ended      string           `json:"ended,omitempty"`       // the end of this instance for which its note was published
	Held       string           `json:"held,omitempty"`        // nonce of the note for whose sake score and status were left once as they are
	Shown      *Shown           `json:"shown,omitempty"`       // the view published last
	Told       *Told            `json:"told,omitempty"`        // of its journal, to the other nodes
	Parameters string           `json:"parameters,omitempty"`  // checksum of the parameters of the last action: a sentinel that began with others ends
	Asserted   int64            `json:"asserted,omitempty"`    // when score and bulletin were last asserted, Unix seconds
	Attrd      string           `json:"attrd,omitempty"`       // incarnation of attrd they were told to
}

// Found is a record in this instance's WAL up to which all of it was valid.
type Found struct {
	Timeline pgdisk.TimelineID `json:"timeline"` // along whose history it was found
	Start    pgdisk.LSN        `json:"start"`
	End      pgdisk.LSN        `json:"end"`
	CRC      uint32            `json:"crc"`
}

// Shown is the view of its instance that a node published last.
type Shown struct {
	At      time.Time `json:"at"`
	Outline string    `json:"outline"`         // what of it would be worth another one at once
	Attrd   string    `json:"attrd,omitempty"` // incarnation of attrd it was told to
}

// Told is up to where a node has told the others what stands in its journal.
type Told struct {
	Size  int64  `json:"size"`
	Attrd string `json:"attrd,omitempty"` // incarnation of attrd it was told to
}

// Out is why an instance is kept out: its history is not the cluster's.
type Out struct {
	Rejoin baton.Rejoin `json:"rejoin"`
	Reason string       `json:"reason"`
	// Basis is what the verdict rests on; with another one it is asked for again.
	Basis string `json:"basis"`
	// Running: this was found out while the server ran, and it has not been stopped yet.
	Running bool `json:"running,omitempty"`
}

// Asked is a challenge that a target published in post-demote, so that the answers are there when pre-promote wants them.
type Asked struct {
	Challenge baton.Challenge `json:"challenge"`
	At        time.Time       `json:"at"`
}

// Heard is what the bulletins said when pre-promote found this node fit to be promoted.
type Heard struct {
	Challenge baton.Challenge  `json:"challenge"`
	Bulletins []baton.Bulletin `json:"bulletins"`
	At        time.Time        `json:"at"`
	Ordered   *baton.Order     `json:"ordered,omitempty"`
}

// RunDir is the directory of a resource's volatile state.
func RunDir(resource string) string { return filepath.Join(RunRoot, resource) }

// LoadVolatile reads the volatile state; whatever cannot be read is not known.
func LoadVolatile(resource string) Volatile {
	var v Volatile
	data, err := os.ReadFile(filepath.Join(RunDir(resource), "volatile.json"))
	if err != nil || json.Unmarshal(data, &v) != nil {
		return Volatile{}
	}
	return v
}

// SaveVolatile replaces the volatile state, without a flush.
func SaveVolatile(resource string, v Volatile) error {
	dir := RunDir(resource)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, "volatile.json.new")
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, "volatile.json"))
}
