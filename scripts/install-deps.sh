#!/bin/bash
# Installs the Debian packages that the lab, the demo, the tests and the benchmark need,
# and starts nothing: no Pacemaker, no Corosync, no PostgreSQL cluster on this machine,
# not now and not at the next boot.
#
#   scripts/install-deps.sh [lab|test]      default: lab
#
# lab: a cluster in namespaces (make demo, make bench). test: also what only the tests
# need. Packages that are there are left alone; when all are there, apt is not called.
#
# Must be run as root, since it installs, and since the lab makes namespaces.
set -euo pipefail

say() { echo "install-deps: $*"; }
fail() {
	say "$*" >&2
	exit 1
}

lab=(
	corosync pacemaker pacemaker-cli-utils resource-agents # the cluster
	resource-agents-paf                                    # the agent to compare with
	postgresql-15 postgresql-client-15                     # server, pg_waldump, pg_controldata
	tini nftables iproute2 procps                          # the lab's nodes and the network between them
)
test=(
	crmsh pcs     # what people configure a cluster with: they must read the agent's meta-data
	libxml2-utils # xmllint
	groff-base    # the man pages' form
	systemd dbus  # nodes that boot as people's do; on this machine it stays what it is
)
# What must not be enabled: the units of the packages above, and of what they depend on.
units=(corosync corosync-notifyd pacemaker pcsd pcsd-ruby logd openhpid pgbouncer postgresql nftables)

want=("${lab[@]}")
case ${1:-lab} in
lab) ;;
test)
	want+=("${test[@]}")
	# The servers of the other majors come from an npm package: scripts/postgres-matrix.sh.
	command -v npm >/dev/null || want+=(npm)
	;;
*) fail "expected lab or test, found $1" ;;
esac

[ "$(id -u)" = 0 ] || fail "run this as root: it installs packages, and the lab makes namespaces and mounts"
[ -f /etc/debian_version ] || fail "this installs Debian's packages, and this is not Debian: install by hand ${want[*]}"

missing=()
for p in "${want[@]}"; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)" = installed ] || missing+=("$p")
done
if [ ${#missing[@]} = 0 ]; then
	say "all ${#want[@]} packages are there"
	exit 0
fi
say "installing ${missing[*]}"

# What is changed for the duration is put back, however this ends.
policy=/usr/sbin/policy-rc.d
nocluster=/etc/postgresql-common/createcluster.d/pgbaton-no-main.conf
enabled=$(mktemp)
ours=
cleanup() {
	[ -z "$ours" ] || rm -f "$policy"
	rm -f "$nocluster" "$enabled"
}
trap cleanup EXIT

if [ -e "$policy" ]; then
	out=0
	"$policy" postgresql start >/dev/null 2>&1 || out=$?
	[ $out = 101 ] || fail "$policy is there and allows services to start (exit $out, expected 101): packages would start Pacemaker on this machine. Remove it, or let it exit with 101"
else
	say "no service starts: $policy exits with 101 until this is done"
	ours=1
	printf '#!/bin/sh\n# Of pgbaton'\''s scripts/install-deps.sh, which removes it at its end.\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi
say "no PostgreSQL cluster \"main\" is made: create_main_cluster = false until this is done"
mkdir -p "$(dirname "$nocluster")"
echo "create_main_cluster = false" >"$nocluster"

wants() { find /etc/systemd/system -path '*.wants/*' -name "$1.service" 2>/dev/null; }
for u in "${units[@]}"; do
	if [ -n "$(wants "$u")" ]; then echo "$u" >>"$enabled"; fi
done
clusters=$(ls -d /etc/postgresql/*/* 2>/dev/null || true)

export DEBIAN_FRONTEND=noninteractive
apt-get -q update
apt-get -q install -y --no-install-recommends -o Dpkg::Options::=--force-confold "${missing[@]}"

# Packages enable their units even where they may not start them. Those that were not
# enabled before are disabled again.
for u in "${units[@]}"; do
	if [ -n "$(wants "$u")" ] && ! grep -qx "$u" "$enabled"; then
		say "$u does not start at boot: disabled"
		if [ -e "/etc/init.d/$u" ]; then update-rc.d "$u" disable >/dev/null 2>&1 || true; fi
		# As "systemctl disable" does; that command is not everywhere, the links are.
		wants "$u" | xargs rm -f
	fi
done
[ "$(ls -d /etc/postgresql/*/* 2>/dev/null || true)" = "$clusters" ] ||
	fail "a PostgreSQL cluster was made, though create_main_cluster was false: $(ls -d /etc/postgresql/*/*)"
say "installed ${missing[*]}; nothing was started"
