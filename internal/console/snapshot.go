package console

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/postgres"
	"github.com/pgbaton/pgbaton/internal/view"
)

// agentName is how Pacemaker names the agent, whichever release it is.
const agentName = "ocf:pgbaton:postgresql"

// askLimit bounds each question: to Pacemaker, which answers from this node's memory, and to the server of this node.
const (
	askLimit    = 5 * time.Second
	serverLimit = 2 * time.Second
)

// World is what the command can ask: Pacemaker on this node, and the server of this node.
type World struct {
	Run pacemaker.Runner
	// Ask asks the server of this node how it stands.
	Ask func(ctx context.Context, params map[string]string) (postgres.Overview, error)
	Now func() time.Time
	// Journal is what this node's agent wrote down.
	Journal func(resource string) []journal.Event
	Root    string // where the resources of this node have their journals
	// Servers are those that run on this node, whoever started them.
	Servers func() ([]postgres.Server, error)
}

// ThisNode is the world of a node of a cluster.
func ThisNode() World {
	return World{Run: pacemaker.ExecRunner{}, Ask: askServer, Now: time.Now, Journal: readJournal, Root: journal.Root, Servers: postgres.FindServers}
}

// readJournal returns what can be read of it.
func readJournal(resource string) []journal.Event {
	events, _ := journal.Open(resource).Events()
	return events
}

// askServer connects to the server that the resource's parameters describe.
func askServer(ctx context.Context, params map[string]string) (postgres.Overview, error) {
	i, err := instance(params)
	if err != nil {
		return postgres.Overview{}, err
	}
	sess, err := i.Connect(ctx)
	if err != nil && os.Geteuid() != 0 && os.Geteuid() != int(i.Owner.UID) {
		return postgres.Overview{}, errNotHere // peer authentication: not this user's to ask
	}
	if err != nil {
		return postgres.Overview{}, err
	}
	defer sess.Close()
	return sess.Overview(ctx)
}

// instance is the server that the resource's parameters describe, on this node.
func instance(params map[string]string) (*postgres.Instance, error) {
	env := ocf.Env{}
	for k, v := range params {
		env["OCF_RESKEY_"+k] = v
	}
	p, err := ocf.ParseParams(env)
	if err != nil {
		return nil, err
	}
	i := &postgres.Instance{ConfigDir: p.PGData, DataDir: p.DataDir, SocketDir: p.PGHost, Port: p.PGPort, StartArgs: p.StartArgs}
	if params["datadir"] == "" {
		i.DataDir = i.ConfiguredDataDir()
	}
	p.DataDir = i.DataDir
	i.BinDir, _ = p.FindBinDir()
	i.Owner, err = postgres.LookupAccount(p.SystemUser)
	return i, err
}

// Snapshot is everything that one node can know of the cluster at one moment.
type Snapshot struct {
	Taken           time.Time
	Here            string // this node
	Resource, Clone string
	State           pacemaker.ClusterState
	Config          pacemaker.Configuration
	Bulletins       []baton.Bulletin
	Unreadable      map[string]error     // bulletins and views of another version, by node
	Views           map[string]view.View // by node; that of this node is fresh if its server answered
	Fresh           bool                 // the server of this node answered
	LocalErr        error                // why it could not be asked

	lock sync.Mutex // while it is taken
}

// Take asks. It writes nothing. Whatever does not answer in time is missing, and said so, but for Pacemaker itself.
func (w World) Take(ctx context.Context, asked string) (*Snapshot, error) {
	s := &Snapshot{Taken: w.Now(), Unreadable: map[string]error{}, Views: map[string]view.View{}}
	ctx, cancel := context.WithTimeoutCause(ctx, askLimit, errHangs)
	defer cancel()
	err := together(
		func() (err error) { s.State, err = pacemaker.ReadState(ctx, w.Run); return err },
		func() (err error) { s.Config, err = pacemaker.ReadConfiguration(ctx, w.Run); return err },
		func() (err error) { s.Here, err = thisNode(ctx, w.Run); return err },
	)
	if err != nil {
		return nil, explain(err)
	}
	if s.Resource, s.Clone, err = find(s.State, asked); err != nil {
		return nil, err
	}
	var here *view.View
	err = together(
		func() error { return s.readBulletins(ctx, w.Run) },
		func() error { return s.readViews(ctx, w.Run) },
		func() error { here, s.LocalErr = s.askHere(ctx, w); return nil },
	)
	if err != nil {
		return nil, explain(err)
	}
	if here != nil {
		s.Views[s.Here], s.Fresh = *here, true
	}
	return s, nil
}

func (s *Snapshot) readBulletins(ctx context.Context, run pacemaker.Runner) error {
	values, err := pacemaker.NewAttrd(run).QueryAll(ctx, baton.BulletinAttribute(s.Resource))
	if err != nil {
		return err
	}
	for node, v := range values {
		b, err := baton.Decode(v)
		if err == nil && b.Node != node {
			err = fmt.Errorf("the bulletin of %s is signed by %s", node, b.Node)
		}
		if err != nil {
			s.flaw(node, err)
			continue
		}
		s.Bulletins = append(s.Bulletins, b)
	}
	slices.SortFunc(s.Bulletins, func(a, b baton.Bulletin) int { return strings.Compare(a.Node, b.Node) })
	return nil
}

func (s *Snapshot) readViews(ctx context.Context, run pacemaker.Runner) error {
	values, err := pacemaker.NewAttrd(run).QueryAll(ctx, view.Attribute(s.Resource))
	if err != nil {
		return err
	}
	for node, text := range values {
		v, err := view.Decode(text)
		if err != nil {
			s.flaw(node, err)
			continue
		}
		s.lock.Lock()
		s.Views[node] = v
		s.lock.Unlock()
	}
	return nil
}

func (s *Snapshot) flaw(node string, err error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.Unreadable[node] = err
}

// askHere asks the server of this node, if Pacemaker runs one here.
func (s *Snapshot) askHere(ctx context.Context, w World) (*view.View, error) {
	in, ok := s.Instance(s.Here)
	if !ok || !in.Active {
		return nil, errNotHere
	}
	ctx, cancel := context.WithTimeout(ctx, serverLimit)
	defer cancel()
	o, err := w.Ask(ctx, s.Config.Parameters(s.Resource))
	if err != nil {
		return nil, err
	}
	return &view.View{Node: s.Here, At: w.Now(), Overview: o}, nil
}

// errNotHere says that there is nobody on this node who could be asked, which is nobody's fault.
var errNotHere = errors.New("no instance on this node that this user can ask")

// Instance is the instance of the resource on a node.
func (s *Snapshot) Instance(node string) (pacemaker.Instance, bool) {
	for _, in := range s.State.Of(s.Resource) {
		if in.Node == node {
			return in, true
		}
	}
	return pacemaker.Instance{}, false
}

// banned tells whether a constraint keeps every instance of the resource off a node.
func (s *Snapshot) banned(node string) bool {
	return slices.ContainsFunc(s.State.Bans, func(b pacemaker.Ban) bool {
		return b.Node == node && !b.PromotedOnly && slices.Contains(s.Config.Names(s.Resource), b.Resource)
	})
}

// says is why a node refuses or is kept out, "" if it says nothing.
func (s *Snapshot) says(node string) string {
	return s.State.Attributes[node][view.StatusAttribute(s.Resource)]
}

// Primary is the one primary that Pacemaker knows of, "" if there is none or several.
func (s *Snapshot) Primary() string {
	if p := s.State.Promoted(s.Resource); len(p) == 1 {
		return p[0]
	}
	return ""
}

// Standby is the primary's view of a standby, and when it was. Not if the primary has not said anything lately: while nothing
// is monitored it publishes nothing, and what it saw hours ago is no lag.
func (s *Snapshot) Standby(node string) (sb postgres.StandbyOverview, at time.Time, known bool) {
	v, ok := s.Views[s.Primary()]
	if !ok || !v.Primary || s.Age(v.At) > oldView {
		return sb, at, false
	}
	for _, sb := range v.Standbys {
		if sb.Name == node {
			return sb, v.At, true
		}
	}
	return sb, v.At, true // it is not connected: State is empty
}

// Standing is how the server of a standby stands, as far as it can be told here.
type Standing struct {
	State string // streaming, catchup, startup, backup; "" if it is not connected
	Known bool
	By    string    // the node that says so
	At    time.Time // when it looked
}

// Standing weighs what the primary says of a standby against what that says itself. Asked just now beats published, the
// later beats the earlier. But a primary that published right after its promotion has not seen its standbys come yet: if
// it misses one that has said before that it streams, nothing is known until one of the two looks again.
func (s *Snapshot) Standing(node string) Standing {
	primary := s.Primary()
	own, hasOwn := s.Views[node]
	hasOwn = hasOwn && !own.Primary && s.Age(own.At) <= oldView
	sb, at, known := s.Standby(node)
	asked := func(n string) bool { return s.Fresh && n == s.Here }
	byOwn := Standing{Known: hasOwn, By: node, At: own.At}
	if own.Streaming {
		byOwn.State = "streaming"
	}
	switch {
	case known && (asked(primary) || !hasOwn):
	case !known || asked(node) || own.At.After(at):
		return byOwn
	case sb.State == "" && own.Streaming:
		return Standing{By: node, At: own.At}
	}
	return Standing{State: sb.State, Known: true, By: primary, At: at}
}

// Age is how old a view is; of this node's own server it is nothing.
func (s *Snapshot) Age(at time.Time) time.Duration { return max(0, s.Taken.Sub(at)) }

// on says where a fact comes from: "now" for one that was asked for just now, else its age.
func (s *Snapshot) on(node string, at time.Time) string {
	if node == s.Here && s.Fresh {
		return "now"
	}
	return ago(s.Age(at))
}

func ago(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s ago", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min ago", d.Minutes())
	}
	return fmt.Sprintf("%.0f h ago", d.Hours())
}

// find chooses the resource: the one asked for, by the name of the primitive or of its clone, or the only one of the agent.
func find(state pacemaker.ClusterState, asked string) (resource, clone string, err error) {
	return findOf(state, agentName, asked)
}

// namesOf are the resources of an agent.
func namesOf(state pacemaker.ClusterState, agent string) []string {
	var names []string
	for _, in := range state.Instances {
		if in.Agent == agent && !slices.Contains(names, in.Resource) {
			names = append(names, in.Resource)
		}
	}
	slices.Sort(names)
	return names
}

// findOf is find for any agent.
func findOf(state pacemaker.ClusterState, agent, asked string) (resource, clone string, err error) {
	names := namesOf(state, agent)
	clones := map[string]string{}
	for _, in := range state.Instances {
		if in.Agent == agent {
			clones[in.Resource] = in.Clone
		}
	}
	if asked != "" {
		for _, n := range names {
			if n == asked || clones[n] == asked {
				names = []string{n}
				break
			}
		}
		if len(names) != 1 || (names[0] != asked && clones[names[0]] != asked) {
			if len(names) == 0 {
				return "", "", fail(Refused, "there is no resource of %s in this cluster", agent)
			}
			return "", "", fail(Refused, "%q is no resource of %s in this cluster: there is %s%s", asked, agent, strings.Join(names, ", "), didYouMean(asked, append(names, clones[names[0]])))
		}
	}
	switch {
	case len(names) == 0:
		return "", "", fail(Refused, "there is no resource of %s in this cluster: see README.md, Configuration", agent)
	case len(names) > 1:
		return "", "", fail(Refused, "several resources of %s are in this cluster: choose one with -r: %s", agent, strings.Join(names, ", "))
	case clones[names[0]] == "":
		return "", "", fail(Refused, "%s is not in a clone: it must be promotable (pcs resource promotable %s, or crm configure clone %s-clone %s meta promotable=true)", names[0], names[0], names[0], names[0])
	}
	return names[0], clones[names[0]], nil
}

// together runs functions at the same time and returns their errors: each of Pacemaker's commands costs some 15 ms.
func together(list ...func() error) error {
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for n, f := range list {
		wg.Go(func() { errs[n] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// thisNode is the name of this node, as the cluster knows it.
func thisNode(ctx context.Context, run pacemaker.Runner) (string, error) {
	out, err := run.Run(ctx, "crm_node", "--name")
	if err != nil {
		return "", fmt.Errorf("ask for the name of this node: %w", err)
	}
	name := strings.TrimSpace(string(out))
	if name == "" || strings.ContainsAny(name, " \n") {
		return "", fmt.Errorf("ask for the name of this node: crm_node answered %q: expected one name", out)
	}
	return name, nil
}
