package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// onFail kills promote under the other settings that the README names. With "restart" the cluster heals by itself, with
// "block" a person has to say so, and nobody else is promoted before that.
func (k *killTest) onFail(t *testing.T) {
	plan := killPlans()[0]
	for _, onFail := range []string{"restart", "block"} {
		for _, point := range []string{"promote/save-claim after", "promote/request-promotion after"} {
			t.Run(onFail+": "+point, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				set := func(value string) {
					t.Helper()
					if _, err := k.lab.Run(ctx, k.lab.Names[0], "cibadmin", "-M", "-X", fmt.Sprintf(`<op id="%s-promote" on-fail=%q/>`, lab.Resource, value)); err != nil {
						t.Fatal(err)
					}
				}
				set(onFail)
				defer set("demote")
				a := k.begin(t, plan)
				target := a.roles[partTarget]
				f := a.faults[target]
				if err := f.plant("kill", point); err != nil {
					t.Fatal(err)
				}
				a.change()
				err := lab.Poll(ctx, 5*time.Millisecond, func() error {
					if !f.exists("killed") {
						return lab.NotYet("%s on %s was not reached", point, target)
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				if onFail == "block" {
					time.Sleep(3 * time.Second)
					s, err := k.lab.View(ctx)
					if err != nil {
						t.Fatal(err)
					}
					for _, n := range s.Promoted() {
						if n != target {
							t.Errorf("%s was promoted although %s is blocked", n, target)
						}
					}
					if _, err := k.lab.Run(ctx, a.roles[partThird], "crm_resource", "--cleanup"); err != nil {
						t.Fatal(err)
					}
				}
				a.settle(time.Now())
			})
		}
	}
}
