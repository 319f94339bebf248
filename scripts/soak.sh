#!/bin/bash
# The end-to-end tests again and again, in another order and at other moments each time, with
# the agent killed at every effect of a handover and not only at a sample, sixty handovers with
# and sixty without an archive, every archive story, handovers on every version of PostgreSQL,
# and a minute for each fuzz target. In every other round the standbys of the failure suite follow
# the virtual IP, and not the nodes. At the end a table: scenario, runs, outage, rows lost,
# nodes fenced, healed by itself. A scenario that fails does not end the soak; the exit code
# is 1 then.
#
#   PGBATON_SOAK_ROUNDS  how often (default 3)
#   PGBATON_SOAK_TIME    or for how long: no round begins after so many seconds
#   PGBATON_SOAK_ONLY    only the tests whose names match, a regular expression; not that of a subtest
#   PGBATON_FUZZ_TIME    for each fuzz target (default 60s; 0: none)
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/test.sh deps build
export PGBATON_KILL_ALL=1 PGBATON_ALL_VERSIONS=1 PGBATON_ALL_ARCHIVE=1 PGBATON_HANDOVERS=120 PGBATON_E2E_LATER= PGBATON_E2E_TIMEOUT=3h
export PGBATON_RESULTS="$PWD/bin/test/results.jsonl" PGBATON_E2E_SHUFFLE=on PGBATON_E2E_ONLY=${PGBATON_SOAK_ONLY:-}
rm -f "$PGBATON_RESULTS"
if [ "${PGBATON_FUZZ_TIME:-60s}" != 0 ]; then
	grep -rlE '^func Fuzz' --include='*_test.go' internal | xargs -n1 dirname | sort -u | while read -r dir; do
		grep -hoE '^func Fuzz\w+' "$dir"/*_test.go | cut -d' ' -f2 | while read -r target; do
			echo "=== soak: fuzzing $target in $dir"
			go test "./$dir" -run '^$' -fuzz "^$target\$" -fuzztime "${PGBATON_FUZZ_TIME:-60s}" </dev/null
		done
	done
fi
rc=0
round=0
while
	if [ -n "${PGBATON_SOAK_TIME:-}" ]; then
		[ "$SECONDS" -lt "$PGBATON_SOAK_TIME" ]
	else
		[ "$round" -lt "${PGBATON_SOAK_ROUNDS:-3}" ]
	fi
do
	round=$((round + 1))
	if [ $((round % 2)) = 0 ]; then export PGBATON_FAILURE_VIP=1; else unset PGBATON_FAILURE_VIP; fi
	echo "=== soak: round $round${PGBATON_FAILURE_VIP:+, standbys of the failure suite follow the virtual IP}"
	if ! scripts/test.sh e2e; then
		rc=1
		for log in bin/test/e2e-?.log; do cp "$log" "${log%.log}.round$round.log"; done
		echo "=== soak: round $round failed, its logs are bin/test/e2e-*.round$round.log"
	fi
	[ ! -f "$PGBATON_RESULTS" ] || bin/pgbaton-lab results "$PGBATON_RESULTS"
done
exit $rc
