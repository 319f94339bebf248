package console

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/pacemaker"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// fromReplication is the value of setupMeta for a cluster that is set up around plain streaming replication.
const fromReplication = "new"

// Wanted says what a cluster is to be set up around, and under which names.
type Wanted struct {
	PGData string // which server, where several run here
	Name   string // of the primitive
	Clone  string
	VIP    string // address/prefix of the virtual IP, "" for none
	Tool   string // "pcs" or "crm", "" for the one that is installed
}

// draft is the configuration before it is pushed. Only root writes there.
const draft = "/run/pgbaton-setup.xml"

// resourceName is what Pacemaker takes for a name everywhere, and a shell and an XPath for a word.
var resourceName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*$`)

// New prepares to set a cluster up around a primary that runs on this node, and its standbys on the others.
func (w World) New(ctx context.Context, want Wanted) (*Setup, error) {
	s := w.setup(fromReplication, agentName, want.Tool)
	s.Resource, s.Clone = want.Name, want.Clone
	for _, name := range []string{want.Name, want.Clone} {
		if !resourceName.MatchString(name) {
			return nil, fail(Usage, "%q as the name of a resource: expected a letter, then letters, digits, \"-\", \"_\" and \".\"", name)
		}
	}
	address, prefix, err := splitVIP(want.VIP)
	if err != nil {
		return nil, err
	}
	if err := s.look(ctx); err != nil {
		return nil, err
	}
	if have := namesOf(s.State, agentName); len(have) > 0 {
		s.Resource, s.Clone, err = findOf(s.State, agentName, "")
		if err != nil {
			return nil, err
		}
		s.was = s.Config.Meta(s.Clone, setupMeta)
		was := parseNote(s.was)
		if s.was != "" && was.kind != fromReplication {
			return nil, fail(Refused, "%s, nothing was changed: %s%s", unfinishedSetup, endSetup, s.setupWay())
		}
		if was.kind != fromReplication {
			return nil, fail(Done, "%s is %s already: nothing to do. pgbaton check looks whether it is as it should be", s.Resource, agentName)
		}
		if s.foreignMaintenance(s.was) {
			return nil, fail(Refused, notItsMaintenance, s.Clone)
		}
		s.goingOn, s.paused, s.resumed = true, s.State.MaintenanceMode, was.resumed
		reasons := s.unfit(ctx)
		if s.State.MaintenanceMode {
			reasons = append(reasons, s.recall(was.members)...)
		} else {
			reasons = append(reasons, s.instances()...)
		}
		if err := refuse(reasons); err != nil {
			return nil, err
		}
		s.planNew(nil, address, prefix)
		return s, nil
	}
	if have := namesOf(s.State, pafName); len(have) > 0 {
		return nil, fail(Refused, "%s runs PostgreSQL as %s: pgbaton setup --from-paf takes it over. Nothing was changed", pafName, strings.Join(have, ", "))
	}
	server, err := w.server(want.PGData)
	if err != nil {
		return nil, err
	}
	reasons := s.unfit(ctx)
	if _, err := w.agentMetadata(ctx, agentName); err != nil {
		reasons = append(reasons, err.Error())
	}
	for _, id := range []string{want.Name, want.Clone, vipName(want.Name)} {
		if s.Config.Has(id) && (id != vipName(want.Name) || address != "") {
			reasons = append(reasons, fmt.Sprintf("the configuration has a resource %s: choose another name (--name, --clone)", id))
		}
	}
	for _, a := range s.Config.Addresses() {
		if address != "" && a.IP == address {
			reasons = append(reasons, fmt.Sprintf("%s has the address %s already: leave --vip out, and bind it to the primary by the commands that pgbaton check says afterwards", a.ID, address))
		}
	}
	if !s.State.FencingEnabled || !s.Config.HasFenceDevice() {
		reasons = append(reasons, "fencing is not configured: give every node a device and test it (README.md, Configuration), for without it nobody can know that a silent primary is gone, and Pacemaker starts nothing")
	}
	reasons = append(reasons, s.replicates(ctx, server)...)
	if err := refuse(reasons); err != nil {
		return nil, err
	}
	s.planNew(&server, address, prefix)
	return s, nil
}

func splitVIP(vip string) (address, prefix string, err error) {
	if vip == "" {
		return "", "", nil
	}
	ip, network, err := net.ParseCIDR(vip)
	if err != nil {
		return "", "", fail(Usage, "--vip %s: expected an address with its prefix, such as 10.77.0.10/24", vip)
	}
	ones, _ := network.Mask.Size()
	return ip.String(), fmt.Sprint(ones), nil
}

// server is the one that runs here, or the one with this data directory.
func (w World) server(pgdata string) (postgres.Server, error) {
	list, err := w.Servers()
	if err != nil {
		return postgres.Server{}, err
	}
	if pgdata != "" {
		all := list
		list = slices.DeleteFunc(slices.Clone(list), func(s postgres.Server) bool { return s.DataDir != pgdata && s.ConfigDir != pgdata })
		if len(list) == 0 && len(all) > 0 {
			return postgres.Server{}, fail(Refused, "no server runs here on %s: there is %s. Nothing was changed", pgdata, places(all))
		}
	}
	switch len(list) {
	case 0:
		return postgres.Server{}, fail(Refused, "no PostgreSQL runs on this node: start it, or run this on the node of the primary. Nothing was changed")
	case 1:
		return list[0], nil
	}
	return postgres.Server{}, fail(Refused, "several servers run on this node: choose one with --pgdata: %s. Nothing was changed", places(list))
}

func places(list []postgres.Server) string {
	var dirs []string
	for _, s := range list {
		dirs = append(dirs, s.ConfigDir)
	}
	return strings.Join(dirs, ", ")
}

// parameters are those of the resource: where the server is, and of the others what differs from the agent's defaults.
func parameters(s postgres.Server) [][2]string {
	list := [][2]string{{"bindir", s.BinDir}, {"pgdata", s.ConfigDir}}
	add := func(name, value, def string) {
		if value != "" && value != def {
			list = append(list, [2]string{name, value})
		}
	}
	add("system_user", s.Owner, ocf.DefaultSystemUser)
	add("pghost", or(s.SocketDir, "127.0.0.1"), ocf.DefaultPGHost)
	add("pgport", fmt.Sprint(s.Port), fmt.Sprint(ocf.DefaultPGPort))
	add("start_opts", ocf.JoinArgs(s.Args...), "")
	return list
}

// replicates looks whether the server of this node is the primary of all others. It fills in who runs what.
func (s *Setup) replicates(ctx context.Context, server postgres.Server) []string {
	params := map[string]string{}
	for _, p := range parameters(server) {
		params[p[0]] = p[1]
	}
	ctx, cancel := context.WithTimeout(ctx, serverLimit)
	defer cancel()
	o, err := s.world.Ask(ctx, params)
	switch {
	case errors.Is(err, errNotHere):
		return []string{"the server in " + server.DataDir + " lets only its own user in: run this as root"}
	case err != nil:
		return []string{fmt.Sprintf("the server in %s cannot be asked, over its socket and as %s, as the agent will: %v", server.DataDir, server.Owner, err)}
	case !o.Primary:
		return []string{"the server of this node is a standby: run this on the node of the primary"}
	}
	s.primary, s.members = s.Here, []string{s.Here}
	var list []string
	for _, n := range s.State.Nodes {
		i := slices.IndexFunc(o.Standbys, func(sb postgres.StandbyOverview) bool { return sb.Name == n.Name })
		switch {
		case n.Name == s.Here:
		case i < 0:
			list = append(list, fmt.Sprintf("no standby with application_name=%s is connected to the primary: primary_conninfo on %s must say so, or make one there with pg_basebackup", n.Name, n.Name))
		case o.Standbys[i].State != "streaming":
			list = append(list, fmt.Sprintf("the standby of %s does not stream (%s): wait until it has caught up", n.Name, o.Standbys[i].State))
		default:
			s.members = append(s.members, n.Name)
		}
	}
	if len(s.State.Nodes) < 2 {
		list = append(list, "the cluster has no other node: let those of the standbys join it first")
	}
	return list
}

// planNew: server is nil where a setup that was cut short has made the resources already.
func (s *Setup) planNew(server *postgres.Server, address, prefix string) {
	s.intro = append([]string{
		fmt.Sprintf("%s: a cluster around the primary of %s", s.Clone, s.primary),
		"PostgreSQL is neither stopped nor started" + others(", neither here nor on ", s.members[1:]) + ", and clients write on.",
	}, s.intro...)
	if s.goingOn {
		s.intro = append(s.intro, "A setup was cut short here: this goes on from there.")
	}
	s.outro = []string{
		"Then, on every node: keep the system from starting PostgreSQL (systemctl disable postgresql; with Debian's tools also start.conf), and run pgbaton check, which says what else is to be done. See what there is: pgbaton status.",
	}
	vip := s.madeVIP()
	if server != nil && address != "" {
		vip = vipName(s.Resource)
	}
	if vip != "" {
		s.mayDo = []string{vip}
	}
	if server != nil {
		s.steps = append(s.steps, s.create(*server, address, prefix)...)
	} else {
		s.steps = append(s.steps, s.mark())
	}
	if server != nil || s.State.MaintenanceMode {
		s.steps = append(s.steps, s.probe(), setupStep{
			title: "Give the primary its promotion score", reversible: true,
			why:      "without a score anywhere a running primary is demoted; the agent sets them itself from its first monitor on",
			commands: [][]string{{"attrd_updater", "--node", s.primary, "--name", pacemaker.ScoreAttribute(s.Resource), "--update", fmt.Sprint(baton.ScorePrimary)}},
			until:    "it stands in the configuration",
			wait: func(ctx context.Context) error {
				return s.await(ctx, func() error {
					status, err := pacemaker.ReadStatus(ctx, s.world.Run)
					if err == nil && status.Transient(pacemaker.ScoreAttribute(s.Resource))[s.primary] == "" {
						err = errors.New("the score is not there yet")
					}
					return err
				})
			},
		}, s.foresee())
	}
	settled := func(ctx context.Context) error { return s.awaitMonitors(ctx, s.transientScores, baton.ScoreFollows) }
	s.steps = append(s.steps, s.resume("every node's monitor has answered and has set its score", settled), s.unmark())
	if !s.resumed { // what has run since is not taken back
		s.undo = func(ctx context.Context) error { return s.removeNew(ctx, vip) }
	}
}

func vipName(resource string) string { return strings.TrimSuffix(resource, "d") + "-vip" }

// madeVIP is the virtual IP that a setup which was cut short has made, "" if it made none: one that was there before was not
// bound to a clone that was not.
func (s *Setup) madeVIP() string {
	vip := vipName(s.Resource)
	if slices.ContainsFunc(s.Config.Colocations(vip), func(c pacemaker.Colocation) bool { return c.With == s.Clone }) {
		return vip
	}
	return ""
}

// piece is a part of the configuration, in the words of both tools.
type piece struct{ what, pcs, crm, why string }

// crmQuote is for what stands in double quotes in crmsh's words.
var crmQuote = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// create is the README's configuration, in one push: nothing is ever half there. It comes in maintenance mode, in which
// Pacemaker only looks what runs.
func (s *Setup) create(server postgres.Server, address, prefix string) []setupStep {
	var pcsParams, crmParams []string
	for _, p := range parameters(server) {
		pcsParams = append(pcsParams, ocf.JoinArgs(p[0]+"="+p[1]))
		crmParams = append(crmParams, p[0]+`="`+crmQuote.Replace(p[1])+`"`)
	}
	const ops = "start timeout=60s@stop timeout=60s@promote timeout=60s on-fail=demote@demote timeout=120s@notify timeout=60s@" +
		"monitor interval=15s timeout=20s role=Promoted@monitor interval=16s timeout=20s role=Unpromoted"
	promoted := s.State.PromotedRoleName()
	roles := strings.NewReplacer("role=Promoted", "role="+promoted, "role=Unpromoted", "role="+s.State.UnpromotedRoleName())
	list := []piece{
		{"Maintenance mode", "property set maintenance-mode=true", "property maintenance-mode=true", "Pacemaker only looks at what runs, until it is seen to be right"},
		{
			"PostgreSQL", fmt.Sprintf("resource create %s %s %s op %s", s.Resource, agentName, strings.Join(pcsParams, " "), roles.Replace(strings.ReplaceAll(ops, "@", " "))),
			fmt.Sprintf("primitive %s %s params %s op %s", s.Resource, agentName, strings.Join(crmParams, " "), roles.Replace(strings.ReplaceAll(ops, "@", " op "))),
			"as the server runs now on this node; on all others it must lie at the same place. Demote is given twice the time: its shutdown writes a checkpoint. After a failed promotion the next candidate is tried (on-fail=demote). The monitors' intervals must differ: Pacemaker tells them apart by that",
		},
		{
			"Its clone", fmt.Sprintf("resource promotable %s %s", s.Resource, s.Clone), "",
			"one instance on every node, one of them promoted",
		},
		{
			"The clone's meta attributes", fmt.Sprintf("resource meta %s notify=true interleave=true resource-stickiness=10 migration-threshold=5 %s=%s", s.Clone, setupMeta, s.note()),
			fmt.Sprintf("clone %s %s meta promotable=true notify=true interleave=true resource-stickiness=10 migration-threshold=5 %s=\"%s\"", s.Clone, s.Resource, setupMeta, s.note()),
			"the nodes exchange note, claim and answers in notifications. An address waits for its own node's instance only. A standby stays where it is, and no score is outweighed by that; an instance that fails again and again is given up on its node. " + setupMeta + " tells that this is under way",
		},
	}
	if address != "" {
		vip := vipName(s.Resource)
		list = append(list,
			piece{
				"The virtual IP", fmt.Sprintf("resource create %s ocf:heartbeat:IPaddr2 ip=%s cidr_netmask=%s op monitor interval=10s timeout=20s", vip, address, prefix),
				fmt.Sprintf("primitive %s ocf:heartbeat:IPaddr2 params ip=%s cidr_netmask=%s op monitor interval=10s timeout=20s", vip, address, prefix),
				"the address that clients write to",
			},
			piece{
				"The virtual IP and the primary", fmt.Sprintf("constraint colocation add %s with %s %s INFINITY", vip, promoted, s.Clone),
				fmt.Sprintf("colocation %s-with-primary inf: %s %s:%s", vip, vip, s.Clone, promoted),
				"it is where the primary is",
			},
			piece{
				"The virtual IP after a promotion", fmt.Sprintf("constraint order promote %s then start %s kind=Mandatory symmetrical=false", s.Clone, vip),
				fmt.Sprintf("order promote-then-%s Mandatory: %s:promote %s:start symmetrical=false", vip, s.Clone, vip),
				"it comes once there is a primary",
			},
			piece{
				"The virtual IP after a demotion", fmt.Sprintf("constraint order demote %s then stop %s kind=Optional symmetrical=false", s.Clone, vip),
				fmt.Sprintf("order demote-then-%s Optional: %s:demote %s:stop symmetrical=false", vip, s.Clone, vip),
				"it goes after the primary has ended: standbys that connect through it get the last record only over it",
			})
	}
	if s.tool == "crm" {
		lines, why := []string{}, []string{}
		for _, p := range list {
			if p.crm != "" {
				lines = append(lines, p.crm)
			}
			why = append(why, p.what+": "+p.why)
		}
		file := strings.TrimSuffix(draft, ".xml") + ".crm"
		return []setupStep{{
			title: "Configure the cluster, in maintenance mode and in one push", reasons: why,
			commands: [][]string{{"sh", "-c", fmt.Sprintf("cat >%s <<'END'\n%s\nEND", file, strings.Join(lines, "\n"))}, {"crm", "configure", "load", "update", file}, {"rm", file}},
			until:    "the cluster is in maintenance mode and nothing is under way", wait: s.awaitPaused, marks: true, pauses: true,
		}}
	}
	steps := []setupStep{{
		title:    "Take a copy of the configuration",
		why:      "it is changed, and then pushed at once: nothing is ever half there. Nobody else may read it: there may be passwords of fencing devices in it",
		commands: [][]string{{"sh", "-c", fmt.Sprintf("(umask 077; rm -f %s; pcs cluster cib %s)", draft, draft)}},
	}}
	for _, p := range list {
		steps = append(steps, setupStep{title: p.what, why: p.why, commands: [][]string{{"sh", "-c", "pcs -f " + draft + " " + p.pcs}}})
	}
	return append(steps, setupStep{
		title: "Push it", commands: [][]string{{"pcs", "cluster", "cib-push", draft}, {"rm", draft}},
		until: "the cluster is in maintenance mode and nothing is under way", wait: s.awaitPaused, marks: true, pauses: true,
	})
}

// removeNew takes out what was made, while maintenance lasts: nothing of it may be stopped afterwards.
func (s *Setup) removeNew(ctx context.Context, vip string) error {
	if err := s.stillPaused(ctx); err != nil {
		return err // what is configured no more would be stopped
	}
	drop := []string{fmt.Sprintf("//clone[@id='%s']", s.Clone)}
	if vip != "" {
		drop = []string{fmt.Sprintf("//constraints/*[@rsc='%s' or @then='%s']", vip, vip), drop[0], fmt.Sprintf("//primitive[@id='%s']", vip)}
	}
	for _, xpath := range drop {
		if err := s.command(ctx, "cibadmin", "--delete-all", "--force", "--xpath", xpath); err != nil { // all that match; that wants force
			return err
		}
	}
	// What Pacemaker has seen of it must be forgotten, or it would stop what is configured no more. The controllers must
	// forget it, not only the CIB: they would write it down again.
	for _, n := range s.State.Nodes {
		for _, resource := range []string{s.Resource, vip} {
			if resource == "" {
				continue
			}
			err := s.command(ctx, "crm_resource", "--refresh", "--resource", resource, "--node", n.Name)
			if err != nil && pacemaker.ExitStatus(err) != crmNoSuch {
				return err
			}
		}
	}
	if err := s.command(ctx, "attrd_updater", "--node", s.primary, "--name", pacemaker.ScoreAttribute(s.Resource), "--delete"); err != nil {
		return err
	}
	limited, cancel := context.WithTimeoutCause(ctx, setupLimit, errHangs)
	defer cancel()
	err := s.await(limited, func() error {
		status, err := pacemaker.ReadStatus(limited, s.world.Run)
		if err == nil && len(status.Histories(s.Resource))+len(status.Histories(vip)) > 0 {
			err = errors.New("Pacemaker still remembers " + s.Resource)
		}
		return err
	})
	if err == nil {
		err = s.awaitPaused(limited)
	}
	if err == nil {
		err = s.harmless(limited)
	}
	if err != nil {
		return err
	}
	return s.command(ctx, "crm_attribute", "--name", "maintenance-mode", "--delete")
}
