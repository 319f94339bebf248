package console

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
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
func PrepareOrder(ctx context.Context, run pacemaker.Runner, resource, node string) (*Order, error) {
	state, err := pacemaker.ReadState(ctx, run)
	if err != nil {
		return nil, fmt.Errorf("the cluster does not answer, is Pacemaker running here? %w", err)
	}
	var names []string
	online := false
	for _, n := range state.Nodes {
		names = append(names, n.Name)
		online = online || (n.Name == node && n.Usable())
	}
	if !slices.Contains(names, node) {
		return nil, fmt.Errorf("there is no node %q in this cluster: its nodes are %s", node, strings.Join(names, ", "))
	}
	if !online {
		return nil, fmt.Errorf("node %s cannot run the resource now: it is offline or in standby", node)
	}
	for _, i := range state.Instances {
		if i.Resource == resource && i.Role == pacemaker.RolePromoted {
			return nil, fmt.Errorf("%s is the primary: use a handover instead, crm_resource --move -r %s --promoted --node %s", i.Node, resource, node)
		}
	}
	values, err := pacemaker.NewAttrd(run).QueryAll(ctx, baton.BulletinAttribute(resource))
	if err != nil {
		return nil, err
	}
	o := &Order{resource: resource, node: node, run: run, status: state.Attributes[node]["pgbaton-status-"+resource]}
	var list []baton.Bulletin
	for _, v := range values {
		b, err := baton.Decode(v)
		if err != nil {
			continue
		}
		list = append(list, b)
		if b.Node == node {
			o.answer = b.Answer
		}
	}
	o.know = baton.Gather(list, "")
	o.stake = o.know.Stake("")
	return o, nil
}

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
	fmt.Fprintf(w, "It lacks at least %d bytes of WAL: their transactions will be lost, and the\nold primary must be rebuilt or rewound.\n", missing)
}

// Give leaves the order on the node.
func (o *Order) Give(ctx context.Context, by string) error {
	order := baton.Order{Stake: o.stake, By: by, At: time.Now()}
	_, err := o.run.Run(ctx, "attrd_updater", "-p", "-N", o.node, "-n", baton.OrderAttribute(o.resource), "-U", order.Encode())
	return err
}
