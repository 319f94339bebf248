#!/bin/bash
# All tests, in stages, with the time that each took. A stage that fails does not keep the
# others from running; the exit code is non-zero if any failed. The full output of each
# stage is kept in bin/test/STAGE.log.
#
#   scripts/test.sh [stage ...]      default: all of them
#
# Needs root: the end-to-end tests run a real cluster in namespaces.
set -uo pipefail
cd "$(dirname "$0")/.."
logs=bin/test
mkdir -p $logs
summary=()
failed=0
began=$(date +%s)

# Shows of go test -v how each test and its stages went.
brief() { grep --line-buffered -E '^ *--- |^(FAIL|PASS|ok |panic:)|^ +[a-z_]+_test\.go:[0-9]+: ' || true; }

# Of a go test -v: which tests failed, and what each said last. It stands at the very end of all output, where it is not
# cut off, nor buried under what the cluster did.
failures() { # log...
	awk '
		/^=== (RUN|CONT|NAME) / { test = $3; next }
		/^ +[a-z_0-9]+_test\.go:[0-9]+: / && test == "" { print; next } # without -v it comes after its FAIL
		/^ +[a-z_0-9]+_test\.go:[0-9]+: / { said[test] = said[test] substr($0, 1, 400) "\n"; more = 12; next }
		/^        / && more > 0 && test != "" { said[test] = said[test] substr($0, 1, 200) "\n"; more--; next } # what it said goes on
		{ more = 0 }
		/^panic: / { print }
		/^ *--- FAIL: / {
			n = split(said[$3], line, "\n")
			print $0
			for (i = n > 31 ? n - 30 : 1; i < n; i++) print line[i]
		}
	' "$@"
}

stage() { # name command...
	local name=$1 start rc=0
	shift
	start=$(date +%s)
	echo "=== $name: $*"
	if [ "${verbose:-}" = brief ]; then
		"$@" 2>&1 | tee "$logs/$name.log" | brief
		rc=${PIPESTATUS[0]}
		if [ "$rc" != 0 ]; then
			echo "=== $name failed (exit $rc); the end of $logs/$name.log:"
			tail -n 300 "$logs/$name.log"
		fi
	else
		"$@" 2>&1 | tee "$logs/$name.log"
		rc=${PIPESTATUS[0]}
	fi
	local took=$(($(date +%s) - start))
	if [ "$rc" = 0 ]; then
		summary+=("$(printf '%-10s passed  %4d s' "$name" $took)")
	else
		summary+=("$(printf '%-10s FAILED  %4d s  (exit %s)' "$name" $took "$rc")")
		failed=1
	fi
}

# Everything but what runs a whole cluster.
unit() { go test -count=1 -timeout 8m $(go list ./... | grep -v -e /e2e -e /internal/lab$); }

lab() { go test -count=1 -timeout 8m -v ./internal/lab; }

# The tests on a cluster run as two programs side by side, each with one lab at a time: a lab mostly waits, for monitors,
# time-outs and nodes that boot. What the second program does not name, the first runs. On a machine that starts programs
# slowly a lab keeps both processors busy, and two would take longer than one after the other: there the second waits.
second='^(TestNoteNotPublished|TestStartedBehindItsNote|TestStranded|TestStaleNote|TestRollBack|TestHandoverWhile|TestQuorum|TestVersions|TestOCFTester|TestMonitor|TestBadInput|TestFailure|TestColdStart|TestShape|TestMaxLag|TestTraps_Cluster|TestHung|TestSlowIsNotDead|TestThrottled)'

# Runs before them, alone: it measures how long a person waits, and two busy labs on two processors are not what is measured.
quiet='^TestConsole_Status$'

# Left to make soak, said aloud, because they are long.
later=${PGBATON_E2E_LATER-'^(TestNetwork|TestTwins|TestKill|TestConsole_Killed|TestSetup_Killed|TestConsole_Check|TestColdStart|TestRewindKilled|TestHung|TestSlowIsNotDead|TestMaxLag|TestTasks|TestMachines|TestSetup_New|TestLateReturns|TestShape|TestRewindImpossible|TestMarkBeforeStarted|TestTwinReturns|TestPromotedByHandInMaintenance|TestThrottled|TestTwoAndAVote|TestReplayLag)$'}

# Left to make soak, too, on a machine that starts programs slowly; with one in three stories of those that tell many, and fewer
# handovers. Or make test would take 45 minutes there.
later_if_slow='^(TestNoteNotPublished|TestStartedBehindItsNote|TestPromotedByHand|TestStartedByHand|TestConsole_History|TestRejoinCommand|TestHandoverWhile|TestTraps_Cluster|TestSetup|TestOldPrimaryReturns|TestHistoryMissing|TestFullQueue|TestQuorum|TestSetup_Failures|TestStaleNote|TestStranded|TestScheduler)$'

# make soak sets another limit, and what more to test: see scripts/soak.sh.
e2e_limit=${PGBATON_E2E_TIMEOUT:-25m}

e2e_program() { # number, then a filter of tests
	local n=$1 rc=0
	shift
	(cd e2e && ../bin/test/e2e.test -test.v -test.count=1 -test.shuffle "${PGBATON_E2E_SHUFFLE:-off}" -test.timeout "$e2e_limit" "$@") >"$logs/e2e-$n.log" 2>&1 || rc=$?
	echo "=== e2e: program $n ended (exit $rc)"
	return $rc
}

e2e() {
	local one two all alone rest n slow rc=0
	go test -c -o bin/test/e2e.test ./e2e || return
	slow=$(bin/pgbaton-lab slowness) || return
	# Or the first lines shown would be those of the run before.
	for n in 0 1 2; do : >"$logs/e2e-$n.log"; done
	all=$(bin/test/e2e.test -test.list "${PGBATON_E2E_ONLY:-.}" | grep '^Test')
	if [ -z "$all" ]; then
		echo "=== e2e: no test is called ${PGBATON_E2E_ONLY:-.}"
		return 1
	fi
	if [ -n "$later" ] && [ -z "${PGBATON_E2E_ONLY:-}" ]; then # who names a test means it
		if [ "$slow" != 1.0 ]; then
			later="$later|$later_if_slow"
			export PGBATON_HANDOVERS=${PGBATON_HANDOVERS:-6} PGBATON_SHARE=${PGBATON_SHARE:-3}
			echo "=== e2e: this machine starts programs $slow times slower than a common one: one lab at a time, $PGBATON_HANDOVERS handovers, one story in $PGBATON_SHARE today"
		fi
		rest=$(grep -E "$later" <<<"$all" | paste -sd' ')
		all=$(grep -vE "$later" <<<"$all")
		[ -z "$rest" ] || echo "=== e2e leaves to make soak: $rest"
	fi
	# A program without a test passes.
	alone=$(grep -E "$quiet" <<<"$all" | paste -sd'|')
	all=$(grep -vE "$quiet" <<<"$all")
	e2e_program 0 -test.run "^($alone)\$" || rc=1
	brief <"$logs/e2e-0.log"
	e2e_program 1 -test.run "^($(grep -vE "$second" <<<"$all" | paste -sd'|'))\$" &
	one=$!
	tail -q -n +1 -F --pid=$one "$logs/e2e-1.log" 2>/dev/null | brief &
	if [ "$slow" != 1.0 ]; then
		wait $one || rc=1
		one=
	fi
	e2e_program 2 -test.run "^($(grep -E "$second" <<<"$all" | paste -sd'|'))\$" &
	two=$!
	tail -q -n +1 -F --pid=$two "$logs/e2e-2.log" 2>/dev/null | brief &
	[ -z "$one" ] || wait $one || rc=1
	wait $two || rc=1
	wait
	for n in 0 1 2; do
		if ! grep -q '^PASS$' "$logs/e2e-$n.log"; then
			rc=1
			echo "=== e2e: the end of $logs/e2e-$n.log:"
			tail -n 300 "$logs/e2e-$n.log"
		fi
	done
	return $rc
}

# What a newcomer runs first: it must end well, and be readable in 80 columns.
demo() {
	local rc=0
	bin/pgbaton-lab demo >"$logs/demo.out" 2>&1 || rc=$?
	tail -n 12 "$logs/demo.out"
	if LC_ALL=C.UTF-8 grep -nE '^.{81,}$' "$logs/demo.out"; then
		echo "demo: these lines are longer than 80 columns"
		rc=1
	fi
	[ $rc = 0 ] || cat "$logs/demo.out"
	return $rc
}

[ $# -gt 0 ] || set -- deps build lint matrix unit lab demo e2e
for s; do
	verbose=
	case $s in
	deps) stage deps scripts/install-deps.sh test ;;
	build) stage build make build ;;
	lint) stage lint scripts/lint.sh ;;
	matrix) stage matrix scripts/postgres-matrix.sh ;;
	unit) stage unit unit ;;
	lab) verbose=brief stage lab lab ;;
	demo) stage demo demo ;;
	e2e) stage e2e e2e ;;
	*)
		echo "test.sh: no stage $s: expected deps, build, lint, matrix, unit, lab, demo or e2e" >&2
		exit 2
		;;
	esac
	# Nothing can be tested without what they make.
	if [ $failed = 1 ] && { [ "$s" = deps ] || [ "$s" = build ]; }; then break; fi
done

echo
echo "stage      result    time"
printf '%s\n' "${summary[@]}"
took=$(($(date +%s) - began))
if [ $failed = 1 ]; then
	for s; do
		case $s in
		unit | lab) failures "$logs/$s.log" ;;
		demo) grep -hA 3 'NOT AS IT SHOULD BE' $logs/demo.out ;;
		e2e) failures $logs/e2e-[012].log ;;
		esac
	done
	echo
fi
if [ $failed = 0 ]; then
	echo "all passed, $((took / 60)) min $((took % 60)) s"
else
	echo "FAILED, $((took / 60)) min $((took % 60)) s"
fi
exit $failed
