# Warren: how it is built, proved and measured. `make help` lists the targets.
#
# `make test` is what CI runs; it installs what it needs (Debian packages where
# it is root, Go modules and tools everywhere) and ends with a count per step.
# Steps that need more than a line live in tests/steps, a Go program of the
# standard library only.

SHELL := /bin/sh
.DEFAULT_GOAL := help

GO       ?= go
PREFIX   ?= /usr/local
DESTDIR  ?=
FUZZTIME ?= 60s
SEEDS    ?= 1000
SOAKTIME ?= 10m
DECISIONS ?= 10000000

# The commit goes into the binaries through the build information that Go
# records, and only where git can tell it.
VCS   := $(shell git rev-parse --verify -q HEAD >/dev/null 2>&1 && echo true || echo false)
BUILD := $(GO) build -trimpath -buildvcs=$(VCS)
STEPS := CGO_ENABLED=0 $(GO) build -o bin/tools/steps ./tests/steps && bin/tools/steps

NODE_SYSTEMS := linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64

# Rings 1 and everything else that needs neither root nor a built binary; the
# packages left out have a target of their own below.
UNIT = $$($(GO) list ./... | grep -v -E '/tests/(arch|sim|lab|netns|cli|docs|bench|soak|demo)(/|$$)')

# Tests that are shorter with -short. The race detector makes them five to ten times
# as long, and most of them are of pure code, where it finds nothing: it runs them
# short, and once more they run without it in full length.
LONG = $$(grep -rl --include='*_test.go' 'testing\.Short()' acl client cmd coordinator netstack | xargs -n1 dirname | sort -u | sed 's|^|./|')

.PHONY: help
help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/warren, bin/warren-relay and bin/warren-coordinator
	@mkdir -p bin
	@echo "build: bin/warren and bin/warren-relay (static), bin/warren-coordinator (cgo, for SQLite)"
	@CGO_ENABLED=0 $(BUILD) -o bin/warren ./cmd/warren
	@CGO_ENABLED=0 $(BUILD) -o bin/warren-relay ./cmd/warren-relay
	@CGO_ENABLED=1 $(BUILD) -o bin/warren-coordinator ./cmd/warren-coordinator

.PHONY: build-all
build-all: ## cross-compile the node program for Linux, macOS and Windows into dist/
	@for system in $(NODE_SYSTEMS); do \
		os=$${system%/*}; arch=$${system#*/}; suffix=; [ $$os = windows ] && suffix=.exe; \
		echo "build-all: $$system"; \
		GOOS=$$os GOARCH=$$arch CGO_ENABLED=0 $(BUILD) -o dist/warren-$$os-$$arch$$suffix ./cmd/warren || exit 1; \
	done

.PHONY: test
test: ## everything CI runs, installing what it needs
	@$(MAKE) --no-print-directory install-needs build build-all lint arch generate unit sim-short fuzz-replay cli documents netns policy-cases deps
	@echo "test: every step passed"

.PHONY: check
check: test ## make test, then fail where the tree is not clean
	@git diff --quiet HEAD -- && [ -z "$$(git ls-files --others --exclude-standard)" ] || \
		{ echo "check: the tree is not clean:"; git status --short; exit 1; }

.PHONY: install-needs
install-needs:
	@$(STEPS) install

.PHONY: unit
unit: ## all tests that need neither root nor network: with the race detector, and in full length
	@$(STEPS) test unit -race -short -shuffle=on -timeout=30m $(UNIT)
	@$(STEPS) test unit-long -shuffle=on -timeout=30m $(LONG)

.PHONY: arch
arch: ## the rules of the tree: imports, purity, documentation, sizes, dependencies
	@$(STEPS) test arch -count=1 ./tests/arch

.PHONY: sim
sim: ## the simulated system, and pairs behind NATs, with SEEDS=1000 seeds; prints the seed that fails
	@$(STEPS) test sim -count=1 -timeout=2h ./tests/sim/... ./netstack/path -args -seeds=$(SEEDS)

.PHONY: sim-short
sim-short:
	@$(STEPS) test sim -count=1 -timeout=30m ./tests/sim/...
	@$(STEPS) test sim-race -race -short -count=1 -timeout=30m ./tests/sim/...

.PHONY: netns
netns: ## ring 3: real kernel, real TUN devices, in network namespaces; says why it skips
	@$(STEPS) test netns -count=1 -timeout=30m ./tests/lab/... ./tests/netns/...

.PHONY: cli
cli: build ## the programs driven as a person would, by script
	@$(STEPS) test cli -count=1 -timeout=10m ./tests/cli/...

.PHONY: documents
documents: build ## what the documents tell people to type, typed (as root), and the service files
	@$(STEPS) test documents -count=1 -timeout=10m ./tests/docs/...

.PHONY: fuzz-replay
fuzz-replay: ## run the committed fuzz corpora; fails where a target has none
	@$(STEPS) replay ./...

.PHONY: fuzz
fuzz: ## fuzz every target for FUZZTIME=60s; fails where one executed nothing
	@$(STEPS) fuzz $(FUZZTIME) ./...

.PHONY: decisions
decisions: ## check DECISIONS=10000000 decisions of compiled policies and filter against the reference
	@$(GO) test -count=1 -timeout=3h -v -run='^Test(Compiled|Filtered)EqualsReference$$' ./acl/compile -args -decisions=$(DECISIONS)

.PHONY: nightly
nightly: ## what takes too long for make test: decisions, fuzz, sim
	@$(MAKE) --no-print-directory decisions fuzz sim

.PHONY: policy-cases
policy-cases: build
	@$(STEPS) policy-cases bin/warren ../shared/policy-cases/check.py

TOOLS := bin/tools/golangci-lint bin/tools/gofumpt bin/tools/staticcheck bin/tools/govulncheck bin/tools/benchstat

bin/tools/stamp: tests/tools/go.mod tests/tools/go.sum
	@mkdir -p bin/tools
	@echo "tools: building the linters (minutes on a new machine, seconds after)"
	@$(GO) build -C tests/tools -o ../../bin/tools/ $$($(GO) -C tests/tools list tool)
	@touch $@

.PHONY: lint
lint: bin/tools/stamp ## gofumpt, go vet, staticcheck and the rest of .golangci.yml
	@bin/tools/golangci-lint run --allow-parallel-runners ./...
	@echo "lint: clean"

.PHONY: format
format: bin/tools/stamp ## rewrite the tree in gofumpt's form
	@bin/tools/gofumpt -w acl client cmd coordinator netstack tests

.PHONY: generate
generate: ## delete generated code, regenerate, fail where that changes anything
	@$(STEPS) generate

.PHONY: deps
deps: bin/tools/stamp ## go.mod, checksums, licences, known vulnerabilities
	@$(STEPS) deps bin/tools/govulncheck

.PHONY: bench
bench: build ## the figures of tests/bench/README.md
	@$(GO) test -run='^$$' -bench=. -benchmem ./acl/... ./netstack/... | grep -v -e '^?' -e '^PASS' -e 'no test files'
	@$(GO) test -run='^$$' -bench=. -benchtime=20x -timeout=60m ./tests/bench/...

.PHONY: demo
demo: install-needs build ## a coordinator and three nodes on this machine: allowed, denied, cut
	@$(GO) run ./tests/demo

.PHONY: soak
soak: build ## SOAKTIME=10m of churn, watching for leaks; then, as root, the faults of the network in full length
	@$(GO) test ./tests/soak/... -count=1 -timeout=0 -v -args -duration=$(SOAKTIME)
	@$(GO) test ./tests/netns -count=1 -timeout=1h -v -run='^Test(Rebinding|Roaming|Stopped|Partitions)$$' -args -long

.PHONY: man
man: build ## manual pages and shell completions into dist/man
	@$(STEPS) man bin/warren dist/man
	@bin/tools/steps man bin/warren-coordinator dist/man
	@bin/tools/steps man bin/warren-relay dist/man

.PHONY: install
install: man ## programs, manual pages, completions and service files to PREFIX=/usr/local
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	for program in warren warren-coordinator warren-relay; do \
		install -m 0755 bin/$$program $(DESTDIR)$(PREFIX)/bin/ && \
		install -m 0644 dist/man/$$program.1 $(DESTDIR)$(PREFIX)/share/man/man1/ && \
		install -m 0644 dist/man/$$program $(DESTDIR)$(PREFIX)/share/bash-completion/completions/ && \
		install -m 0644 dist/man/_$$program $(DESTDIR)$(PREFIX)/share/zsh/site-functions/ && \
		install -m 0644 dist/man/$$program.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/ && \
		sed 's|/usr/local/bin|$(PREFIX)/bin|' cmd/$$program/$$program.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/$$program.service || exit 1; \
	done

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist
