package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/view"
)

// agentName is how Pacemaker names this agent.
const agentName = "ocf:pgbaton:postgresql"

// Cluster is what the agent asks of Pacemaker and tells it.
type Cluster interface {
	// Publish makes this node's bulletin known to all nodes, as a private attribute: it never aborts a transition.
	Publish(ctx context.Context, b baton.Bulletin) error
	// Bulletins returns what every node that can be seen has published.
	Bulletins(ctx context.Context) ([]baton.Bulletin, error)
	// SetScore sets a node's promotion score. It reaches the CIB and aborts the transition under way.
	SetScore(ctx context.Context, node string, s pacemaker.Score) error
	DeleteScore(ctx context.Context, node string) error
	Scores(ctx context.Context) (map[string]pacemaker.Score, error)
	// ScoreInCIB is a node's promotion score as the DC's copy of the CIB has it.
	ScoreInCIB(ctx context.Context, node string) (pacemaker.Score, bool, error)
	// StatusInCIB is what crm_mon -A shows of a node where the DC runs.
	StatusInCIB(ctx context.Context, node string) (string, error)
	// RecordClaim puts a claim into the cluster's configuration, which aborts the transition under way, and returns once the
	// DC's copy has it. RecordedClaims returns those of all nodes.
	RecordClaim(ctx context.Context, systemID uint64, c baton.Claim) error
	RecordedClaims(ctx context.Context, systemID uint64) ([]baton.Claim, error)
	// ForgetClaim takes this node's claim out of the configuration.
	ForgetClaim(ctx context.Context, node string) error
	// SetStatus shows a sentence in crm_mon -A; "" takes it away.
	SetStatus(ctx context.Context, text string) error
	// Show publishes this node's view of its instance.
	Show(ctx context.Context, value string) error
	// Tell publishes this node's part in the last changes of roles.
	Tell(ctx context.Context, value string) error
	// Favoured reports whether a constraint would promote the node at once if its score allowed it.
	Favoured(ctx context.Context, node string) (bool, error)
	// Order is the order that a person gave for this node, nil if there is none.
	Order(ctx context.Context, node string) (*baton.Order, error)
	// Held is the role in which Pacemaker has the resource here, "" where nobody may act on it: no quorum, maintenance,
	// unmanaged, or it is another agent's by now.
	Held(ctx context.Context) (role string, err error)
	// Ours tells whether the resource still is this agent's: it may have been given to another one, whose scores and
	// processes are not this one's to touch, or removed.
	Ours(ctx context.Context) (bool, error)
	// PromotedBut is another node than this that has the promoted role for Pacemaker, "" if there is none.
	PromotedBut(ctx context.Context, node string) (string, error)
	// Online are the nodes that are members, with Pacemaker running.
	Online(ctx context.Context) ([]string, error)
	// Quorate reports whether the partition of this node has quorum.
	Quorate(ctx context.Context) (bool, error)
	// Votes is how Corosync counts.
	Votes(ctx context.Context) (baton.Votes, error)
	// Incarnation tells one life of attrd from the next: with it go scores and private attributes. known is what it was
	// the last time, which is cheaper to confirm than to find.
	Incarnation(known string) string
}

type liveCluster struct {
	resource string
	run      pacemaker.Runner
	attrd    *pacemaker.Attrd
	dc       string
}

func newLiveCluster(resource string) *liveCluster {
	run := pacemaker.ExecRunner{}
	return &liveCluster{resource: resource, run: run, attrd: pacemaker.NewAttrd(run)}
}

func (c *liveCluster) Publish(ctx context.Context, b baton.Bulletin) error {
	return c.attrd.SetPrivate(ctx, baton.BulletinAttribute(c.resource), b.Encode())
}

func (c *liveCluster) Bulletins(ctx context.Context) ([]baton.Bulletin, error) {
	values, err := c.attrd.QueryAll(ctx, baton.BulletinAttribute(c.resource))
	if err != nil {
		return nil, err
	}
	var list []baton.Bulletin
	for node, v := range values {
		if v == "" {
			continue
		}
		// A bulletin that cannot be read is a node that does not answer; the rules count it as silent.
		if b, err := baton.Decode(v); err == nil && b.Node == node {
			list = append(list, b)
		}
	}
	return list, nil
}

func (c *liveCluster) SetScore(ctx context.Context, node string, s pacemaker.Score) error {
	return c.attrd.SetScore(ctx, node, c.resource, s)
}

func (c *liveCluster) DeleteScore(ctx context.Context, node string) error {
	return c.attrd.DeleteScore(ctx, node, c.resource)
}

func (c *liveCluster) Scores(ctx context.Context) (map[string]pacemaker.Score, error) {
	return c.attrd.Scores(ctx, c.resource)
}

func (c *liveCluster) ScoreInCIB(ctx context.Context, node string) (s pacemaker.Score, ok bool, err error) {
	err = c.askCoordinator(ctx, func(dc string) (err error) {
		s, ok, err = pacemaker.ScoreInCIB(ctx, c.run, dc, node, c.resource)
		return err
	})
	return s, ok, err
}

func (c *liveCluster) StatusInCIB(ctx context.Context, node string) (text string, err error) {
	err = c.askCoordinator(ctx, func(dc string) (err error) {
		text, _, err = pacemaker.InCIB(ctx, c.run, dc, node, view.StatusAttribute(c.resource))
		return err
	})
	return text, err
}

func (c *liveCluster) askCoordinator(ctx context.Context, ask func(dc string) error) error {
	dc, err := c.coordinator(ctx)
	if err != nil {
		return err
	}
	if err := ask(dc); err != nil {
		c.dc = "" // it may have changed
		return err
	}
	return nil
}

// coordinator is the node whose copy of the CIB the scheduler reads.
func (c *liveCluster) coordinator(ctx context.Context) (string, error) {
	if c.dc == "" {
		// crmadmin waits for a coordinator that has just lost its power.
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		out, err := c.run.Run(ctx, "crmadmin", "--quiet", "--dc_lookup")
		if err != nil {
			return "", err
		}
		words := strings.Fields(string(out)) // versions before 2.1 say "Designated Controller is: n1", quiet or not
		if len(words) == 0 {
			return "", errors.New("crmadmin names no coordinator")
		}
		c.dc = words[len(words)-1]
	}
	return c.dc, nil
}

func (c *liveCluster) RecordClaim(ctx context.Context, systemID uint64, claim baton.Claim) error {
	dc, err := c.coordinator(ctx)
	if err != nil {
		return err
	}
	return pacemaker.SetPermanent(ctx, c.run, dc, claim.Node, baton.ClaimAttribute(c.resource), baton.EncodeClaim(systemID, claim))
}

func (c *liveCluster) RecordedClaims(ctx context.Context, systemID uint64) ([]baton.Claim, error) {
	values, err := pacemaker.Permanent(ctx, c.run, baton.ClaimAttribute(c.resource))
	if err != nil {
		return nil, err
	}
	var list []baton.Claim
	for node, v := range values {
		id, claim, err := baton.DecodeClaim(v)
		if err != nil {
			return nil, fmt.Errorf("attribute %s of node %s: %w", baton.ClaimAttribute(c.resource), node, err)
		}
		if id == systemID {
			list = append(list, claim)
		}
	}
	return list, nil
}

func (c *liveCluster) ForgetClaim(ctx context.Context, node string) error {
	return pacemaker.DeletePermanent(ctx, c.run, node, baton.ClaimAttribute(c.resource))
}

func (c *liveCluster) SetStatus(ctx context.Context, text string) error {
	name := view.StatusAttribute(c.resource)
	if text == "" {
		return c.attrd.Delete(ctx, name)
	}
	_, err := c.run.Run(ctx, "attrd_updater", "-n", name, "-U", text)
	return err
}

func (c *liveCluster) Show(ctx context.Context, value string) error {
	return c.attrd.SetPrivate(ctx, view.Attribute(c.resource), value)
}

func (c *liveCluster) Tell(ctx context.Context, value string) error {
	return c.attrd.SetPrivate(ctx, view.HistoryAttribute(c.resource), value)
}

func (c *liveCluster) Favoured(ctx context.Context, node string) (bool, error) {
	list, err := pacemaker.RoleConstraints(ctx, c.run, c.resource)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(list, func(k pacemaker.Constraint) bool { return k.Favours(node) }), nil
}

func (c *liveCluster) Order(ctx context.Context, node string) (*baton.Order, error) {
	values, err := c.attrd.QueryAll(ctx, baton.OrderAttribute(c.resource))
	if err != nil || values[node] == "" {
		return nil, err
	}
	o, err := baton.DecodeOrder(values[node])
	if err != nil || !o.Holds(time.Now()) {
		return nil, err
	}
	return &o, nil
}

func (c *liveCluster) Held(ctx context.Context) (string, error) {
	st, err := pacemaker.ReadState(ctx, c.run)
	if err != nil {
		return "", err
	}
	if st.MaintenanceMode || !st.Quorum {
		return "", nil
	}
	node := nodeName()
	for _, n := range st.Nodes {
		if n.Name == node && n.Maintenance {
			return "", nil
		}
	}
	for _, i := range st.Instances {
		if i.Resource == c.resource && i.Node == node && i.Agent == agentName && i.Managed && !i.Blocked {
			return i.Role, nil
		}
	}
	return "", nil
}

func (c *liveCluster) Ours(ctx context.Context) (bool, error) {
	st, err := pacemaker.ReadState(ctx, c.run)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(st.Of(c.resource), func(i pacemaker.Instance) bool { return i.Agent == agentName }), nil
}

func (c *liveCluster) PromotedBut(ctx context.Context, node string) (string, error) {
	st, err := pacemaker.ReadState(ctx, c.run)
	if err != nil {
		return "", err
	}
	for _, i := range st.Instances {
		if i.Resource == c.resource && i.Node != node && i.Role == pacemaker.RolePromoted {
			return i.Node, nil
		}
	}
	return "", nil
}

func (c *liveCluster) Online(ctx context.Context) ([]string, error) {
	st, err := pacemaker.ReadState(ctx, c.run)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, n := range st.Nodes {
		if n.Online && !n.Pending && !n.Unclean {
			list = append(list, n.Name)
		}
	}
	return list, nil
}

func (c *liveCluster) Quorate(ctx context.Context) (bool, error) {
	st, err := pacemaker.ReadState(ctx, c.run)
	if err == nil && st.DC == "" {
		err = errors.New("there is no DC")
	}
	return st.Quorum, err
}

func (c *liveCluster) Votes(ctx context.Context) (baton.Votes, error) {
	expected, quorum, err := pacemaker.Votes(ctx, c.run)
	return baton.Votes{Expected: expected, Quorum: quorum}, err
}

func (c *liveCluster) Incarnation(known string) string {
	if i, err := pacemaker.ParseIncarnation(known); err == nil && i.Alive() {
		return known
	}
	i, err := pacemaker.AttrdIncarnation()
	if err != nil {
		return ""
	}
	return i.String()
}

// nodeName is this node's name where Pacemaker does not give it: an action run by hand.
func nodeName() string {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if out, err := (pacemaker.ExecRunner{}).Run(ctx, "crm_node", "-n"); err == nil && len(out) > 0 {
		return strings.TrimSpace(string(out))
	}
	host, _ := os.Hostname()
	name, _, _ := strings.Cut(host, ".")
	return name
}
