package ocf

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"strings"
)

// doctype names the document type of the resource agent API 1.0, against which
// ocf-tester still validates, and declares in its internal subset what API 1.1
// has beyond it: the action reload-agent, and parameters that are reloadable or
// belong to a unique group. A declaration there wins over that of the file, so
// one text is valid for the old validator and for the newer schemas alike.
const doctype = `<!DOCTYPE resource-agent SYSTEM "ra-api-1.dtd" [
<!ATTLIST action name (start|stop|promote|demote|monitor|notify|reload-agent|validate-all|meta-data) #REQUIRED>
<!ATTLIST parameter reloadable (1|0) #IMPLIED unique-group CDATA #IMPLIED>
]>
`

type xmlAgent struct {
	XMLName    xml.Name       `xml:"resource-agent"`
	Name       string         `xml:"name,attr"`
	Version    string         `xml:"version,attr"` // of the agent
	APIVersion string         `xml:"version"`      // of OCF
	Long       xmlDesc        `xml:"longdesc"`
	Short      xmlDesc        `xml:"shortdesc"`
	Parameters []xmlParameter `xml:"parameters>parameter"`
	Actions    []xmlAction    `xml:"actions>action"`
}

type xmlDesc struct {
	Lang string `xml:"lang,attr"`
	Text string `xml:",chardata"`
}

type xmlParameter struct {
	Name        string     `xml:"name,attr"`
	Required    string     `xml:"required,attr"`
	Unique      string     `xml:"unique,attr,omitempty"`
	UniqueGroup string     `xml:"unique-group,attr,omitempty"`
	Reloadable  string     `xml:"reloadable,attr"`
	Long        xmlDesc    `xml:"longdesc"`
	Short       xmlDesc    `xml:"shortdesc"`
	Content     xmlContent `xml:"content"`
}

type xmlContent struct {
	Type    string  `xml:"type,attr"`
	Default *string `xml:"default,attr"` // nil: no fixed default
}

type xmlAction struct {
	Name     string `xml:"name,attr"`
	Timeout  string `xml:"timeout,attr"`
	Interval string `xml:"interval,attr,omitempty"`
	Depth    string `xml:"depth,attr,omitempty"`
	Role     string `xml:"role,attr,omitempty"`
}

// parameterDoc describes one parameter to the user.
type parameterDoc struct {
	name        string
	uniqueGroup string // parameters of a group: no two resources may have the same combination
	// reloadable: a change is in force with the next action, the server need not
	// be restarted for it.
	reloadable bool
	kind       string // "string" or "integer"
	def        string
	noDefault  bool // the default is worked out at run time
	short      string
	long       string
}

// parameterDocs is the one list of the agent's parameters.
var parameterDocs = []parameterDoc{
	{
		name: "system_user", kind: "string", def: DefaultSystemUser,
		short: "Account that runs the server",
		long: `The operating system account that owns the data directory. The server, and all programs that touch its files, run
with the uid, gid and supplementary groups of this account.`,
	},
	{
		name: "bindir", kind: "string", noDefault: true,
		short: "Directory of the PostgreSQL programs",
		long: `Absolute path of the directory that holds postgres and pg_rewind. If not set, it is found by the PG_VERSION file of the
data directory: /usr/lib/postgresql/VERSION/bin (Debian), /usr/pgsql-VERSION/bin (PGDG packages for RHEL), /usr/bin, /usr/local/pgsql/bin, in this order.`,
	},
	{
		name: "pgdata", uniqueGroup: "instance", kind: "string", def: DefaultPGData,
		short: "Directory the server is started with",
		long: `Absolute path that is given to the server as its -D option: the data directory, or the directory of postgresql.conf if
that file sets data_directory, as in /etc/postgresql/15/main.`,
	},
	{
		name: "datadir", kind: "string", noDefault: true,
		short: "Data directory, if it is not pgdata",
		long: `Absolute path of the directory that holds PG_VERSION and pg_wal. If not set, it is pgdata if that holds them, else what
data_directory in postgresql.conf says. If both are set they must name the same directory.`,
	},
	{
		name: "pghost", kind: "string", def: DefaultPGHost,
		short: "Socket directory, or local address, of the server",
		long: `How the agent reaches the server on its own node: the absolute path of the directory that holds the Unix-domain socket
(one of unix_socket_directories), or else one host name or address on which the server listens. Never a virtual IP address: it may lead to another node.`,
	},
	{
		name: "pgport", kind: "integer", def: fmt.Sprint(DefaultPGPort),
		short: "Port of the server",
		long:  `The port on which the server listens, from 1 to 65535. It is also part of the name of the Unix-domain socket.`,
	},
	{
		name: "start_opts", kind: "string",
		short: "More arguments for the server",
		long: `Arguments that are added to the command line of the server, for example: -c config_file=/etc/postgresql/15/main/postgresql.conf
Spaces separate arguments. Single quotes, double quotes (with \" and \\ inside) and a backslash (outside of quotes) keep a space or a quote in an argument.
Nothing else is special: no shell reads this, no variable or pattern is expanded.`,
	},
	{
		name: "maxlag", reloadable: true, kind: "integer", def: "0",
		short: "Bytes of WAL that a failover may lose",
		long: `After the primary was lost, a standby that is known to miss more than this number of bytes of WAL is not promoted.
It is known by the last word of the primary, which it gives with every monitor, and which a standby hears with every monitor of its own; whoever misses more waits for a person
(pgbaton promote --accept-data-loss). 0: no limit; the most advanced standby is promoted, and nobody keeps track of what it misses. A planned switchover never loses anything, whatever this is.`,
	},
	{
		name: "crash_recovery_limit", reloadable: true, kind: "integer", def: "0",
		short: "Seconds that the crash recovery of a primary may take",
		long: `A primary that crashed is started again where it was, for its disk has what nobody else has for certain. If its recovery takes longer than this number of seconds and
another node could be promoted, the role goes to the best of the others, within maxlag, and what is known to be lost is reported. 0: no limit, the recovery is waited for.`,
	},
	{
		name: "rewind_conninfo", reloadable: true, kind: "string",
		short: "How a node that has diverged reaches the primary to be rewound",
		long: `Connection string of libpq with which pg_rewind connects to the primary, for example: host=10.0.0.10 user=rewind dbname=postgres
with the virtual IP address as host. If it is set, a node that comes back with WAL that the cluster passed over is rewound and joins by itself; what it had is kept first
(see rewind_keep). If it is not set, such a node stays out and says what to do. The user needs the rights that the manual of pg_rewind lists. A password belongs into the .pgpass
of system_user: what stands here, the cluster's configuration shows to everybody who may read it.`,
	},
	{
		name: "rewind_keep", reloadable: true, kind: "integer", def: fmt.Sprint(DefaultRewindKeep),
		short: "Megabytes of lost WAL that a rewind keeps without asking",
		long: `Before a rewind, the WAL that this node has and the cluster has not is copied to a directory below /var/lib/pgbaton/RESOURCE, for as long as nobody
removes it. If there is more of it than this, the rewind does not begin, and says so. 0: nothing is kept and nothing is asked.`,
	},
	{
		name: "logfile", kind: "string", noDefault: true,
		short: "File for what the server writes to its standard error",
		long: `Absolute path of the file to which the server's standard error is appended: all of its log, unless logging_collector or
syslog takes it, and otherwise what it says before they do. If not set: ` + defaultLogDir + `/RESOURCE-postgresql.log with the name of this resource. A change makes
Pacemaker restart the server on every node.`,
	},
}

// The time-outs are what the agent needs on a busy machine, not what it usually
// takes. The monitors of the two roles must differ in their interval: Pacemaker
// tells recurring actions apart by name and interval alone.
var actionDocs = []xmlAction{
	{Name: ActionStart, Timeout: "60s"},
	{Name: ActionStop, Timeout: "60s"},
	{Name: ActionPromote, Timeout: "60s"},
	{Name: ActionDemote, Timeout: "120s"},
	{Name: ActionMonitor, Timeout: "20s", Interval: "15s", Depth: "0", Role: "Promoted"},
	{Name: ActionMonitor, Timeout: "20s", Interval: "16s", Depth: "0", Role: "Unpromoted"},
	{Name: ActionNotify, Timeout: "60s"},
	{Name: ActionReloadAgent, Timeout: "20s"},
	{Name: ActionValidateAll, Timeout: "10s"},
	{Name: ActionMetaData, Timeout: "5s"},
}

const (
	agentShort = "PostgreSQL with streaming replication: proven switchovers"
	agentLong  = `Runs one PostgreSQL instance on each node and passes the primary role between them. It must be configured as a promotable clone with notify=true.
In a planned switchover a standby is promoted only if its own disk shows that it has received everything the old primary wrote, its shutdown checkpoint included;
without that proof the old primary serves again. PostgreSQL 13 to 18. Each instance needs primary_conninfo in its configuration, with the name of its node as application_name.`
)

// MetaData returns the agent's description of itself as OCF 1.1 meta-data, an XML
// document that ends with a line break. version is that of the agent.
func MetaData(version string) string {
	agent := xmlAgent{
		Name:       "postgresql",
		Version:    version,
		APIVersion: "1.1",
		Long:       english(agentLong),
		Short:      english(agentShort),
		Actions:    actionDocs,
	}
	for _, d := range parameterDocs {
		p := xmlParameter{
			Name:        d.name,
			Required:    "0",
			UniqueGroup: d.uniqueGroup,
			Reloadable:  bit(d.reloadable),
			Long:        english(d.long),
			Short:       english(d.short),
			Content:     xmlContent{Type: d.kind},
		}
		if !d.noDefault {
			p.Content.Default = &d.def
		}
		agent.Parameters = append(agent.Parameters, p)
	}
	var b bytes.Buffer
	// No encoding is declared: crmsh parses text, not bytes, and refuses one.
	b.WriteString("<?xml version=\"1.0\"?>\n")
	b.WriteString(doctype)
	enc := xml.NewEncoder(&b)
	enc.Indent("", "  ")
	if err := enc.Encode(agent); err != nil {
		panic(err) // the document is made of constants and a string
	}
	b.WriteByte('\n')
	// The encoder has no short form for an empty element.
	out := b.String()
	for _, name := range []string{"content", "action"} {
		out = strings.ReplaceAll(out, "></"+name+">", "/>")
	}
	return out
}

func english(s string) xmlDesc {
	return xmlDesc{Lang: "en", Text: strings.Join(strings.Fields(s), " ")}
}

func bit(b bool) string {
	if b {
		return "1"
	}
	return "0"
}
