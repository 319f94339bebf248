package baton

import (
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Order is a person's decision to promote a node although something is known to be lost. It holds for one stake only:
// what the person was shown. Whatever else comes to be known since makes it void. And it holds for a day: a primary that somebody
// starts by hand goes on with the same stake, and what it writes the person has never seen.
type Order struct {
	Stake string // [Knowledge.Stake] when the person decided
	By    string // who
	At    time.Time
}

// orderHolds is for how long an order is good: a crash recovery that it has to wait for takes hours at most.
const orderHolds = 24 * time.Hour

// Holds reports whether the order is not too old, by clocks that may differ.
func (o Order) Holds(now time.Time) bool { return now.Sub(o.At).Abs() < orderHolds }

// Stake names what a promotion without proof puts at risk: the usable note, or else the newest timeline that took
// effect. The claim with nonce own, the one being made, does not count.
func (k Knowledge) Stake(own string) string {
	if n, err := k.Usable(own); err == nil {
		return "note." + n.Nonce
	}
	if c := k.Last(own); c != nil {
		return "claim." + c.Nonce
	}
	return "nothing"
}

// Last is the newest claim that took effect, besides that with nonce own; nil if there is none.
func (k Knowledge) Last(own string) *Claim {
	for i := len(k.Claims) - 1; i >= 0; i-- {
		if c := &k.Claims[i]; c.State == Effective && c.Nonce != own {
			return c
		}
	}
	return nil
}

// Missing is how many bytes of WAL a node at self is known to lack.
func (k Knowledge) Missing(self Candidate) int64 { return missing(self, k) }

// Encode packs an order into printable ASCII, as [Bulletin.Encode] does.
func (o Order) Encode() string {
	return strings.Join([]string{codecVersion, o.Stake, url.QueryEscape(o.By), o.At.UTC().Format(time.RFC3339)}, ",")
}

// DecodeOrder reads what [Order.Encode] wrote.
func DecodeOrder(s string) (Order, error) {
	f := strings.Split(s, ",")
	if len(f) != 4 || f[0] != codecVersion {
		return Order{}, fmt.Errorf("order %q: expected version %s and three parts", s, codecVersion)
	}
	by, err := url.QueryUnescape(f[2])
	if err != nil {
		return Order{}, fmt.Errorf("order %q: %w", s, err)
	}
	at, err := time.Parse(time.RFC3339, f[3])
	if err != nil {
		return Order{}, fmt.Errorf("order %q: %w", s, err)
	}
	return Order{Stake: f[1], By: by, At: at}, nil
}

// OrderAttribute is the private attribute of a node that holds an order for it.
func OrderAttribute(resource string) string { return "pgbaton-order-" + resource }

// BulletinAttribute is the private attribute that holds a node's bulletin.
func BulletinAttribute(resource string) string { return "pgbaton-" + resource }

// ClaimAttribute is the permanent attribute of a node that holds the last claim it had to make while too few nodes ran an
// instance to store it.
func ClaimAttribute(resource string) string { return "pgbaton-claim-" + resource }
