package e2e

import (
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Ensure ocf-tester, of the package resource-agents, passes on the agent with a real instance.
func TestOCFTester(t *testing.T) {
	t.Parallel()
	for _, attrd := range []string{"failing", "absent"} {
		t.Run("attrd_updater "+attrd, func(t *testing.T) {
			t.Parallel()
			b := newBox(t, boxOptions{noAttrd: attrd})
			in := b.newInstance("one")
			argv := []string{"/usr/sbin/ocf-tester", "-n", in.resource}
			for k, v := range in.params {
				argv = append(argv, "-o", k+"="+v)
			}
			r := b.execWithin(5*time.Minute, nil, append(argv, boxAgent)...)
			if r.code != 0 || !strings.Contains(r.stdout, "passed all tests") || strings.Contains(r.stdout, "* rc=") || r.stderr != "" {
				t.Errorf("exit code %d\n%s%s\nserver: %s\nagent: %s", r.code, r.stdout, r.stderr, in.serverLog(), in.agentLog())
			}
			// It ran what it is for: a life with promotions, not only the meta-data.
			if n := strings.Count(in.serverLog(), "selected new timeline ID"); n < 3 {
				t.Errorf("the server was promoted %d times, want 3\n%s", n, in.serverLog())
			}
		})
	}
}

// Ensure a lone promote, without notify variables as crm_resource --force-promote and ocf-tester run it, succeeds only
// where the instance's own disk ends with the clean shutdown of a primary.
func TestLonePromote(t *testing.T) {
	t.Parallel()
	b1, b2 := newBox(t, boxOptions{node: "n1"}), newBox(t, boxOptions{node: "n2"})
	one := b1.newInstance("one")
	as("start", "promote")(t, one)
	one.sql("create table t (i int)")

	two := b2.describe("two")
	b2.postgres(boxBin+"/pg_basebackup", "-D", two.data, "-X", "stream", "-c", "fast", "--no-sync", "-h", one.params["pghost"], "-p", one.params["pgport"], "-U", "postgres")
	two.configure()
	follow := fmt.Sprintf("host='%s' port=%d user=postgres application_name=n2", one.params["pghost"], boxPort)
	two.set("primary_conninfo", follow)
	two.expect(0, "start")
	streams := func() {
		t.Helper()
		eventually(t, "n2 to stream all that n1 has", func() bool {
			return one.sql("select count(*) from pg_stat_replication where application_name = 'n2' and state = 'streaming' and flush_lsn = pg_current_wal_lsn()") == "1"
		})
	}
	streams()

	refused := func(in *instance, why string) {
		t.Helper()
		r := in.expect(1, "promote")
		if !strings.Contains(r.stderr, why) {
			t.Errorf("promote of %s is refused with %q, want %q in it", in.b.node, r.reason(), why)
		}
		in.expect(0, "monitor") // and nothing happened to it
		if got := in.sql("select pg_is_in_recovery()"); got != "t" {
			t.Fatalf("%s was promoted although it was refused", in.b.node)
		}
	}
	// The primary lives.
	refused(two, "needs WAL that ends with the shutdown checkpoint of a primary")

	// The standby was cut off before the primary wrote its last.
	two.sql("alter system set primary_conninfo = 'host=/nowhere application_name=n2'")
	two.sql("select pg_reload_conf()")
	eventually(t, "n2 to be cut off", func() bool { return one.sql("select count(*) from pg_stat_replication") == "0" })
	one.sql("insert into t values (1)")
	one.expect(0, "stop")
	refused(two, "needs WAL that ends with the shutdown checkpoint of a primary")

	// The old primary has it all, on its own disk.
	as("start", "promote")(t, one)
	one.expect(8, "monitor")
	two.sql("alter system set primary_conninfo = '" + strings.ReplaceAll(follow, "'", "''") + "'")
	two.sql("select pg_reload_conf()")
	streams()

	// Now the standby has, too.
	one.sql("insert into t values (2)")
	one.expect(0, "stop")
	checkpoint := parseLSN(t, one.control("Latest checkpoint location"))
	two.expect(0, "promote")
	two.expect(8, "monitor")
	if got := two.sql("select count(*) from t"); got != "2" {
		t.Errorf("n2 has %s rows, want 2", got)
	}
	timeline := two.sql("select substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)")
	history := strings.Split(b2.must("cat", filepath.Join(two.data, "pg_wal", timeline+".history")), "\n")
	fork := strings.Fields(history[len(history)-1]) // timeline, position, reason
	if len(fork) < 2 {
		t.Fatalf("%s.history: %q", timeline, history)
	}
	switchPoint := parseLSN(t, fork[1])
	// The record is 114 bytes long, aligned to 8; a page header may lie in it (24 bytes, 40 on a segment's first page).
	if d := switchPoint - checkpoint; d != 120 && d != 144 && d != 160 {
		t.Errorf("the new timeline begins at %X, %d bytes after the start of n1's shutdown checkpoint at %X; want its end", switchPoint, d, checkpoint)
	}

	// A crash is no clean end, neither right after it nor with the note that stop leaves of it.
	two.crash()
	two.expect(0, "start")
	two.answers()
	refused(two, "needs WAL that ends with the shutdown checkpoint of a primary")

	as("start", "promote")(t, one) // these boxes do not know of each other
	one.sql("insert into t values (3)")
	one.crash()
	as("stop", "start")(t, one)
	one.answers()
	refused(one, "the last one crashed")
}

// Ensure the tools of users show the agent's meta-data without an error or a warning, and all of it: what
// testdata/metadata.txt says, which is our text and not the layout of a version of some tool.
// PGBATON_UPDATE=1 writes that file anew.
//
// Trap 29: the meta-data is what the tools of users expect.
func TestMetaData_Tools(t *testing.T) {
	t.Parallel()
	b := newBox(t, boxOptions{})
	own := b.exec(nil, boxAgent, "meta-data")
	if own.code != 0 || own.stderr != "" {
		t.Fatalf("meta-data: exit code %d: %s", own.code, own.stderr)
	}
	var agent struct {
		Long       string `xml:"longdesc"`
		Short      string `xml:"shortdesc"`
		Parameters []struct {
			Name  string `xml:"name,attr"`
			Long  string `xml:"longdesc"`
			Short string `xml:"shortdesc"`
		} `xml:"parameters>parameter"`
	}
	if err := xml.Unmarshal([]byte(own.stdout), &agent); err != nil {
		t.Fatal(err)
	}
	golden := agent.Short + "\n" + agent.Long + "\n"
	for _, p := range agent.Parameters {
		golden += p.Name + "\n" + p.Short + "\n" + p.Long + "\n"
	}
	const path = "testdata/metadata.txt"
	if os.Getenv("PGBATON_UPDATE") == "1" {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(golden), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if golden != string(want) {
		t.Errorf("the meta-data says\n%s\nwant what stands in %s", golden, path)
	}

	complaint := regexp.MustCompile(`(?im)^\W*(warn|error|traceback|fatal|critical)`)
	for _, argv := range [][]string{
		{"crm", "ra", "info", "ocf:pgbaton:postgresql"},
		{"pcs", "resource", "describe", "ocf:pgbaton:postgresql"},
		{"crm_resource", "--show-metadata", "ocf:pgbaton:postgresql"},
	} {
		name := strings.Join(argv, " ")
		r := b.exec([]string{"HOME=/root"}, argv...)
		if r.code != 0 || r.stderr != "" || complaint.MatchString(r.stdout) {
			t.Errorf("%s: exit code %d\n%s%s", name, r.code, r.stderr, r.stdout)
			continue
		}
		// Lines are broken by the tool's rules, and XML has its own quotes.
		shown := squeeze(strings.NewReplacer("&quot;", `"`, "&#34;", `"`, "&#39;", "'", "&lt;", "<", "&gt;", ">", "&amp;", "&", "&#xA;", " ").Replace(r.stdout))
		lines := strings.Split(strings.TrimSpace(string(want)), "\n")
		for n, line := range lines {
			if argv[0] == "pcs" && n >= 2 && (n-2)%3 == 1 {
				continue // it has no place for the short description of a parameter that has a long one
			}
			if !strings.Contains(shown, squeeze(line)) {
				t.Errorf("%s does not show %q:\n%s", name, line, r.stdout)
				break
			}
		}
		if argv[0] == "pcs" {
			continue // it shows defaults in some versions only
		}
		for _, def := range []string{"postgres", "/var/lib/pgsql/data", "/var/run/postgresql", "5432"} {
			if !strings.Contains(shown, def) {
				t.Errorf("%s does not show the default %s", name, def)
			}
		}
	}
}

// squeeze takes all white space out: tools break lines within words, too.
func squeeze(s string) string { return strings.Join(strings.Fields(s), "") }
