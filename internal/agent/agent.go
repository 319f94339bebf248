package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/pgdisk"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// Agent is one run of one action.
type Agent struct {
	inv     ocf.Invocation
	env     ocf.Env
	params  ocf.Params
	invalid error // what is wrong with the parameters; stop and monitor go on regardless
	pg      *postgres.Instance
	plan    pacemaker.Plan
	cluster Cluster
	store   journal.Store
	state   journal.State
	// stateErr says why the state on disk could not be read. What is not known must not be written over.
	stateErr  error
	vol       journal.Volatile
	clock     Clock
	log       *Log
	stderr    io.Writer
	began     time.Time
	details   map[string]string // what the journal says of this action
	change    baton.Change      // by the plan; see changeNow
	live      bool              // this node had seen a primary since it booted when this action began
	heardLive bool              // somebody who answered has
	cold      bool              // nobody who answered has
	serving   bool              // the primary here is what this action ends or prepares to end, and it has left no note yet
	journaled bool              // the journal has something of this action
	wayOut    string            // what a person can do about a refusal
	release   func()
	spawned   postgres.Process // the server, if this action started it
	// endedPrimary: this action has ended a server that was writable.
	endedPrimary bool
	unjudged     string // why this start could not tell whether the instance has diverged
	// resting is where the instance ended, as long as pg_control is restingControl: reading the WAL of a crashed one takes long.
	resting        *baton.Candidate
	restingControl pgdisk.Control
	undelayed      bool         // recovery_min_apply_delay is out of force
	restless       error        // why that is not known, where reading on would take as long again
	votes          *baton.Votes // once they were counted
	online         []string     // the members of the cluster, once they were asked for
	// tending: the sentinel runs this monitor itself. Its parameters may be older than those of a monitor before it.
	tending bool
	// unlocked: somebody else works on the instance, or there is nowhere to lock. A monitor then looks and touches nothing.
	unlocked bool
}

// Clock is the passing of time.
type Clock interface {
	Now() time.Time
	Sleep(ctx context.Context, d time.Duration)
}

type realClock struct{}

func (realClock) Now() time.Time { return time.Now() }

func (realClock) Sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// detachedActions are the hidden ones: they outlive the action that starts them, and take the lock when they need it.
var detachedActions = []string{aftercareAction, sentinelAction, answerAction, readAction, rejoinAction, unmarkAction}

// Main runs the action that the command line and the environment ask for, and returns the exit code. The exit reason of
// a failure goes to stderr, meta-data to stdout.
func Main(version string, args, environ []string, stdout, stderr io.Writer) int {
	env := ocf.EnvFromOS(environ)
	detached := ""
	if len(args) == 1 && slices.Contains(detachedActions, args[0]) {
		detached, args = args[0], []string{"monitor"}
	}
	inv, err := ocf.ParseInvocation(args, env)
	if detached != "" {
		inv.Action = detached
	}
	if err != nil {
		ocf.WriteReason(stderr, err.Error())
		fmt.Fprint(stderr, usage)
		return int(codeOf(err))
	}
	switch inv.Action {
	case "meta-data":
		fmt.Fprint(stdout, ocf.MetaData(version))
		return int(ocf.Success)
	case "usage", "help", "--help", "-h":
		fmt.Fprint(stdout, usage)
		return int(ocf.Success)
	}
	a := New(inv, env, stderr)
	return int(a.Run())
}

const usage = `usage: postgresql {start|stop|monitor|promote|demote|notify|reload-agent|validate-all|meta-data}

The OCF resource agent ocf:pgbaton:postgresql. Pacemaker runs it; parameters come
in the environment as OCF_RESKEY_name. To run an action by hand:
    crm_resource --force-check -r RESOURCE -V
`

// New prepares one action.
func New(inv ocf.Invocation, env ocf.Env, stderr io.Writer) *Agent {
	if inv.Resource == "" || strings.ContainsRune(inv.Resource, '/') || strings.HasPrefix(inv.Resource, ".") {
		inv.Resource = "default" // called by hand; the name becomes part of paths
	}
	env = environment(inv.Action, env)
	a := &Agent{
		inv: inv, env: env, clock: realClock{}, stderr: stderr,
		plan:    pacemaker.ParsePlan(env),
		store:   journal.Open(inv.Resource),
		vol:     journal.LoadVolatile(inv.Resource),
		details: map[string]string{},
	}
	a.began = a.clock.Now()
	a.log = OpenLog(inv, env)
	a.cluster = newLiveCluster(inv.Resource)
	if a.inv.Node == "" {
		a.inv.Node = nodeName()
	}
	a.params, a.invalid = ocf.ParseParams(env)
	a.change = baton.Classify(a.batonPlan())
	return a
}

// environment is that of an action. What outlives the action that started it does not go by its plan.
func environment(action string, env ocf.Env) ocf.Env {
	if action == sentinelAction || action == rejoinAction {
		return pacemaker.WithoutPlan(env)
	}
	return env
}

// Run runs the action within Pacemaker's time-out.
func (a *Agent) Run() ocf.ExitCode {
	ctx, cancel := context.WithDeadline(context.Background(), a.deadline())
	defer cancel()
	defer a.log.Close()

	var err error
	if err = a.loadState(); err != nil {
		// What this node knew of the past is lost: it may stop, it may not promote, nor say that it has stored anything.
		a.log.Error("state", "error", err)
		if a.inv.Action == "promote" || a.inv.Action == "start" {
			return a.finish(ocf.Errorf(ocf.ErrInstalled, "%v", err))
		}
	}
	a.pg = a.instance()
	if err := a.lock(ctx); err != nil {
		switch a.inv.Action {
		case "stop":
			a.log.Warn("stopping without the lock", "error", err)
			a.reload() // whoever holds it may have changed what is known
		case "monitor", "status":
			a.unlocked = true
			a.log.Warn("monitoring without the lock", "error", err)
		default:
			return a.finish(err)
		}
	}
	if a.release != nil {
		defer a.release()
	}
	a.live = a.vol.Live

	switch a.inv.Action {
	case "start":
		err = a.start(ctx)
	case "stop":
		err = a.stop(ctx)
	case "monitor", "status":
		err = a.monitor(ctx)
	case "promote":
		err = a.promote(ctx)
	case "demote":
		err = a.demote(ctx)
	case "notify":
		err = a.notify(ctx)
	case "validate-all":
		err = a.validate(ctx)
	case "reload-agent", "reload":
		err = a.reloadParameters(ctx)
	case aftercareAction:
		err = a.aftercare(ctx)
	case sentinelAction:
		err = a.sentinel(ctx)
	case answerAction:
		err = a.lateAnswer(ctx)
	case readAction:
		err = a.readOn(ctx)
	case rejoinAction:
		err = a.rejoin(ctx)
	case unmarkAction:
		err = a.unmark(ctx)
	default:
		err = ocf.Errorf(ocf.ErrUnimplemented, "action %q is not one of this agent's", a.inv.Action)
	}
	return a.finish(err)
}

// finish turns an action's end into exit code and exit reason.
func (a *Agent) finish(err error) ocf.ExitCode {
	took := a.clock.Now().Sub(a.began)
	name := a.actionName()
	var role roleCode
	if errors.As(err, &role) {
		if role.reason != "" {
			ocf.WriteReason(a.stderr, role.reason)
			a.log.Warn(name, "is", role.code, "reason", role.reason)
		}
		return role.code
	}
	if err == nil {
		if !a.quiet() {
			a.log.Info(name, "change", a.changeNow(), "result", "done", "ms", took.Milliseconds())
		}
		if a.inv.Action == "notify" && !a.quiet() && !a.journaled && a.release != nil {
			a.record("done", "", false) // how long everybody waited for this node
		}
		return ocf.Success
	}
	code := codeOf(err)
	if len(err.Error()) > ocf.MaxReason {
		fmt.Fprintln(a.stderr, err) // Pacemaker cuts the reason, a person who runs the action does not have to
	}
	ocf.WriteReason(a.stderr, err.Error())
	a.log.Error(name, "change", a.changeNow(), "result", code, "reason", err, "ms", took.Milliseconds())
	if !a.quiet() {
		a.record("failed", err.Error(), true)
	}
	return code
}

// quiet actions leave no trace when nothing happened: they run every few seconds.
func (a *Agent) quiet() bool {
	switch a.inv.Action {
	case "monitor", "status", "validate-all", "reload-agent":
		return true
	case "notify":
		return a.plan.Operation != "demote" && a.plan.Operation != "promote"
	}
	return false
}

func (a *Agent) actionName() string {
	if a.inv.Action == "notify" {
		return a.plan.Phase + "-" + a.plan.Operation
	}
	return a.inv.Action
}

// record writes an event to the journal.
func (a *Agent) record(outcome, reason string, sync bool) {
	change := a.changeNow()
	event := journal.Event{
		Time: a.clock.Now(), Node: a.inv.Node, Action: a.actionName(),
		Change: change.String(), Kind: string(change.Kind), From: change.From, To: change.To,
		Outcome: outcome, Reason: reason,
		Duration: float64(a.clock.Now().Sub(a.began).Microseconds()) / 1000,
		Details:  a.details,
	}
	event.NoteID, event.ClaimID = a.changeIDs()
	a.journaled = true
	if err := a.do("journal", func() error { return a.store.Append(event, sync) }); err != nil {
		a.log.Warn("journal", "error", err)
	}
}

// roleCode carries a monitor's answer that is not Success through an error.
type roleCode struct {
	code   ocf.ExitCode
	reason string
}

func (r roleCode) Error() string { return r.reason }

func codeOf(err error) ocf.ExitCode {
	var oe *ocf.Error
	if errors.As(err, &oe) {
		return oe.Code
	}
	return ocf.ErrGeneric
}

// deadline leaves a tenth of Pacemaker's time-out, at most three seconds, to say what was waited for: a time-out of
// Pacemaker is a SIGKILL and tells nobody anything.
func (a *Agent) deadline() time.Time {
	timeout := a.inv.Timeout
	if timeout <= 0 {
		timeout = time.Minute
	}
	switch a.inv.Action {
	case aftercareAction, rejoinAction, unmarkAction:
		timeout = 24 * time.Hour
	case sentinelAction:
		timeout = 365 * 24 * time.Hour
	}
	return a.began.Add(timeout - min(timeout/10, 3*time.Second))
}

// share is a part of the time left, for a wait that must leave some for what follows it.
func (a *Agent) share(ctx context.Context, part float64) (context.Context, context.CancelFunc) {
	d, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, a.clock.Now().Add(time.Duration(float64(d.Sub(a.clock.Now()))*part)))
}

// poll asks again and again until done says true, an error, or the deadline passes; what names what is waited for.
func (a *Agent) poll(ctx context.Context, what string, every time.Duration, done func() (bool, error)) error {
	from := a.clock.Now()
	for {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("gave up after %s waiting for %s", a.clock.Now().Sub(from).Round(time.Millisecond), what)
		}
		a.clock.Sleep(ctx, every)
	}
}

// age is how long ago something was that is written down with the time of day. A clock that was set back in between says nothing:
// whatever was waited for is over.
func (a *Agent) age(at time.Time) time.Duration {
	if d := a.clock.Now().Sub(at); d >= 0 {
		return d
	}
	return math.MaxInt64
}

// do runs one external effect under its name.
func (a *Agent) do(effect string, f func() error) error {
	name := a.actionName() + "/" + effect
	faultPoint(name, "before")
	err := f()
	faultPoint(name, "after")
	if err != nil {
		return fmt.Errorf("%s: %w", effect, err)
	}
	return nil
}

// loadState reads what this node knows durably.
func (a *Agent) loadState() error {
	st, err := a.store.Load()
	if err != nil {
		st = journal.State{Instance: st.Instance} // half of it is nothing to decide by
	}
	a.state, a.stateErr = st, err
	return err
}

// reload reads both states again: whoever held the lock may have changed them, and a claim or a note written over would be
// one that was never durable.
func (a *Agent) reload() error {
	a.resting, a.restless = nil, nil
	a.vol = journal.LoadVolatile(a.inv.Resource)
	return a.loadState()
}

// save writes the durable state under the name of the effect.
func (a *Agent) save(effect string) error {
	if a.stateErr != nil {
		return fmt.Errorf("%s: %w", effect, a.stateErr)
	}
	return a.do(effect, func() error { return a.store.Save(a.state) })
}

// saveVolatile writes what this node knows until its next boot.
func (a *Agent) saveVolatile() {
	if err := a.do("volatile", func() error { return journal.SaveVolatile(a.inv.Resource, a.vol) }); err != nil {
		a.log.Warn("volatile state", "error", err)
	}
}

// instance describes the server: by the parameters, or by what was noted when it started, if the parameters are
// broken.
func (a *Agent) instance() *postgres.Instance {
	p := &a.params
	i := &postgres.Instance{
		ConfigDir: p.PGData, SocketDir: p.PGHost, Port: p.PGPort, StartArgs: p.StartArgs, LogFile: p.LogFile,
	}
	if a.env["OCF_RESKEY_datadir"] == "" {
		p.DataDir = i.ConfiguredDataDir()
	}
	i.DataDir = p.DataDir
	i.BinDir, _ = p.FindBinDir()
	owner, err := postgres.LookupAccount(p.SystemUser)
	if err == nil {
		i.Owner = owner
	}
	if r := a.state.Instance; r != nil {
		i.RecordedUID, i.RecordedDir = r.UID, r.DataDir
		if a.invalid != nil || err != nil {
			i.DataDir, i.Owner = r.DataDir, postgres.Account{Name: r.Owner, UID: r.UID, GID: r.GID, Groups: r.Groups, Home: r.Home}
		}
	}
	return i
}

func (a *Agent) walDir() string { return filepath.Join(a.pg.DataDir, "pg_wal") }

func (a *Agent) batonPlan() baton.Plan {
	return baton.Plan{
		Promoted: a.plan.Promoted, Unpromoted: a.plan.Unpromoted,
		Demote: a.plan.Demote, Stop: a.plan.Stop, Start: a.plan.Start, Promote: a.plan.Promote,
	}
}

func nonce() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
