#!/bin/bash
# The end-to-end tests again and again, with the agent killed at every effect of a handover
# and not only at a sample, and handovers on every version of PostgreSQL. Ends at the first failure, with exit code 1.
#
#   PGBATON_SOAK_ROUNDS  how often (default 3)
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/test.sh deps build
export PGBATON_KILL_ALL=1 PGBATON_ALL_VERSIONS=1 PGBATON_E2E_TIMEOUT=3h PGBATON_E2E_SKIP=
for round in $(seq "${PGBATON_SOAK_ROUNDS:-3}"); do
	echo "=== soak: round $round"
	scripts/test.sh e2e
done
