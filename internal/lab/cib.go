package lab

import (
	"fmt"
	"html"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
)

// defaultOps are the operations of the PostgreSQL resource, with the time-outs that
// the manual of pgsqlms recommends.
var defaultOps = map[string]Op{
	"start":              {Timeout: "60s"},
	"stop":               {Timeout: "60s"},
	"promote":            {Timeout: "30s"},
	"demote":             {Timeout: "120s"},
	"notify":             {Timeout: "60s"},
	"reload-agent":       {Timeout: "20s"},
	"monitor-promoted":   {Interval: "15s", Timeout: "10s"},
	"monitor-unpromoted": {Interval: "16s", Timeout: "10s"},
}

// cib is the cluster's configuration, put in place before Pacemaker first starts.
func cib(o Options) string {
	provider, typ := "heartbeat", "pgsqlms"
	params := map[string]string{
		"bindir": o.Bindir,
		"pgdata": o.DataDir(),
		"pghost": "/var/run/postgresql",
	}
	if o.Layout == "debian" {
		params["pgdata"] = o.ConfDir()
		params["datadir"] = o.DataDir()
		params["start_opts"] = "-c config_file=" + o.ConfDir() + "/postgresql.conf"
	}
	meta := map[string]string{"notify": "true", "promotable": "true", "interleave": "true"}
	if o.Agent == "pgbaton" {
		provider, typ = "pgbaton", "postgresql"
	}
	maps.Copy(params, o.Params)
	maps.Copy(meta, o.Meta)
	properties := map[string]string{
		"cluster-infrastructure": "corosync",
		"cluster-name":           o.Name,
		"have-watchdog":          "false",
		"stonith-enabled":        "true",
		// A cold start waits this long for a coordinator that might exist already.
		"dc-deadtime": "2s",
		// All nodes share this machine's cores, and each sees the load of all.
		"load-threshold": "400%",
	}
	if o.Nodes == 2 {
		// Of two halves that fence each other the one with the primary should win: the other one waits until that has surely begun.
		slowness, err := Slowness()
		if err != nil {
			slowness = 1 // where crm_mon does not start no cluster does, and says so better
		}
		properties["priority-fencing-delay"] = fmt.Sprintf("%.0fs", math.Ceil(2*slowness))
		meta["priority"] = "1"
	}
	maps.Copy(properties, o.Properties)

	var b strings.Builder
	fmt.Fprintf(&b, `<cib crm_feature_set="3.0.14" validate-with="pacemaker-3.%d" epoch="1" num_updates="0" admin_epoch="0">
 <configuration>
  <crm_config><cluster_property_set id="cib-bootstrap-options">
%s  </cluster_property_set></crm_config>
  <nodes>
`, schema(), nvpairs("property", properties))
	for i, n := range o.Names {
		fmt.Fprintf(&b, "   <node id=\"%d\" uname=\"%s\"/>\n", i+1, n)
	}
	fmt.Fprintf(&b, `  </nodes>
  <resources>
   <primitive id="power" class="stonith" type="%s">
    <instance_attributes id="power-params">
%s    </instance_attributes>
    <operations><op id="power-monitor" name="monitor" interval="60s" timeout="20s"/></operations>
   </primitive>
`,
		fenceName,
		nvpairs("power", map[string]string{
			"pcmk_host_list": strings.Join(o.Names, " "), "pcmk_host_check": "static-list",
		}))
	if o.Agent == "none" {
		b.WriteString("  </resources>\n  <constraints/>\n </configuration>\n <status/>\n</cib>\n")
		return b.String()
	}
	fmt.Fprintf(&b, `   <clone id="%s">
    <meta_attributes id="%s-meta">
%s    </meta_attributes>
    <primitive id="%s" class="ocf" provider="%s" type="%s">
     <instance_attributes id="%s-params">
%s     </instance_attributes>
     <operations>
%s     </operations>
    </primitive>
   </clone>
   <primitive id="%s" class="ocf" provider="heartbeat" type="IPaddr2">
    <instance_attributes id="%s-params">
%s    </instance_attributes>
    <operations><op id="%s-monitor" name="monitor" interval="10s" timeout="20s"/></operations>
   </primitive>
  </resources>
  <constraints>
   <rsc_colocation id="vip-with-primary" rsc="%s" with-rsc="%s" with-rsc-role="%s" score="INFINITY"/>
   <rsc_order id="promote-then-vip" first="%s" first-action="promote" then="%s" then-action="start" kind="Mandatory" symmetrical="false"/>
   <rsc_order id="demote-then-vip" first="%s" first-action="demote" then="%s" then-action="stop" kind="%s" symmetrical="false"/>
%s  </constraints>
  <rsc_defaults><meta_attributes id="rsc-defaults">
   <nvpair id="rsc-defaults-stickiness" name="resource-stickiness" value="10"/>
   <nvpair id="rsc-defaults-threshold" name="migration-threshold" value="5"/>
  </meta_attributes></rsc_defaults>
 </configuration>
 <status/>
</cib>
`,
		Clone, Clone, nvpairs("meta", meta),
		Resource, provider, typ, Resource, nvpairs("param", params), operations(o),
		VIPResource, VIPResource, nvpairs("vip", map[string]string{
			"ip": VIP, "cidr_netmask": "24", "nic": "eth0",
		}), VIPResource,
		VIPResource, Clone, roleNames()["promoted"], Clone, VIPResource, Clone, VIPResource, demoteOrder(o), voter(o))
	return b.String()
}

// demoteOrder is the kind of the order by which the address goes after a demotion: what each agent's guide says. A mandatory
// one blocks the address for good where nobody is promoted and the demotion was in a plan before this one.
func demoteOrder(o Options) string {
	if o.Agent == "pgsqlms" {
		return "Mandatory"
	}
	return "Optional"
}

// voter keeps the instances off the node that only votes.
func voter(o Options) string {
	if !o.Voter {
		return ""
	}
	return fmt.Sprintf("   <rsc_location id=\"voter\" rsc=\"%s\" node=\"%s\" score=\"-INFINITY\" resource-discovery=\"never\"/>\n", Clone, o.Names[len(o.Names)-1])
}

func operations(o Options) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(defaultOps)) {
		op := defaultOps[name]
		if over, ok := o.Ops[name]; ok {
			op = Op{or(over.Interval, op.Interval), or(over.Timeout, op.Timeout), over.OnFail}
		}
		action, role, isMonitor := strings.Cut(name, "-")
		fmt.Fprintf(&b, "      <op id=\"%s-%s\" timeout=\"%s\"", Resource, name, op.Timeout)
		switch {
		case isMonitor && action == "monitor":
			fmt.Fprintf(&b, " name=\"monitor\" interval=\"%s\" role=\"%s\"", op.Interval, roleNames()[role])
		default:
			fmt.Fprintf(&b, " name=\"%s\" interval=\"0s\"", name)
		}
		if op.OnFail != "" {
			fmt.Fprintf(&b, " on-fail=\"%s\"", op.OnFail)
		}
		b.WriteString("/>\n")
	}
	return b.String()
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func nvpairs(prefix string, m map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&b, "    <nvpair id=\"%s-%s\" name=\"%s\" value=\"%s\"/>\n", prefix, k, k, html.EscapeString(m[k]))
	}
	return b.String()
}

// schema is the newest minor version of the CIB's third schema that the installed
// Pacemaker has: its commands refuse to write what an older one does not allow.
func schema() int {
	files, _ := filepath.Glob("/usr/share/pacemaker/pacemaker-3.*.rng")
	newest := 0
	for _, f := range files {
		var minor int
		if _, err := fmt.Sscanf(filepath.Base(f), "pacemaker-3.%d.rng", &minor); err == nil {
			newest = max(newest, minor)
		}
	}
	return newest
}

// roleNames are the names of the roles in the schema: Pacemaker 2.0 has the old ones.
func roleNames() map[string]string {
	if schema() < 7 {
		return map[string]string{"promoted": "Master", "unpromoted": "Slave"}
	}
	return map[string]string{"promoted": "Promoted", "unpromoted": "Unpromoted"}
}
