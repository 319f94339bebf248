package console

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// Order is an order to promote a node in spite of a loss, before it is given.
type Order struct {
	resource, node string
	stake          string
	know           baton.Knowledge
	answer         *baton.Answer // the node's last position, nil if it never said one
	status         string        // what the node says in crm_mon -A
	run            pacemaker.Runner
}

// PrepareOrder finds out what is at stake. It refuses where an order makes no sense: a primary is there, or the node
// is not.
func (w World) PrepareOrder(ctx context.Context, resource, node string) (*Order, error) {
	snap, err := w.Take(ctx, resource)
	if err != nil {
		return nil, err
	}
	if err := snap.known(node); err != nil {
		return nil, err
	}
	if n, _ := snap.State.Node(node); !n.Usable() || n.Maintenance {
		return nil, fail(Refused, "node %s cannot run the resource now, it is %s: %s", node, nodeState(n), nodeRemedy(n))
	}
	if way := snap.setupWay(); way != "" {
		return nil, fail(Refused, "nobody would act on the order, %s: %s%s", unfinishedSetup, endSetup, way)
	}
	if by, paused := snap.Paused(); paused {
		return nil, fail(Refused, "nobody would act on the order: %s: pgbaton resume first", by)
	}
	if !snap.State.Quorum {
		return nil, fail(Refused, "the cluster has no quorum, and Pacemaker promotes nobody without: start nodes until it has")
	}
	if p := snap.State.Promoted(snap.Resource); len(p) > 0 {
		return nil, fail(Refused, "%s is the primary: use pgbaton switchover --to %s", p[0], node)
	}
	if snap.State.StopAllResources {
		return nil, fail(Refused, "nobody would act on the order: stop-all-resources is set: %s", setProperty("stop-all-resources", "false"))
	}
	switch in, runs := snap.Instance(node); {
	case !runs || in.Role == pacemaker.RoleStopped:
		return nil, fail(Refused, "no instance of %s runs on %s, and its agent is what follows the order: pgbaton status says why", snap.Clone, node)
	case in.Blocked || !in.Managed:
		return nil, fail(Refused, "the instance on %s is blocked or not managed, and would not be promoted: pgbaton status says why", node)
	}
	if bans := snap.bans(node); len(bans) > 0 {
		return nil, fail(Refused, "a constraint keeps the role off %s: %s: %s", node, bans[0], deleteConstraint(bans[0]))
	}
	o := &Order{resource: snap.Resource, node: node, run: w.Run, status: snap.says(node)}
	for _, b := range snap.Bulletins {
		if b.Node == node {
			o.answer = b.Answer
		}
	}
	o.know = baton.Gather(snap.Bulletins, "")
	o.stake = o.know.Stake("")
	return o, nil
}

// Resource is the resource that the order is about.
func (o *Order) Resource() string { return o.resource }

// Describe says what the person decides about.
func (o *Order) Describe(w io.Writer) {
	fmt.Fprintln(w, "There is no primary. What is known of the last one:")
	if n := o.know.Note; n != nil {
		fmt.Fprintf(w, "  %s left its %s\n", n.Node, *n)
	}
	for _, c := range o.know.Claims {
		if c.Open() {
			fmt.Fprintf(w, "  %s claimed %s\n", c.Node, c)
		}
	}
	if o.status != "" {
		fmt.Fprintf(w, "%s says: %s\n", o.node, o.status)
	}
	if o.answer == nil {
		return
	}
	missing := o.know.Missing(baton.Candidate{Node: o.node, SystemID: o.answer.SystemID, Position: o.answer.Position})
	fmt.Fprintf(w, "The WAL of %s ended at %s when it was asked last.\n", o.node, o.answer.Position)
	lacks := fmt.Sprintf("It lacks at least %d bytes of WAL: their transactions", missing)
	if missing == 0 {
		lacks = "How much WAL it lacks is not known. The transactions in that"
	}
	fmt.Fprintf(w, "%s will be lost, and the\nold primary must be rebuilt or rewound.\n", lacks)
}

// Give leaves the order on the node.
func (o *Order) Give(ctx context.Context, by string) error {
	order := baton.Order{Stake: o.stake, By: by, At: time.Now()}
	if _, err := o.run.Run(ctx, "attrd_updater", "-p", "-N", o.node, "-n", baton.OrderAttribute(o.resource), "-U", order.Encode()); err != nil {
		return explain(err)
	}
	return nil
}
