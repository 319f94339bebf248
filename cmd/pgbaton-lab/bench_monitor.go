package main

import (
	"bufio"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// monitorEnv is what Pacemaker gives the monitor of a primary, as recorded from Pacemaker 2.1.5 (the crm_feature_set is
// that version's too).
func monitorEnv(x *contender) []string {
	provider, typ := "pgbaton", "postgresql"
	if x.Agent == "pgsqlms" {
		provider, typ = "heartbeat", "pgsqlms"
	}
	return []string{
		"HA_logfacility=daemon", "HA_debug=0", "HA_cluster_type=corosync", "HA_mcp=true", "LC_ALL=C", "PCMK_service=pacemaker-execd",
		"OCF_EXIT_REASON_PREFIX=ocf-exit-reason:", "OCF_OUTPUT_FORMAT=text", "OCF_RA_VERSION_MAJOR=1", "OCF_RA_VERSION_MINOR=1",
		"OCF_ROOT=/usr/lib/ocf", "OCF_RESOURCE_INSTANCE=pgsqld", "OCF_RESOURCE_PROVIDER=" + provider, "OCF_RESOURCE_TYPE=" + typ,
		"OCF_RESKEY_CRM_meta_clone=1", "OCF_RESKEY_CRM_meta_clone_max=3", "OCF_RESKEY_CRM_meta_clone_node_max=1",
		"OCF_RESKEY_CRM_meta_globally_unique=false", "OCF_RESKEY_CRM_meta_interval=15000", "OCF_RESKEY_CRM_meta_master_max=1",
		"OCF_RESKEY_CRM_meta_master_node_max=1", "OCF_RESKEY_CRM_meta_name=monitor", "OCF_RESKEY_CRM_meta_notify=true",
		"OCF_RESKEY_CRM_meta_on_node=" + x.primary, "OCF_RESKEY_CRM_meta_on_node_uuid=1", "OCF_RESKEY_CRM_meta_promoted_max=1",
		"OCF_RESKEY_CRM_meta_promoted_node_max=1", "OCF_RESKEY_CRM_meta_role=Master", "OCF_RESKEY_CRM_meta_timeout=10000",
		"OCF_RESKEY_crm_feature_set=3.16.1", "OCF_RESKEY_bindir=" + x.Bindir, "OCF_RESKEY_pgdata=" + x.DataDir(),
		"OCF_RESKEY_pghost=/var/run/postgresql", "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
	}
}

// monitorScript runs the agent as often as the first argument says, started as Pacemaker's executor would, and prints
// wall, user and system time of each run in seconds, then the exit code.
const monitorScript = `
TIMEFORMAT='%R %U %S'
n=$1; shift
for ((i = 0; i < n; i++)); do
	took=$( { time "$@" monitor >/dev/null 2>/dev/null; echo "$?" >&3; } 3>/dev/fd/1 2>&1 )
	echo $took
done
`

// monitors measures the monitor of each agent on an idle primary.
func monitors(ctx context.Context, all []*contender, n int) error {
	fmt.Printf("monitor of a primary, ms, %d runs\n", n)
	fmt.Println("agent            median      min      max   CPU (median)")
	for _, x := range all {
		agent := "/usr/lib/ocf/resource.d/pgbaton/postgresql"
		if x.Agent == "pgsqlms" {
			agent = "/usr/lib/ocf/resource.d/heartbeat/pgsqlms"
		}
		argv := append([]string{"env", "-i"}, monitorEnv(x)...)
		argv = append(argv, "bash", "-c", monitorScript, "monitor", fmt.Sprint(n), agent)
		out, err := x.Run(ctx, x.primary, argv...)
		if err != nil {
			return err
		}
		var wall, cpu []float64
		sc := bufio.NewScanner(strings.NewReader(out))
		for sc.Scan() {
			var code int
			var real, user, sys float64
			if _, err := fmt.Sscan(sc.Text(), &real, &user, &sys, &code); err != nil {
				return fmt.Errorf("the time of a monitor of %s reads %q: %w", x.Agent, sc.Text(), err)
			}
			if code != 8 {
				return fmt.Errorf("monitor of %s on %s, the primary: expected exit code 8, got %d", x.Agent, x.primary, code)
			}
			wall, cpu = append(wall, real*1000), append(cpu, (user+sys)*1000)
		}
		if len(wall) != n {
			return fmt.Errorf("%d monitors of %s were timed, expected %d: %s", len(wall), x.Agent, n, out)
		}
		fmt.Printf("%-14s %8.0f %8.0f %8.0f %8.0f\n", x.Agent, lab.Median(wall), slices.Min(wall), slices.Max(wall), lab.Median(cpu))
	}
	fmt.Println()
	return nil
}
