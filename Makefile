# make build      bin/pgbaton-agent, bin/pgbaton, bin/pgbaton-lab
# make install    DESTDIR and PREFIX as usual, PREFIX is /usr by default
# make demo       a real cluster passes the primary role around under write load
# make test       everything that is tested; .ci/run is this
# make bench      handovers beside those of the agent pgsqlms, and where the time goes
# make soak       the end-to-end tests again and again, with every kill point; a table
# make lint       gofumpt, vet and staticcheck;  make format  puts it right
#
# demo, test, bench and soak install the Debian packages they need, say which, and need
# root. They start no service on this machine: see scripts/install-deps.sh.

DESTDIR ?=
PREFIX  ?= /usr
GO      ?= go
# The agent is started every few seconds on every node: static, without symbols.
export CGO_ENABLED = 0

VERSION := $(shell git -c safe.directory='*' describe --tags --match 'v*' --dirty 2>/dev/null | sed 's/^v//')
ifeq ($(VERSION),)
VERSION := 0.1.0+$(shell git -c safe.directory='*' describe --always --dirty 2>/dev/null || echo unknown)
endif
BUILD = $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'

# What is there to build: one program a directory.
PROGRAMS := $(notdir $(patsubst %/,%,$(wildcard cmd/*/)))

.PHONY: all build install uninstall demo test bench soak lint format clean deps $(PROGRAMS)

all: build

build: $(PROGRAMS)

$(PROGRAMS):
	@echo "building bin/$@"
	@$(BUILD) -o bin/$@ ./cmd/$@

# The agent is renamed into place: Pacemaker may run it at any moment, and a node without an agent is one that must not run
# PostgreSQL.
install: build
	install -D -m 755 bin/pgbaton-agent $(DESTDIR)$(PREFIX)/lib/ocf/resource.d/pgbaton/.postgresql.new
	mv -f $(DESTDIR)$(PREFIX)/lib/ocf/resource.d/pgbaton/.postgresql.new $(DESTDIR)$(PREFIX)/lib/ocf/resource.d/pgbaton/postgresql
	install -D -m 755 bin/pgbaton $(DESTDIR)$(PREFIX)/bin/pgbaton
	install -D -m 644 docs/man/pgbaton.1 $(DESTDIR)$(PREFIX)/share/man/man1/pgbaton.1
	install -D -m 644 docs/man/ocf_pgbaton_postgresql.7 $(DESTDIR)$(PREFIX)/share/man/man7/ocf_pgbaton_postgresql.7

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/lib/ocf/resource.d/pgbaton/postgresql $(DESTDIR)$(PREFIX)/bin/pgbaton \
		$(DESTDIR)$(PREFIX)/share/man/man1/pgbaton.1 $(DESTDIR)$(PREFIX)/share/man/man7/ocf_pgbaton_postgresql.7

deps:
	scripts/install-deps.sh lab

demo: deps build
	bin/pgbaton-lab demo

bench: deps build
	bin/pgbaton-lab bench $(BENCH)

test:
	scripts/test.sh

soak:
	scripts/soak.sh

lint:
	scripts/lint.sh

format:
	$(GO) tool gofumpt -w cmd e2e internal

clean:
	rm -rf bin
