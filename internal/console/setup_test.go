package console

import (
	"context"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/postgres"
)

// Ensure the plan of a takeover is shown with its reasons and commands, and that planning changes nothing.
func TestTakeover(t *testing.T) {
	for tool, mends := range map[string]string{
		"pcs": "    $ pcs resource update pgsqld op promote interval=0s timeout=30s on-fail=demote\n",
		"crm": `    $ cibadmin --modify --xml-text '<op id="pgsqld-promote" interval="0s" timeout="30s" on-fail="demote"/>'` + "\n",
	} {
		w, r := replay(t, "paf")
		s, err := w.Takeover(t.Context(), "", false, tool)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		s.Text(&b, Style{})
		if tool == "pcs" {
			goldenPage(t, "setup.from-paf", strings.ReplaceAll(b.String(), s.run, "ab12cd34"))
		}
		if !strings.Contains(b.String(), mends) {
			t.Errorf("%s: no %s in\n%s", tool, mends, b.String())
		}
		if len(r.changes) > 0 {
			t.Errorf("planning changed something: %q", r.changes)
		}
		for _, line := range strings.Split(b.String(), "\n") {
			if n := len([]rune(line)); n > 80 && !strings.HasPrefix(line, "    $ ") {
				t.Errorf("%d columns: %s", n, line)
			}
		}
	}
}

// Ensure the parameters that the two agents take for something else, where they are not set, are set, and that those that
// only one of them knows go.
func TestTakeover_Parameters(t *testing.T) {
	w, r := replay(t, "paf")
	r.replace = map[string]string{
		`<nvpair id="param-pghost" name="pghost" value="/var/run/postgresql"/>`: `<nvpair id="param-template" name="recovery_template" value="/x"/>`,
		`<content type="string" default="/var/run/postgresql"/>`:                `<content type="string" default="/tmp"/>`,
		`<content type="string" default="/var/run/postgresql" />`:               `<content type="string" default="/tmp" />`,
	}
	s, err := w.Takeover(t.Context(), "pgsql-ha", false, "pcs")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	s.Text(&b, Style{})
	for _, want := range []string{`name="pghost" value="/tmp"`, `--allow-create`, `nvpair[@name='\''recovery_template'\'']`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the plan has no %s:\n%s", want, b.String())
		}
	}
}

// Ensure what is taken back is the clone as it was when it was marked, with all that was mended in it, and not what the agent
// is alone.
func TestTakeover_TakenBack(t *testing.T) {
	w, r := replay(t, "paf")
	s, err := w.Takeover(t.Context(), "", false, "pcs")
	if err != nil {
		t.Fatal(err)
	}
	r.replace = map[string]string{ // the note is made, the cluster in maintenance mode
		`<nvpair id="meta-notify"`: `<nvpair id="note" name="pgbaton-setup" value="` + s.note() + `"/><nvpair id="meta-notify"`,
		`maintenance-mode="false"`: `maintenance-mode="true"`,
	}
	if err := s.do(t.Context(), s.steps[0]); err != nil {
		t.Fatal(err)
	}
	r.changes = nil
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond) // nobody answers a probe here
	defer cancel()
	if err := s.undo(ctx); err == nil {
		t.Error("taken back, although no agent has answered")
	}
	if len(r.changes) == 0 || !strings.HasPrefix(r.changes[0], `cibadmin --replace --scope resources --xml-text <clone id="pgsql-ha">`) || !strings.Contains(r.changes[0], `<op id="pgsqld-promote" timeout="30s"`) {
		t.Errorf("taken back by %q", r.changes)
	}
}

// Ensure a takeover is refused, with the reason, where the cluster is not what it should be.
func TestTakeover_Refused(t *testing.T) {
	for name, tt := range map[string]struct {
		dir, asked string
		back       bool
		replace    map[string]string
		code       ExitCode
		want       string
	}{
		"not in such a cluster":          {dir: "healthy", code: Done, want: "pgsqld is ocf:pgbaton:postgresql already: nothing to do"},
		"back already":                   {dir: "paf", back: true, code: Done, want: "pgsqld is ocf:heartbeat:pgsqlms already: nothing to do"},
		"another name":                   {dir: "paf", asked: "pgsqlx", code: Refused, want: "did you mean pgsqld?"},
		"no resource of either":          {dir: "paf", replace: map[string]string{"pgsqlms": "pgsql"}, code: Refused, want: "there is no resource of ocf:heartbeat:pgsqlms in this cluster"},
		"maintenance":                    {dir: "paf", replace: map[string]string{`maintenance-mode="false"`: `maintenance-mode="true"`}, code: Refused, want: "the cluster is in maintenance mode: end it first"},
		"a node that is down":            {dir: "paf", replace: map[string]string{`name="n3" id="3" online="true"`: `name="n3" id="3" online="false"`}, code: Refused, want: "n3 is offline"},
		"a node in standby":              {dir: "paf", replace: map[string]string{`name="n2" id="2" online="true" standby="false"`: `name="n2" id="2" online="true" standby="true"`}, code: Refused, want: "n2 is standby"},
		"a standby that does not stream": {dir: "paf", replace: map[string]string{`name="master-pgsqld" value="990"`: `name="master-pgsqld" value="-1000"`}, code: Refused, want: `the promotion score of the standby n3 is "-1000"`},
		"two primaries":                  {dir: "paf", replace: map[string]string{`role="Unpromoted"`: `role="Promoted"`}, code: Refused, want: "are primary"},
		"another setup":                  {dir: "paf", replace: map[string]string{`name="notify"`: `name="pgbaton-setup"`, `id="meta-notify" name="pgbaton-setup" value="true"`: `id="meta-notify" name="pgbaton-setup" value="new,n1"`}, code: Refused, want: "another setup of pgsql-ha is under way"},
	} {
		w, r := replay(t, tt.dir)
		r.replace = tt.replace
		_, err := w.Takeover(t.Context(), tt.asked, tt.back, "")
		if CodeOf(err) != tt.code || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v (exit code %d), want %q (%d)", name, err, CodeOf(err), tt.want, tt.code)
		}
		if len(r.changes) > 0 {
			t.Errorf("%s: changed %q", name, r.changes)
		}
	}
}

// Ensure a setup that was cut short is gone on with, also where Pacemaker does not know who runs what.
func TestTakeover_GoesOn(t *testing.T) {
	w, r := replay(t, "paf")
	r.replace = map[string]string{
		`id="meta-notify" name="notify" value="true"`: `id="meta-notify" name="pgbaton-setup" value="from-paf,n1,n2,n3"`,
		`maintenance-mode="false"`:                    `maintenance-mode="true"`,
		`active="true"`:                               `active="false"`,
	}
	s, err := w.Takeover(t.Context(), "", false, "pcs")
	if err != nil {
		t.Fatal(err)
	}
	if s.primary != "n1" || strings.Join(s.members, " ") != "n1 n2 n3" {
		t.Errorf("got primary %s of %q", s.primary, s.members)
	}
	var b strings.Builder
	s.Text(&b, Style{})
	if !strings.Contains(b.String(), "was cut short here") {
		t.Errorf("it does not say that it goes on:\n%s", b.String())
	}
}

// plainCluster is one that knows nothing of the server that runs on n1, the primary of the two others.
func plainCluster(t *testing.T) (World, *recorded) {
	w, r := replay(t, "paf")
	r.replace = map[string]string{"ocf:heartbeat:pgsqlms": "ocf:heartbeat:other", "pgsqld": "otherd", "pgsql-ha": "other-ha", "pgsql-vip": "other-vip"}
	w.Servers = func() ([]postgres.Server, error) {
		return []postgres.Server{{PID: 1, BinDir: "/usr/lib/postgresql/15/bin", DataDir: "/var/lib/postgresql/15/main", ConfigDir: "/etc/postgresql/15/main", Owner: "postgres", Port: 5432, SocketDir: "/var/run/postgresql"}}, nil
	}
	w.Ask = func(context.Context, map[string]string) (postgres.Overview, error) {
		return postgres.Overview{Primary: true, Standbys: []postgres.StandbyOverview{{Name: "n2", State: "streaming"}, {Name: "n3", State: "streaming"}}}, nil
	}
	return w, r
}

// Ensure the plan of a new cluster is the README's configuration, in the words of either tool.
func TestNew(t *testing.T) {
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	flat := func(text string) string { return strings.Join(strings.Fields(text), " ") }
	readme := flat(strings.NewReplacer("\\\n", " ", "10.77.0.10", "10.77.0.20", "pgsql.xml", draft).Replace(string(b)))
	same := regexp.MustCompile(`(?m)^ +\$ (pcs -f \S+ (?:resource create|resource promotable|constraint) .*)$|^((?:colocation|order) .*)$|(op monitor .*)$`)
	for _, tool := range []string{"pcs", "crm"} {
		w, r := plainCluster(t)
		s, err := w.New(t.Context(), Wanted{Name: "pgsqld", Clone: "pgsql-ha", VIP: "10.77.0.20/24", Tool: tool})
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		s.Text(&b, Style{})
		goldenPage(t, "setup.new-"+tool, strings.ReplaceAll(b.String(), s.run, "ab12cd34"))
		lines := same.FindAllStringSubmatch(b.String(), -1)
		if len(lines) < 5 {
			t.Errorf("%s: found only %q to compare", tool, lines)
		}
		for _, l := range lines {
			if line := strings.Join(l[1:], ""); !strings.Contains(readme, line) {
				t.Errorf("%s: README.md has no\n%s", tool, line)
			}
		}
		if len(r.changes) > 0 {
			t.Errorf("planning changed something: %q", r.changes)
		}
	}
}

// Ensure an argument of the running server gets through a shell, and through crmsh, as it is.
func TestNew_Quotes(t *testing.T) {
	for tool, want := range map[string]string{
		"pcs": `'start_opts=-c '\''a="b c\d"'\'''`,
		"crm": `start_opts="-c 'a=\"b c\\d\"'"`,
	} {
		w, _ := plainCluster(t)
		servers := w.Servers
		w.Servers = func() ([]postgres.Server, error) {
			list, err := servers()
			list[0].Args = []string{"-c", `a="b c\d"`}
			return list, err
		}
		s, err := w.New(t.Context(), Wanted{Name: "pgsqld", Clone: "pgsql-ha", Tool: tool})
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		s.Text(&b, Style{})
		if !strings.Contains(b.String(), " "+want+" op ") {
			t.Errorf("no %s in\n%s", want, b.String())
		}
	}
}

// Ensure a setup of a new cluster that was cut short is gone on with, or taken back, with the virtual IP that it has made and
// no other one, whatever the command line says of it.
func TestNew_GoesOn(t *testing.T) {
	for name, tt := range map[string]struct {
		replace     map[string]string
		start, drop string
	}{
		"with an address":      {nil, ", and to start pgsql-vip.", "//primitive[@id='pgsql-vip']"},
		"somebody's address":   {map[string]string{"pgsql-vip": "other-vip"}, ". It is asked", ""},
		"an address unbound":   {map[string]string{`rsc="pgsql-vip" with-rsc="pgsql-ha"`: `rsc="pgsql-vip" with-rsc="other-ha"`}, ". It is asked", ""},
		"of a name of its own": {map[string]string{"pgsqld": "dbd", "pgsql-vip": "db-vip"}, ", and to start db-vip.", "//primitive[@id='db-vip']"},
	} {
		w, r := replay(t, "paf")
		r.replace = map[string]string{
			"ocf:heartbeat:pgsqlms":                             agentName,
			`id="meta-notify" name="notify" value="true"`:       `id="meta-notify" name="pgbaton-setup" value="new,n1,n2,n3"`,
			`maintenance-mode="false"`:                          `maintenance-mode="true"`,
			`<cluster_property_set id="cib-bootstrap-options">`: `<cluster_property_set id="cib-bootstrap-options"><nvpair id="m" name="maintenance-mode" value="true"/>`,
		}
		for old, now := range tt.replace {
			r.replace[old] = now
		}
		s, err := w.New(t.Context(), Wanted{Name: "pgsqld", Clone: "pgsql-ha", Tool: "pcs"})
		if err != nil {
			t.Fatal(name, err)
		}
		var b strings.Builder
		s.Text(&b, Style{})
		if !strings.Contains(strings.Join(strings.Fields(b.String()), " "), "it must want to do nothing but monitor"+tt.start) {
			t.Errorf("%s: no %q in\n%s", name, tt.start, b.String())
		}
		if err := s.undo(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		changes := strings.Join(r.changes, "\n")
		if tt.drop == "" && strings.Contains(changes, "-vip") || !strings.Contains(changes, tt.drop) {
			t.Errorf("%s: took back by\n%s", name, changes)
		}
		if !strings.Contains(changes, "//clone[@id='pgsql-ha']") || !strings.HasSuffix(changes, "crm_attribute --name maintenance-mode --delete") {
			t.Errorf("%s: took back by\n%s", name, changes)
		}
	}
}

// Ensure a setup that has ended its maintenance, and did not see all monitors, takes nothing of what has run since for its own: a
// maintenance after that is somebody else's, and neither ended nor answered by taking back what is the cluster by now.
func TestSetup_Resumed(t *testing.T) {
	for kind, plan := range map[string]func(w World) (*Setup, error){
		fromReplication: func(w World) (*Setup, error) {
			return w.New(t.Context(), Wanted{Name: "pgsqld", Clone: "pgsql-ha", Tool: "pcs"})
		},
		fromPAF: func(w World) (*Setup, error) { return w.Takeover(t.Context(), "", false, "pcs") },
	} {
		for _, maintained := range []bool{true, false} {
			w, r := replay(t, "paf")
			r.replace = map[string]string{
				"ocf:heartbeat:pgsqlms":                       agentName,
				`id="meta-notify" name="notify" value="true"`: `id="meta-notify" name="pgbaton-setup" value="` + kind + `,n1,n2,n3,resumed:,run:ab12cd34"`,
			}
			if maintained {
				r.replace[`maintenance-mode="false"`] = `maintenance-mode="true"`
			}
			s, err := plan(w)
			switch {
			case maintained && (CodeOf(err) != Refused || !strings.Contains(err.Error(), "is not that setup's: end that first")):
				t.Errorf("%s, in maintenance: %v", kind, err)
			case !maintained && (err != nil || s.undo != nil):
				t.Errorf("%s: %v, or it could be taken back", kind, err)
			}
			seen := w.setup(kind, agentName, "pcs")
			seen.Clone = "pgsql-ha"
			if err := seen.look(t.Context()); err != nil || (seen.setupWay() == "") != maintained {
				t.Errorf("%s: the way is %q (%v); in maintenance: %t", kind, seen.setupWay(), err, maintained)
			}
		}
	}
}

// Ensure a new cluster is refused, with the reason, where something is missing.
func TestNew_Refused(t *testing.T) {
	want := Wanted{Name: "pgsqld", Clone: "pgsql-ha", Tool: "pcs"}
	for name, tt := range map[string]struct {
		change func(w *World, r *recorded, want *Wanted)
		code   ExitCode
		want   string
	}{
		"no server": {func(w *World, _ *recorded, _ *Wanted) {
			w.Servers = func() ([]postgres.Server, error) { return nil, nil }
		}, Refused, "no PostgreSQL runs on this node"},
		"two servers": {func(w *World, _ *recorded, _ *Wanted) {
			w.Servers = func() ([]postgres.Server, error) { return []postgres.Server{{ConfigDir: "/a"}, {ConfigDir: "/b"}}, nil }
		}, Refused, "choose one with --pgdata: /a, /b"},
		"another place": {func(_ *World, _ *recorded, want *Wanted) { want.PGData = "/c" }, Refused, "no server runs here on /c: there is /etc/postgresql/15/main"},
		"a standby": {func(w *World, _ *recorded, _ *Wanted) {
			w.Ask = func(context.Context, map[string]string) (postgres.Overview, error) { return postgres.Overview{}, nil }
		}, Refused, "run this on the node of the primary"},
		"a node without a standby": {func(w *World, _ *recorded, _ *Wanted) {
			w.Ask = func(context.Context, map[string]string) (postgres.Overview, error) {
				return postgres.Overview{Primary: true, Standbys: []postgres.StandbyOverview{{Name: "n2", State: "catchup"}}}, nil
			}
		}, Refused, "the standby of n2 does not stream (catchup): wait until it has caught up; no standby with application_name=n3"},
		"a wrong name":             {func(_ *World, _ *recorded, want *Wanted) { want.Clone = "a; b" }, Usage, `"a; b" as the name of a resource: expected a letter`},
		"a wrong address":          {func(_ *World, _ *recorded, want *Wanted) { want.VIP = "10.77.0.10" }, Usage, "expected an address with its prefix"},
		"an address that is taken": {func(_ *World, _ *recorded, want *Wanted) { want.VIP = "10.77.0.10/24" }, Refused, "other-vip has the address 10.77.0.10 already"},
		"no fencing": {func(_ *World, r *recorded, _ *Wanted) {
			r.replace[`stonith-enabled="true"`] = `stonith-enabled="false"`
		}, Refused, "fencing is not configured"},
		"a name that is taken": {func(_ *World, _ *recorded, want *Wanted) { want.Clone = "other-ha" }, Refused, "the configuration has a resource other-ha"},
		"the Perl agent":       {func(_ *World, r *recorded, _ *Wanted) { clear(r.replace) }, Refused, "pgbaton setup --from-paf takes it over"},
	} {
		w, r := plainCluster(t)
		wanted := want
		tt.change(&w, r, &wanted)
		_, err := w.New(t.Context(), wanted)
		if CodeOf(err) != tt.code || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v (exit code %d), want %q (%d)", name, err, CodeOf(err), tt.want, tt.code)
		}
		if len(r.changes) > 0 {
			t.Errorf("%s: changed %q", name, r.changes)
		}
	}
}

// Ensure a step that goes wrong is taken back where that is possible, said where it does not matter, and otherwise ends it with
// the word that PostgreSQL serves on.
func TestSetup_Apply(t *testing.T) {
	bad := func(context.Context) error { return wrong("nothing runs") }
	for name, tt := range map[string]struct {
		step setupStep
		undo error
		code ExitCode
		want string
	}{
		"good":                   {setupStep{}, nil, Done, ""},
		"reversible":             {setupStep{reversible: true, wait: bad}, nil, RolledBack, "nothing runs: everything is as it was before"},
		"reversible, in vain":    {setupStep{reversible: true, wait: bad}, wrong("nor that"), Attention, "it could not be taken back: nor that. PostgreSQL was not touched and serves on. The same command goes on from here"},
		"not reversible":         {setupStep{wait: bad}, nil, Attention, "step 1, look: nothing runs. PostgreSQL was not touched"},
		"of no great importance": {setupStep{optional: true, wait: bad}, nil, Done, ""},
	} {
		w, _ := replay(t, "paf")
		tt.step.title = "look"
		undone, last := false, false
		s := &Setup{Snapshot: &Snapshot{}, world: w, undo: func(context.Context) error { undone = true; return tt.undo }}
		s.steps = []setupStep{tt.step, {title: "last", wait: func(context.Context) error { last = true; return nil }}}
		err := s.Apply(t.Context(), func(string) {})
		if CodeOf(err) != tt.code || tt.want != "" && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v (exit code %d), want %q (%d)", name, err, CodeOf(err), tt.want, tt.code)
		}
		if undone != tt.step.reversible || last != (tt.code == Done) {
			t.Errorf("%s: taken back: %v, came to the last step: %v", name, undone, last)
		}
	}
	// Who interrupts it wants it to stop, and can go on.
	w, _ := replay(t, "paf")
	ctx, cancel := context.WithCancel(t.Context())
	s := &Setup{Snapshot: &Snapshot{}, world: w, undo: func(context.Context) error { t.Error("taken back"); return nil }}
	s.steps = []setupStep{{reversible: true, wait: func(ctx context.Context) error { cancel(); return s.await(ctx, func() error { return errNotHere }) }}}
	if err := s.Apply(ctx, func(string) {}); CodeOf(err) != Attention || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("interrupted: got %v", err)
	}
}

// Ensure a note says whose it is, and that one of an earlier release is understood.
func TestNote(t *testing.T) {
	for text, want := range map[string]note{
		"new,n1,n2,run:ab12cd34":          {"new", []string{"n1", "n2"}, "ab12cd34", false},
		"new,n1,n2,resumed:,run:ab12cd34": {"new", []string{"n1", "n2"}, "ab12cd34", true},
		"from-paf,n1,n2":                  {"from-paf", []string{"n1", "n2"}, "", false},
		"":                                {"", []string{}, "", false},
	} {
		got := parseNote(text)
		if got.kind != want.kind || got.run != want.run || got.resumed != want.resumed || !slices.Equal(got.members, want.members) {
			t.Errorf("%q: got %+v, want %+v", text, got, want)
		}
		if want.run != "" && got.String() != text {
			t.Errorf("%q: written again it is %q", text, got)
		}
	}
}

// shared is a cluster in which notes and maintenance mode come and go, by this run and by somebody else.
type shared struct {
	*recorded
	note   string
	paused bool
}

func (c *shared) Run(ctx context.Context, argv ...string) ([]byte, error) {
	line := strings.Join(argv, " ")
	switch {
	case strings.Contains(line, "--set-parameter pgbaton-setup"):
		c.note = argv[len(argv)-1]
	case strings.Contains(line, "--delete-parameter pgbaton-setup"):
		c.note = ""
	case strings.HasPrefix(line, "crm_attribute --name maintenance-mode"):
		c.paused = strings.HasSuffix(line, "--update true")
	}
	replace := map[string]string{}
	if c.note != "" {
		replace[`<nvpair id="meta-notify"`] = `<nvpair id="note" name="pgbaton-setup" value="` + c.note + `"/><nvpair id="meta-notify"`
	}
	if c.paused {
		replace[`maintenance-mode="false"`] = `maintenance-mode="true"`
	}
	c.lock.Lock()
	c.replace = replace
	c.lock.Unlock()
	return c.recorded.Run(ctx, argv...)
}

// Ensure a run whose setup somebody else has gone on with, or ended, changes nothing more and takes nothing back: what it
// deleted would be stopped.
func TestSetup_TwoRuns(t *testing.T) {
	for name, tt := range map[string]struct {
		meanwhile func(*shared)
		want      string // "" if it goes on to its end
	}{
		"alone":            {func(*shared) {}, ""},
		"another run":      {func(c *shared) { c.note = note{"from-paf", []string{"n1"}, "other", false}.String() }, "another pgbaton setup has taken this one over"},
		"an old release":   {func(c *shared) { c.note = "from-paf,n1,n2,n3" }, "another pgbaton setup has taken this one over"},
		"it has ended":     {func(c *shared) { c.note, c.paused = "", false }, "somebody has ended this setup"},
		"maintenance over": {func(c *shared) { c.paused = false }, "the maintenance is over"},
	} {
		for _, fails := range []bool{false, true} { // the step in which it happens
			w, r := replay(t, "paf")
			c := &shared{recorded: r}
			w.Run = c
			s := w.setup(fromPAF, agentName, "pcs")
			s.Resource, s.Clone, s.members = "pgsqld", "pgsql-ha", []string{"n1", "n2", "n3"}
			undone := false
			s.undo = func(context.Context) error { undone = true; return nil }
			before := 0
			s.steps = []setupStep{s.mark(), s.pause(), {title: "look", reversible: true, wait: func(context.Context) error {
				tt.meanwhile(c)
				before = len(r.changes)
				if fails {
					return wrong("nothing runs")
				}
				return nil
			}}, s.resume("", nil), s.unmark()}
			err := s.Apply(t.Context(), func(string) {})
			switch {
			case tt.want == "" && !fails:
				if err != nil || c.note != "" || c.paused {
					t.Errorf("%s: got %v, the note %q, maintenance %v", name, err, c.note, c.paused)
				}
			case tt.want == "":
				if CodeOf(err) != RolledBack || !undone {
					t.Errorf("%s: got %v, taken back: %v", name, err, undone)
				}
			default:
				if CodeOf(err) != Attention || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "The same command") {
					t.Errorf("%s: got %v (exit code %d), want %q (%d)", name, err, CodeOf(err), tt.want, Attention)
				}
				if undone || len(r.changes) != before {
					t.Errorf("%s: taken back: %v, changed %q", name, undone, r.changes[before:])
				}
			}
		}
	}
}

// Ensure that of two that begin at the same moment the one whose note does not stand stops.
func TestSetup_SameMoment(t *testing.T) {
	w, r := replay(t, "paf")
	s, err := w.Takeover(t.Context(), "", false, "pcs")
	if err != nil {
		t.Fatal(err)
	}
	r.replace = map[string]string{`<nvpair id="meta-notify"`: `<nvpair id="note" name="pgbaton-setup" value="from-paf,n1,n2,n3,run:other"/><nvpair id="meta-notify"`}
	err = s.Apply(t.Context(), func(string) {})
	if CodeOf(err) != Attention || !strings.Contains(err.Error(), "begun at the same moment") {
		t.Errorf("got %v (exit code %d)", err, CodeOf(err))
	}
	if len(r.changes) != 1 {
		t.Errorf("changed %q, want the note only", r.changes)
	}
}

// Ensure a run that goes on makes the note its own before anything else, with the members that were noted, so that the other
// one stops if it lives.
func TestSetup_GoesOnAsItsOwn(t *testing.T) {
	for name, tt := range map[string]struct {
		note, agent, paused string
		plan                func(World) (*Setup, error)
	}{
		"new, in maintenance":      {"new", agentName, "true", func(w World) (*Setup, error) { return w.New(t.Context(), Wanted{Name: "pgsqld", Clone: "pgsql-ha"}) }},
		"new, after it":            {"new", agentName, "false", func(w World) (*Setup, error) { return w.New(t.Context(), Wanted{Name: "pgsqld", Clone: "pgsql-ha"}) }},
		"takeover, in maintenance": {"from-paf", agentName, "true", func(w World) (*Setup, error) { return w.Takeover(t.Context(), "", false, "") }},
		"takeover, after it":       {"from-paf", agentName, "false", func(w World) (*Setup, error) { return w.Takeover(t.Context(), "", false, "") }},
	} {
		w, r := replay(t, "paf")
		r.replace = map[string]string{
			"ocf:heartbeat:pgsqlms":    agentName,
			`<nvpair id="meta-notify"`: `<nvpair id="note" name="pgbaton-setup" value="` + tt.note + `,n1,n2,n3,run:other"/><nvpair id="meta-notify"`,
			`maintenance-mode="false"`: `maintenance-mode="` + tt.paused + `"`,
		}
		s, err := tt.plan(w)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want := tt.note + ",n1,n2,n3,run:" + s.run
		if first := s.steps[0]; !first.marks || commandText(first.commands[0]) != "crm_resource --resource pgsql-ha --meta --set-parameter pgbaton-setup --parameter-value "+want {
			t.Errorf("%s: the first step is %s, %q", name, first.title, first.commands)
		}
	}
}

// Ensure nothing is taken back once the maintenance is over, and that the scheduler is not asked again and again then.
func TestSetup_MaintenanceOver(t *testing.T) {
	w, r := replay(t, "paf")
	takeover, err := w.Takeover(t.Context(), "", false, "pcs")
	if err != nil {
		t.Fatal(err)
	}
	r.replace = map[string]string{
		"ocf:heartbeat:pgsqlms":    agentName,
		`<nvpair id="meta-notify"`: `<nvpair id="note" name="pgbaton-setup" value="new,n1,n2,n3"/><nvpair id="meta-notify"`,
		`maintenance-mode="false"`: `maintenance-mode="true"`,
	}
	fresh, err := w.New(t.Context(), Wanted{Name: "pgsqld", Clone: "pgsql-ha", Tool: "pcs"})
	if err != nil {
		t.Fatal(err)
	}
	delete(r.replace, `maintenance-mode="false"`)
	var lost *notOursError
	for name, ask := range map[string]func(context.Context) error{"takeover": takeover.undo, "new": fresh.undo, "the scheduler": fresh.harmless} {
		if err := ask(t.Context()); !errors.As(err, &lost) || !strings.Contains(err.Error(), "the maintenance is over") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if len(r.changes) > 0 {
		t.Errorf("changed %q", r.changes)
	}
}
