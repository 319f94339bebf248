package lab

import (
	"bytes"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// Link names what Cut cuts: the frames between two nodes on the bridge. The nodes
// notice nothing but silence: no interface goes down.
type Link struct {
	From, To string  // nodes; "*" is every other one of the cluster's nodes, "client" the clients'
	OneWay   bool    // only what From sends to To
	Port     int     // only TCP connections to or from this port; 0: everything
	Loss     float64 // per cent of the frames that are lost; 0: all of them
}

// String is the form that "pgbaton-lab status" prints.
func (l Link) String() string {
	arrow := "<->"
	if l.OneWay {
		arrow = "->"
	}
	s := fmt.Sprintf("%s %s %s", l.From, arrow, l.To)
	if l.Port != 0 {
		s += fmt.Sprintf(" port %d", l.Port)
	}
	if l.Loss != 0 {
		s += fmt.Sprintf(" loss %g%%", l.Loss)
	}
	return s
}

// validate checks the names and numbers of a link.
func (l Link) validate(o Options) error {
	for _, n := range []string{l.From, l.To} {
		if n != "*" {
			if err := o.check(n); err != nil {
				return err
			}
		}
	}
	if l.From == l.To {
		return fmt.Errorf("link from %s to itself", l.From)
	}
	if l.Loss < 0 || l.Loss > 100 {
		return fmt.Errorf("loss of %g%%: expected 0 to 100", l.Loss)
	}
	if l.Port < 0 || l.Port > 65535 {
		return fmt.Errorf("port %d: expected 0 to 65535", l.Port)
	}
	return nil
}

// ruleset is the whole firewall of the bridge for the links that are cut. The rules
// match the bridge's ports and not addresses: the virtual IP wanders, ports do not.
func ruleset(o Options, cut []Link) string {
	var b strings.Builder
	b.WriteString("table bridge lab\ndelete table bridge lab\ntable bridge lab {\n chain cut {\n  type filter hook forward priority 0; policy accept;\n")
	expand := func(n, other string) []string {
		if n != "*" {
			return []string{n}
		}
		return slices.DeleteFunc(slices.Clone(o.Names), func(s string) bool { return s == other })
	}
	for _, l := range cut {
		for _, from := range expand(l.From, l.To) {
			for _, to := range expand(l.To, l.From) {
				if from == to {
					continue
				}
				frameRules(&b, o, l, from, to)
				if !l.OneWay {
					frameRules(&b, o, l, to, from)
				}
			}
		}
	}
	b.WriteString(" }\n}\n")
	return b.String()
}

func frameRules(b *strings.Builder, o Options, l Link, from, to string) {
	verdict := "drop"
	if l.Loss != 0 && l.Loss < 100 {
		// The kernel draws from 0 to 9999: hundredths of a per cent.
		verdict = fmt.Sprintf("numgen random mod 10000 < %d drop", int(l.Loss*100))
	}
	match := fmt.Sprintf("  iifname %q oifname %q ", o.port(from), o.port(to))
	if l.Port == 0 {
		b.WriteString(match + verdict + "\n")
		return
	}
	for _, side := range []string{"dport", "sport"} {
		fmt.Fprintf(b, "%stcp %s %d %s\n", match, side, l.Port, verdict)
	}
}

// run executes a command and returns an error that has its output.
func run(name string, args ...string) error { return runInput("", name, args...) }

func runInput(stdin, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return nil
}
