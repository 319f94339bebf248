#!/bin/bash
# gofumpt, vet, a tidy go.mod and staticcheck, in the versions that go.mod pins. All run, also after one
# found something.
set -uo pipefail
cd "$(dirname "$0")/.."
bad=0

unformatted=$(go tool gofumpt -l cmd e2e internal) || bad=1
if [ -n "$unformatted" ]; then
	echo "gofumpt: these files are not formatted (make format):"
	echo "$unformatted"
	bad=1
fi
go vet ./... || bad=1
go mod tidy -diff || bad=1
go vet -tags faults ./internal/agent/... ./cmd/pgbaton-agent || bad=1
go tool staticcheck ./... || bad=1
[ $bad = 0 ] && echo "lint: gofumpt, vet and staticcheck have nothing to say"
exit $bad
