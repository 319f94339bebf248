package console

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// Style is how text is written: for a terminal or not.
type Style struct {
	Color bool // never the only sign
	UTF8  bool
	Wide  bool
}

const (
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	bold   = "\x1b[1m"
	plain  = "\x1b[0m"
)

func (y Style) paint(color, text string) string {
	if !y.Color {
		return text
	}
	return color + text + plain
}

// mark is the sign of a check.
func (y Style) mark(r Result) string {
	signs := map[Result][2]string{Passed: {"✓", "ok"}, Warned: {"!", "!!"}, Failed: {"✗", "NO"}, NotKnown: {"?", "??"}}
	colors := map[Result]string{Passed: green, Warned: yellow, Failed: red, NotKnown: yellow}
	sign := signs[r][1]
	if y.UTF8 {
		sign = signs[r][0]
	}
	return y.paint(colors[r], sign)
}

// indented writes text in lines of at most 80 columns, the first behind lead, the others behind as many spaces.
func indented(w io.Writer, lead string, width int, text string) {
	for _, part := range withCommands(text, 80-width) {
		fmt.Fprintf(w, "%s%s\n", lead, part)
		lead = strings.Repeat(" ", width)
	}
}

// withCommands is wrap for a text with commands in it. A command, which stands behind a dollar sign, has a line of its own that is
// never broken, so that it can be copied; what is said behind it stands behind a #.
func withCommands(text string, width int) []string {
	parts := strings.Split(" "+text, " $ ")
	out := wrap(parts[0], width)
	for _, p := range parts[1:] {
		command, comment, _ := strings.Cut(p, " # ")
		out = append(out, "$ "+command)
		out = append(out, wrap(comment, width)...)
	}
	return out
}

// Complain writes an error, the last that a command says: for a person in lines of 80 columns, for a program in one.
func Complain(w io.Writer, err error, person bool) {
	if !person {
		fmt.Fprintln(w, "pgbaton:", err)
		return
	}
	indented(w, "pgbaton: ", 9, err.Error())
}

// Text writes the status for a person.
func (s Status) Text(w io.Writer, y Style) {
	word := y.paint(green, "healthy")
	if !s.Healthy() {
		word = y.paint(yellow, "needs attention")
		if len(s.Primary) != 1 || s.Problems[0].Severity == Critical {
			word = y.paint(red, "IN TROUBLE")
		}
	}
	fmt.Fprintf(w, "%s: %s   (%s, seen from %s)\n", y.paint(bold, s.Clone), word, s.Time.Local().Format("2006-01-02 15:04:05"), s.SeenFrom)
	yes := map[bool]string{true: "yes", false: "NO"}
	fmt.Fprintf(w, "coordinator %s, quorum %s, fencing %s, maintenance %s\n\n", or(s.Coordinator, "NONE"), yes[s.Quorum], yes[s.Fencing], map[bool]string{true: "YES", false: "no"}[s.Maintenance])
	s.table(w, y)
	if len(s.Problems) > 0 {
		fmt.Fprintln(w, "\nWhat is wrong")
		for _, p := range s.Problems {
			sign, color := "!", yellow
			if p.Severity == Critical {
				sign, color = "X", red
			}
			indented(w, "  "+y.paint(color, sign)+" ", 4, p.Text)
			if p.Do != "" {
				indented(w, "      -> ", 9, p.Do)
			}
		}
	}
	fmt.Fprintln(w)
	if s.Handover.Possible {
		indented(w, "Handover: ", 10, fmt.Sprintf("possible now, to %s (pgbaton switchover)", strings.Join(s.Handover.To, " or ")))
	} else {
		indented(w, "Handover: ", 10, "not possible now: "+or(s.Handover.Why, "no other node can take the role"))
	}
	if !y.Wide {
		return
	}
	paragraph := func(title string, lines ...string) {
		if len(lines) == 0 || lines[0] == "" {
			return
		}
		fmt.Fprintf(w, "\n%s\n", title)
		for _, l := range lines {
			indented(w, "  ", 2, l)
		}
	}
	paragraph("Constraints for the role", s.Constraints...)
	paragraph("How the last primary ended", s.Note)
	paragraph("Timelines that may hold rows", s.Claims...)
}

// table has one line a node.
func (s Status) table(w io.Writer, y Style) {
	rows := [][]string{{"node", "role", "server", "tli", "position", "lag", "sync", "score"}}
	if y.Wide {
		rows[0] = append(rows[0], "node state", "asked", "says")
	}
	for _, n := range s.Nodes {
		lag, tli, asked := "", "", "not asked"
		if n.Lag != nil {
			lag = size(*n.Lag)
			if n.LagTime != nil {
				lag += fmt.Sprintf(" %.1fs", *n.LagTime)
			}
		}
		if n.Timeline != 0 {
			tli = fmt.Sprint(n.Timeline)
		}
		if n.Age != nil {
			asked = ago(time.Duration(*n.Age * float64(time.Second)))
			if *n.Age < 1 {
				asked = "now"
			}
		}
		role, server := n.Role, n.Server
		if n.State != "online" {
			role = n.State
		}
		switch {
		case n.Role == "stopped":
			asked = ""
		case n.Age == nil:
			server = "not asked"
		case *n.Age >= 1 && !y.Wide:
			server += " " + strings.Replace(ago(time.Duration(*n.Age*float64(time.Second))), " ", "", 1)
		}
		row := []string{n.Name, role, server, tli, n.LSN, lag, n.Sync, or(n.Score, "none")}
		if y.Wide {
			row = append(row, n.State, asked, n.Says)
		}
		rows = append(rows, row)
	}
	width := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, c := range r {
			width[i] = max(width[i], len([]rune(c)))
		}
	}
	for n, r := range rows {
		line := ""
		for i, c := range r {
			pad := strings.Repeat(" ", width[i]-len([]rune(c)))
			switch {
			case rows[0][i] == "tli" || rows[0][i] == "lag" || rows[0][i] == "score":
				line += pad + c + "  "
			default:
				line += c + pad + "  "
			}
		}
		line = strings.TrimRight(line, " ")
		if n > 0 && r[1] == "primary" {
			line = y.paint(bold, line)
		}
		fmt.Fprintln(w, line)
	}
}

// Preflight writes the checks of a handover, and the plan.
func (s *Switchover) Preflight(w io.Writer, y Style) {
	title := "Handover"
	if s.From != "" && s.To != "" {
		title = fmt.Sprintf("Handover of %s from %s to %s", s.Snap.Clone, s.From, s.To)
		if s.Chosen {
			title += ", the best standby"
		}
	}
	fmt.Fprintln(w, y.paint(bold, title))
	width := 5
	for _, c := range s.Checks {
		mark := y.mark(c.Result)
		pad := " "
		if y.UTF8 {
			pad = "  "
		}
		indented(w, "  "+mark+pad, width, c.Text)
		if c.Do != "" && c.Result != Passed {
			indented(w, "     -> ", 8, c.Do)
		}
	}
}

// Plan writes what would be done.
func (s *Switchover) Plan(w io.Writer, y Style) {
	fmt.Fprintln(w, y.paint(bold, "Plan"))
	for n, step := range []string{
		fmt.Sprintf("%s writes a checkpoint while clients still write; %s is looked at once more", s.From, s.To),
		fmt.Sprintf("%s shuts down cleanly; the outage begins", s.From),
		fmt.Sprintf("%s proves that it has everything, down to the shutdown checkpoint, and is promoted; without the proof %s is primary again", s.To, s.From),
		fmt.Sprintf("%s and all others follow %s; the constraint that ordered this is removed", s.From, s.To),
	} {
		indented(w, fmt.Sprintf("  %d. ", n+1), 5, step)
	}
}

// Line writes one event of a handover with its time since began.
func (e Event) Line(w io.Writer, began time.Time) {
	indented(w, fmt.Sprintf("%9.3f  %-10s ", e.At.Sub(began).Seconds(), e.Node), 22, e.Text)
}

// Text writes how a handover ended.
func (o Outcome) Text(w io.Writer, y Style) {
	color := map[ExitCode]string{Done: green, RolledBack: yellow, Refused: yellow, Unknown: red}[o.Code]
	word := map[ExitCode]string{Done: "Done", RolledBack: "Rolled back", Refused: "Refused", Unknown: "Unknown"}[o.Code]
	fmt.Fprintln(w)
	indented(w, y.paint(color, word)+": ", len(word)+2, o.Sentence)
	line := func(label, text string) {
		if text != "" {
			indented(w, fmt.Sprintf("  %-13s ", label), 16, text)
		}
	}
	if o.Outage > 0 {
		line("outage", fmt.Sprintf("at most %.1f s without a primary, as seen from here; clients also wait for the virtual IP", o.Outage.Seconds()))
	}
	line("phases", o.Phases)
	line("proof", o.Proof)
	line("switch point", o.Switch)
	line("constraint", o.Left)
	line("do", o.Do)
	if o.Snapshot != nil {
		st := o.Snapshot.Status()
		fmt.Fprintln(w)
		st.table(w, Style{Color: y.Color, UTF8: y.UTF8})
	}
}
