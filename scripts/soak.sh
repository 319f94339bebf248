#!/bin/bash
# The end-to-end tests again and again, with the agent killed at every effect of a handover
# and not only at a sample, sixty handovers with and sixty without an archive, every archive
# story, handovers on every version of PostgreSQL, and a minute for each fuzz target. Ends at
# the first failure, with exit code 1.
#
#   PGBATON_SOAK_ROUNDS  how often (default 3)
#   PGBATON_FUZZ_TIME    for each fuzz target (default 60s)
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/test.sh deps build
export PGBATON_KILL_ALL=1 PGBATON_ALL_VERSIONS=1 PGBATON_ALL_ARCHIVE=1 PGBATON_HANDOVERS=120 PGBATON_E2E_LATER= PGBATON_E2E_TIMEOUT=3h
grep -rlE '^func Fuzz' --include='*_test.go' internal | xargs -n1 dirname | sort -u | while read -r dir; do
	grep -hoE '^func Fuzz\w+' "$dir"/*_test.go | cut -d' ' -f2 | while read -r target; do
		echo "=== soak: fuzzing $target in $dir"
		go test "./$dir" -run '^$' -fuzz "^$target\$" -fuzztime "${PGBATON_FUZZ_TIME:-60s}" </dev/null
	done
done
for round in $(seq "${PGBATON_SOAK_ROUNDS:-3}"); do
	echo "=== soak: round $round"
	scripts/test.sh e2e
done
