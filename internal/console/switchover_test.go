package console

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// Ensure the pre-flight says for each situation what stands in the way and what to do.
func TestPrepare(t *testing.T) {
	var all bytes.Buffer
	for _, name := range situations {
		w, r := replay(t, name)
		for _, to := range []string{"", "n2"} {
			s, err := w.Prepare(t.Context(), "", to)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			all.WriteString("--- " + name + " --to=" + to + "\n")
			s.Preflight(&all, Style{UTF8: true})
			err = s.Ready()
			if err != nil {
				Complain(&all, err, true)
			}
			if err != nil && CodeOf(err) != Refused {
				t.Errorf("%s: %v: exit code %d", name, err, CodeOf(err))
			}
			all.WriteString("\n")
		}
		if len(r.changes) > 0 {
			t.Errorf("%s: the pre-flight changed something: %q", name, r.changes)
		}
	}
	goldenPage(t, "preflight", all.String())
}

// Ensure each check finds what it is there for.
func TestPrepare_Checks(t *testing.T) {
	primary := func(change func(*postgres.Overview)) func(*World, *recorded) {
		return func(w *World, _ *recorded) {
			w.Ask = func(context.Context, map[string]string) (postgres.Overview, error) {
				o := postgres.Overview{Primary: true, Timeline: 2, LSN: "0/3000000", Sent: 2, MaxSent: 10}
				for _, n := range []string{"n2", "n3"} {
					o.Standbys = append(o.Standbys, postgres.StandbyOverview{Name: n, State: "streaming", Sync: "async"})
				}
				change(&o)
				return o, nil
			}
		}
	}
	in := func(old, now string) func(*World, *recorded) {
		return func(_ *World, r *recorded) { r.replace = map[string]string{old: now} }
	}
	failedAction := func(key string) func(*World, *recorded) { // of a resource pgsql, with which the name of the address begins
		return func(_ *World, r *recorded) {
			r.replace = map[string]string{"pgsqld": "pgsql", "<node_history>": `<failures><failure op_key="` + key + `" node="n1" exitstatus="not running"/></failures><node_history>`}
		}
	}
	for _, tc := range []struct {
		name   string
		plant  func(*World, *recorded)
		check  string
		result Result
		text   string
	}{
		{"not streaming", primary(func(o *postgres.Overview) { o.Standbys = o.Standbys[1:] }), "streams", Failed, "n2 does not stream from n1"},
		{"catching up", primary(func(o *postgres.Overview) { o.Standbys[0].State = "catchup" }), "streams", Failed, `"catchup"`},
		{"behind", primary(func(o *postgres.Overview) { o.Standbys[0].Unflush = 1 << 30 }), "streams", Failed, "1024 MB behind"},
		{"slow replay", primary(func(o *postgres.Overview) { o.Standbys[0].Unreplay, o.Standbys[0].Behind = 1<<30, 90 }), "replay", Failed, "1024 MB, 90.0 s"},
		{"queue", primary(func(o *postgres.Overview) { o.Standbys[1].Unsent = 1 << 30 }), "queues", Warned, "n3 (1024 MB)"},
		{"logical", primary(func(o *postgres.Overview) { o.Logical = 1 << 30 }), "logical", Warned, "1024 MB behind"},
		{"archive", primary(func(o *postgres.Overview) { o.Archiving, o.Unarch = true, 500 }), "archiver", Warned, "500 WAL files"},
		{"archive fails", primary(func(o *postgres.Overview) { o.Archiving, o.ArchFails = true, true }), "archiver", Warned, "the last archive_command failed"},
		{"transaction", primary(func(o *postgres.Overview) { o.OldestX = 1800 }), "transactions", Warned, "30m0s"},
		{"prepared", primary(func(o *postgres.Overview) { o.Prepared = 1 }), "prepared", Warned, "prepared transactions: 1"},
		{"paused", in(`&quot;streaming&quot;:true,`, `&quot;streaming&quot;:true,&quot;paused&quot;:true,`), "replay", Failed, "replay is paused on n2"},
		{"walsenders", in(`&quot;max_senders&quot;:10`, `&quot;max_senders&quot;:1`), "senders", Failed, "n2 has 1 of 1 walsenders free, 2 nodes"},
		{"old views", in(`2026-11-25T03:`, `2026-11-25T02:`), "streams", NotKnown, "not asked on n1"},
		{"old lag", in(`2026-11-25T03:`, `2026-11-25T02:`), "replay", NotKnown, "how far n2 has replayed was not asked on n1"},
		{"another version", in(`{&quot;v&quot;:1`, `{&quot;v&quot;:2`), "asked", NotKnown, "the server of n1 was not asked"},
		{"a failed action", failedAction("pgsql_monitor_15000"), "failures", Failed, "monitor on n1"},
		{"a failed action of another resource", failedAction("pgsql-vip_monitor_10000"), "failures", Passed, "no failed action"},
		{"a silent agent", in(`value="1;node=n3`, `value="2;node=n3`), "agents", Failed, "n3 (bulletin of version"},
		{"fencing off", in(`stonith-enabled="true"`, `stonith-enabled="false"`), "fencing", Warned, "fencing is off"},
		{"no quorum", in(`with_quorum="true"`, `with_quorum="false"`), "quorum", Failed, "no quorum"},
		{"no primary", in(`role="Promoted"`, `role="Unpromoted"`), "primary", Failed, "there is no primary"},
		{"two primaries", in(`role="Unpromoted"`, `role="Promoted"`), "primary", Failed, "are primaries"},
		{"under way", in(`role="Promoted"`, `role="Demoting"`), "idle", Failed, "demoting n1"},
		{"banned", in(`</constraints>`, `<rsc_location id="no-n2" rsc="pgsql-ha" role="Promoted" node="n2" score="-INFINITY"/></constraints>`), "score", Failed, "no-n2"},
		{"a home", in(`</constraints>`, `<rsc_location id="home" rsc="pgsql-ha" role="Promoted" node="n1" score="2000"/></constraints>`), "preferences", Failed, "home favours n1 by 2000"},
		{"a weak preference", in(`</constraints>`, `<rsc_location id="home" rsc="pgsql-ha" node="n1" score="50"/></constraints>`), "preferences", Passed, "no constraint"},
		{"the target is disliked", in(`</constraints>`, `<rsc_location id="not-n2" rsc="pgsql-ha" role="Promoted" node="n2" score="-950"/></constraints>`), "preferences", Failed, "not-n2 favours n1 by 950"},
		{"a home for the address", in(`</constraints>`, `<rsc_location id="vip-home" rsc="pgsql-vip" node="n1" score="500"/></constraints>`), "preferences", Failed, "vip-home favours n1 by 1000"},
		{"a weak home for the address", in(`</constraints>`, `<rsc_location id="vip-home" rsc="pgsql-vip" node="n1" score="400"/></constraints>`), "preferences", Passed, "no constraint"},
		{"a home for what is bound to the primary", func(_ *World, r *recorded) {
			r.replace = map[string]string{
				`</resources>`:   `<group id="pool"><primitive id="bouncer" class="systemd" type="pgbouncer"/></group></resources>`,
				`</constraints>`: `<rsc_colocation id="b" rsc="pool" with-rsc="pgsql-ha" with-rsc-role="Promoted" score="INFINITY"/><rsc_location id="pool-home" rsc="pool" node="n1" score="500"/></constraints>`,
			}
		}, "preferences", Failed, "pool-home favours n1 by 1000"},
		{"the address is banned", in(`</constraints>`, `<rsc_location id="cli-ban-pgsql-vip-on-n2" rsc="pgsql-vip" node="n2" score="-INFINITY"/></constraints>`), "constraints", Failed, "cli-ban-pgsql-vip-on-n2"},
		{"a move is left", in(`</constraints>`, `<rsc_location id="cli-prefer-pgsql-ha" rsc="pgsql-ha" role="Promoted" node="n2" score="INFINITY"/></constraints>`), "constraints", Failed, "cli-prefer-pgsql-ha: INFINITY on n2"},
		{"somebody else is at it", in(`</constraints>`, `<rsc_location id="cli-prefer-pgsql-ha" rsc="pgsql-ha" role="Promoted"><rule id="pgbaton-move-n3-ab12cd34" score="INFINITY"><expression id="e" attribute="#uname" operation="eq" value="n2"/><date_expression id="d" operation="lt" end="2099-01-01 00:00:00Z"/></rule></rsc_location></constraints>`), "constraints", Failed, "begun on n3"},
		{"a move that has ended", in(`</constraints>`, `<rsc_location id="cli-prefer-pgsql-ha" rsc="pgsql-ha" role="Promoted"><rule id="pgbaton-move-n3-ab12cd34" score="INFINITY"><expression id="e" attribute="#uname" operation="eq" value="n2"/><date_expression id="d" operation="lt" end="2020-01-01 00:00:00Z"/></rule></rsc_location></constraints>`), "constraints", Passed, "no constraint"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, r := replay(t, "healthy")
			tc.plant(&w, r)
			s, err := w.Prepare(t.Context(), "", "n2")
			if err != nil {
				t.Fatal(err)
			}
			checks := s.Checks
			if !slices.ContainsFunc(checks, func(c Check) bool { return c.Name == tc.check }) {
				checks = s.Snap.TargetChecks("n2")
			}
			found := false
			for _, c := range checks {
				if c.Name != tc.check {
					continue
				}
				found = true
				if c.Result != tc.result || !strings.Contains(c.Text, tc.text) {
					t.Errorf("%s: got %s, %q, want %s, %q", c.Name, c.Result, c.Text, tc.result, tc.text)
				}
				if c.Result != Passed && c.Do == "" {
					t.Errorf("%s says %q and not what to do", c.Name, c.Text)
				}
			}
			if !found {
				t.Errorf("no check %q in %+v", tc.check, checks)
			}
			if tc.result == Failed && s.Ready() == nil {
				t.Errorf("ready, in spite of %s", tc.check)
			}
			if tc.result != Failed && s.Ready() != nil {
				t.Errorf("not ready: %v", s.Ready())
			}
		})
	}
}

// Ensure the best target is the one that nothing stands in the way of, then a synchronous one, then the nearest.
func TestCandidates(t *testing.T) {
	for _, tc := range []struct {
		name   string
		n2, n3 postgres.StandbyOverview
		want   string
	}{
		{"equal", postgres.StandbyOverview{State: "streaming"}, postgres.StandbyOverview{State: "streaming"}, "n2"},
		{"nearer", postgres.StandbyOverview{State: "streaming", Unflush: 9}, postgres.StandbyOverview{State: "streaming"}, "n3"},
		{"synchronous", postgres.StandbyOverview{State: "streaming"}, postgres.StandbyOverview{State: "streaming", Sync: "sync", Unflush: 9}, "n3"},
		{"one fails", postgres.StandbyOverview{State: "streaming", Sync: "sync", Unflush: 1 << 40}, postgres.StandbyOverview{State: "streaming", Unflush: 99}, "n3"},
		{"both fail", postgres.StandbyOverview{}, postgres.StandbyOverview{}, ""},
	} {
		w, _ := replay(t, "healthy")
		w.Ask = func(context.Context, map[string]string) (postgres.Overview, error) {
			tc.n2.Name, tc.n3.Name = "n2", "n3"
			return postgres.Overview{Primary: true, Standbys: []postgres.StandbyOverview{tc.n2, tc.n3}}, nil
		}
		s, err := w.Prepare(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		if s.To != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, s.To, tc.want)
		}
	}
}

// watched plays a recorded switchover: every look at the cluster, which asks crm_mon and for the bulletins at the same time,
// is the next one that was recorded. After the last one time passes.
type watched struct {
	*recorded
	steps []string
	times []time.Time
	still bool // nothing happens

	lock      sync.Mutex
	at        time.Time
	mon, list int // the next step of crm_mon and of the bulletins
}

func watch(t *testing.T, name string) (World, *watched) {
	t.Helper()
	w, r := replay(t, "healthy")
	p := &watched{recorded: r}
	files, err := filepath.Glob(filepath.Join("testdata", "watch", name, "*.now"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: no files (%v)", name, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		sec, err := strconv.ParseFloat(strings.TrimSpace(string(b)), 64)
		if err != nil {
			t.Fatal(err)
		}
		p.steps = append(p.steps, strings.TrimSuffix(f, ".now"))
		p.times = append(p.times, time.UnixMicro(int64(sec*1e6)).UTC())
	}
	p.at = p.times[0]
	w.Run = p
	w.Now = func() time.Time {
		p.lock.Lock()
		defer p.lock.Unlock()
		return p.at
	}
	return w, p
}

// next is the file of a step, and the one after it.
func (p *watched) next(step int, ext string) ([]byte, int, error) {
	b, err := os.ReadFile(p.steps[step] + ext)
	if step+1 < len(p.steps) && !p.still {
		step++
	}
	return b, step, err
}

func (p *watched) Run(ctx context.Context, argv ...string) (out []byte, err error) {
	if ctx.Err() != nil {
		return nil, &pacemaker.RunError{Argv: argv, Status: -1, Err: context.Cause(ctx)}
	}
	p.lock.Lock()
	defer p.lock.Unlock()
	line := strings.Join(argv, " ")
	switch {
	case argv[0] == "crmadmin":
		return []byte("Controller on n2 in state S_IDLE: ok"), nil
	case argv[0] == "crm_mon":
		if at := p.times[p.mon]; at.After(p.at) {
			p.at = at
		} else {
			p.at = p.at.Add(watchEvery)
		}
		out, p.mon, err = p.next(p.mon, ".crm_mon")
		return out, err
	case argv[0] == "attrd_updater" && strings.Contains(line, "--name=pgbaton-pgsqld "):
		out, p.list, err = p.next(p.list, ".bulletins")
		return out, err
	}
	return p.recorded.Run(ctx, argv...)
}

// Ensure a switchover shows what happens, ends when the role has come to rest, says how, and removes its own constraint
// then and not before.
func TestSwitchover(t *testing.T) {
	var all bytes.Buffer
	for _, tc := range []struct {
		name, from, to string
		journal        string
		code           ExitCode
	}{
		{"handover", "n1", "n3", "done", Done},
		{"rollback", "n1", "n3", "done", RolledBack},
		{"calledoff", "n3", "n1", "called off", RolledBack},
	} {
		w, p := watch(t, tc.name)
		w.Journal = func(string) []journal.Event {
			return []journal.Event{
				{Time: w.Now().Add(-time.Hour), Node: tc.from, Action: "pre-demote", Outcome: "called off", Reason: "an old story"},
				{Time: w.Now(), Node: tc.from, Action: "pre-demote", Outcome: tc.journal, Duration: 152, Reason: "the reason"},
			}
		}
		s := &Switchover{World: w, From: tc.from, To: tc.to, every: time.Millisecond, follow: time.Second}
		var err error
		if s.Snap, err = w.Take(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		began := w.Now()
		all.WriteString("--- " + tc.name + "\n")
		removed := false
		o, err := s.Run(t.Context(), func(e Event) {
			removed = removed || strings.Contains(e.Text, "removed")
			e.Text = strings.Split(e.Text, ", it ends at")[0]
			e.Line(&all, began)
		})
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		o.Snapshot = nil
		o.Text(&all, Style{})
		all.WriteString("\n")
		if o.Code != tc.code {
			t.Errorf("%s: exit code %d, want %d", tc.name, o.Code, tc.code)
		}
		if !removed || len(p.changes) != 2 {
			t.Fatalf("%s: got the changes %q, want a constraint made and removed", tc.name, p.changes)
		}
		rule := strings.Split(strings.Split(p.changes[0], `<expression id="`)[1], `-node"`)[0]
		if want := "cibadmin --delete --xpath /cib/configuration/constraints/rsc_location[@id='cli-prefer-pgsql-ha'][rule[@id='" + rule + "' or date_expression[@id='" + rule + "-end']]]"; p.changes[1] != want {
			t.Errorf("%s: removed by %s\nwant %s", tc.name, p.changes[1], want)
		}
	}
	goldenPage(t, "switchover", all.String())
}

// Ensure that an end before the end leaves the constraint where its removal would turn the handover back, says until
// when it stands, and takes it away where nothing has begun.
func TestSwitchover_Interrupted(t *testing.T) {
	for _, tc := range []struct {
		after   string // this event
		removed bool
		code    ExitCode
	}{
		{"constraint", true, RolledBack},
		{"is being shut down", false, Unknown},
		{"asks the others", false, Unknown},
	} {
		w, p := watch(t, "rollback")
		p.still = tc.removed
		ctx, cancel := context.WithCancel(t.Context())
		s := &Switchover{World: w, From: "n1", To: "n3", every: time.Millisecond, follow: time.Second}
		var err error
		if s.Snap, err = w.Take(ctx, ""); err != nil {
			t.Fatal(err)
		}
		o, err := s.Run(ctx, func(e Event) {
			if strings.Contains(e.Text, tc.after) {
				cancel()
			}
		})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if got := len(p.changes) == 2; got != tc.removed || o.Code != tc.code {
			t.Errorf("after %q: %d changes, code %d (%s), want removed %v, code %d", tc.after, len(p.changes), o.Code, o.Sentence, tc.removed, tc.code)
		}
		if !tc.removed && !strings.Contains(o.Left, "by itself") {
			t.Errorf("after %q: says %q of the constraint", tc.after, o.Left)
		}
	}
}

// checkpointing plays a switchover in which nothing is seen until then, while the coordinator is at work.
type checkpointing struct {
	*watched
	until time.Time
}

func (c checkpointing) Run(ctx context.Context, argv ...string) ([]byte, error) {
	c.lock.Lock()
	c.still = c.at.Before(c.until)
	busy := c.at.Before(c.until.Add(time.Second)) // then goes on with the demotion
	c.lock.Unlock()
	if busy && argv[0] == "crmadmin" {
		return []byte("Controller on n2 in state S_TRANSITION_ENGINE: ok"), nil
	}
	return c.watched.Run(ctx, argv...)
}

// Ensure the order is not taken back while the coordinator is at work: the checkpoint before the shutdown may take longer than
// Pacemaker is given to plan something. Where the coordinator has nothing to do it is.
func TestSwitchover_LongCheckpoint(t *testing.T) {
	for _, tc := range []struct {
		checkpoint time.Duration
		still      bool // nothing happens at all
		code       ExitCode
		says       string
	}{
		{40 * time.Second, false, Done, "n3 is the primary"},
		{0, true, Refused, "Pacemaker did nothing within 20s: n1 is still the primary"},
	} {
		w, p := watch(t, "handover")
		if p.still = tc.still; !tc.still {
			w.Run = checkpointing{p, w.Now().Add(tc.checkpoint)}
		}
		s := &Switchover{World: w, From: "n1", To: "n3", every: time.Millisecond, follow: time.Second}
		var err error
		if s.Snap, err = w.Take(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		o, err := s.Run(t.Context(), func(Event) {})
		if err != nil {
			t.Fatal(err)
		}
		if o.Code != tc.code || !strings.Contains(o.Sentence, tc.says) {
			t.Errorf("a checkpoint of %s: got exit code %d, %q, want %d, %q", tc.checkpoint, o.Code, o.Sentence, tc.code, tc.says)
		}
	}
}

// exists is a world where somebody was quicker.
type exists struct{ pacemaker.Runner }

func (e exists) Run(ctx context.Context, argv ...string) ([]byte, error) {
	if argv[0] == "cibadmin" && argv[1] == "--create" {
		return nil, &pacemaker.RunError{Argv: argv, Status: 108, Stderr: "Call cib_create failed: File exists", Err: errors.New("exit status 108")}
	}
	return e.Runner.Run(ctx, argv...)
}

// Ensure that of two at once the second is refused.
func TestSwitchover_Two(t *testing.T) {
	w, r := replay(t, "healthy")
	w.Run = exists{r}
	s, err := w.Prepare(t.Context(), "", "n2")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Run(t.Context(), func(Event) {}); CodeOf(err) != Refused || !strings.Contains(err.Error(), "somebody else") {
		t.Errorf("got %v, exit code %d, want a refusal", err, CodeOf(err))
	}
	if len(r.changes) > 0 {
		t.Errorf("changed %q", r.changes)
	}
}

// Ensure bad input ends in a clear sentence with a documented exit code, and changes nothing.
func TestBadInput(t *testing.T) {
	second := `<clone id="other-ha" multi_state="true"><resource id="otherd" resource_agent="ocf:pgbaton:postgresql" role="Stopped" active="false"/></clone></resources>`
	for _, tc := range []struct {
		name         string
		cluster      string
		resource, to string
		plant        func(*recorded)
		code         ExitCode
		text         string
	}{
		{"unknown node", "healthy", "", "m2", nil, Refused, `there is no node "m2" in this cluster: its nodes are n1, n2, n3, did you mean n2?`},
		{"quite another node", "healthy", "", "postgres", nil, Refused, `its nodes are n1, n2, n3`},
		{"a node that is down", "offline", "", "n3", nil, Refused, "no handover to n3 now, nothing was changed: n3 is offline"},
		{"the primary", "healthy", "", "n1", nil, Done, "n1 is the primary already: nothing was changed"},
		{"not running", "notrunning", "", "", nil, NoCluster, "the cluster does not run on this node"},
		{"no permission", "permission", "", "", nil, NoCluster, "no permission to ask Pacemaker: run this as root"},
		{"unknown resource", "healthy", "pgsqlx", "", nil, Refused, `"pgsqlx" is no resource of ocf:pgbaton:postgresql in this cluster: there is pgsqld, did you mean pgsqld?`},
		{"no resource", "healthy", "", "", func(r *recorded) { r.replace = map[string]string{"ocf:pgbaton:": "ocf:heartbeat:"} }, Refused, "there is no resource of ocf:pgbaton:postgresql"},
		{"several resources", "healthy", "", "", func(r *recorded) { r.replace = map[string]string{"</resources>": second} }, Refused, "choose one with -r: otherd, pgsqld"},
		{"broken XML from crm_mon", "healthy", "", "", func(r *recorded) { r.broken = "crm_mon" }, NoCluster, "crm_mon's answer is not XML"},
		{"broken XML from cibadmin", "healthy", "", "", func(r *recorded) { r.broken = "cibadmin" }, NoCluster, "cibadmin's answer is not XML"},
		{"broken XML from attrd_updater", "healthy", "", "", func(r *recorded) { r.broken = "attrd_updater" }, NoCluster, "attrd_updater's answer is not XML"},
		{"crm_mon hangs", "healthy", "", "", func(r *recorded) { r.hang = "crm_mon" }, NoCluster, "crm_mon did not answer within 5s"},
		{"attrd_updater hangs", "healthy", "", "", func(r *recorded) { r.hang = "attrd_updater" }, NoCluster, "attrd_updater did not answer within 5s"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w, r := replay(t, tc.cluster)
			if tc.plant != nil {
				tc.plant(r)
			}
			s, err := w.Prepare(t.Context(), tc.resource, tc.to)
			if err == nil {
				err = s.Ready()
			}
			if err == nil {
				t.Fatal("no error")
			}
			if CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got exit code %d, %v\nwant %d, %q", CodeOf(err), err, tc.code, tc.text)
			}
			if len(r.changes) > 0 {
				t.Errorf("changed %q", r.changes)
			}
		})
	}
}

// Ensure that what was published some seconds ago does not refuse a handover before a monitor has said so again, and that
// what is known now does at once.
func TestPrepareFresh(t *testing.T) {
	lost := `&quot;name&quot;:&quot;n2&quot;,&quot;state&quot;:&quot;streaming&quot;`
	for _, tc := range []struct {
		name    string
		to      string
		later   int  // the look at which the primary has published again
		heals   bool // and sees it stream
		ready   bool
		looks   int
		waiting bool
	}{
		{"nothing is wrong", "n3", 9, false, true, 1, false},
		{"published before, then well", "n2", 4, true, true, 4, true},
		{"published before, and again", "n2", 4, false, false, 4, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, r := replay(t, "healthy")
			now := w.Now
			looks := 0
			w.Run = counting{r, func() {
				looks++
				replace := map[string]string{}
				if tc.to == "n2" && (looks < tc.later || !tc.heals) {
					replace[lost] = strings.Replace(lost, "streaming", "startup", 1)
					replace[`&quot;streaming&quot;:true`] = `&quot;streaming&quot;:false`
				}
				if looks >= tc.later {
					replace[`2026-11-25T03:`] = `2026-11-25T05:` // later than any look
				}
				r.lock.Lock()
				r.replace = replace
				r.lock.Unlock()
			}}
			w.Now = now
			waited := false
			s, err := w.PrepareFresh(t.Context(), "", tc.to, func(string) { waited = true })
			if err != nil {
				t.Fatal(err)
			}
			if ready := s.Ready() == nil; ready != tc.ready || looks != tc.looks || waited != tc.waiting {
				t.Errorf("ready %v (%v) after %d looks, waited %v; want %v after %d, %v", ready, s.Ready(), looks, waited, tc.ready, tc.looks, tc.waiting)
			}
		})
	}
}

// counting calls a function before each look at the cluster.
type counting struct {
	*recorded
	look func()
}

func (c counting) Run(ctx context.Context, argv ...string) ([]byte, error) {
	if argv[0] == "crm_mon" {
		c.look()
	}
	return c.recorded.Run(ctx, argv...)
}
