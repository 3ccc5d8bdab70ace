# With its default shell make 3.81 looks commands up in the PATH it was started with, and ignores the one set below.
SHELL := bash
# npm runs with the user's PATH: the Node of node_modules must not run the npm that replaces node_modules.
export HOST_PATH := $(PATH)
# npm may need NODE_OPTIONS, for a company's certificates.
export HOST_NODE_OPTIONS := $(NODE_OPTIONS)
export PATH := $(CURDIR)/.payloop/bin:$(CURDIR)/node_modules/.bin:$(PATH)

# Variables that the user set for other programs must not change these: the address and settings of Postgres, modules
# that Node preloads, the target of `cd`, and a proxy in front of localhost.
unexport $(filter PG%,$(.VARIABLES)) CDPATH NODE_OPTIONS NODE_USE_ENV_PROXY
export NO_PROXY := localhost,.localhost,127.0.0.1,::1,$(NO_PROXY),$(no_proxy)
export no_proxy := $(NO_PROXY)

# By default tsx, npm, vitest and prettier cache compiled code in the temporary folder that all users share. They would
# run code that another user put there.
export NODE_COMPILE_CACHE := $(CURDIR)/.payloop/compile-cache
export TSX_DISABLE_CACHE := 1

OVERLAY ?= dev
export OVERLAY

POST = curl --disable --noproxy '*' --silent --show-error --fail-with-body --write-out '\n' --request POST \
	$(or $(URL),http://localhost:$(or $(INVOICE_APP_PORT),8081))

# The targets that people type. `make help` prints the text after ##.
.PHONY: help up debug test ci prove bench review release service pay reset down
help: ## print this list
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' $(MAKEFILE_LIST) | expand -t 14
	@echo 'targets for single parts of these: make $(PARTS)'

up: install ## run the services and, on every save, the payment test: in a cluster, or without Docker (MODE=local); OVERLAY=flaky, prod
	@local/up.sh -- --overlay=$(OVERLAY)

debug: install ## like make up, with each service's inspector open on loopback for .vscode/launch.json
	@local/up.sh -- --overlay=$(OVERLAY) --debug

test: install ## check types, style and manifests, and run the fast tests, without a cluster
	@scripts/test.sh

ci: install ## run the cluster tests; if there is no cluster, create one and remove it afterwards (OVERLAY=dev, OVERLAY=prod)
	@scripts/ci.sh

prove: sweep load model ## run the long tests: kills, load, and in a cluster chaos, restarts, drained nodes, each rule removed in turn, a third service
	@TESTS=prove OVERLAY=flaky scripts/ci.sh
	@TESTS=prove OVERLAY=prod scripts/ci.sh
	@node --run ci-service

bench: install ## measure invoices paid per second, compared with plain implementations
	@tsx bench/payments.ts

# Needs no npm packages.
review: ## show how a change affects production: its manifests compared with those of BASE (main)
	@scripts/review.sh

release: install ## build and push the releases that REGISTRY lacks, and write the manifests to apply to release.yaml
	@scripts/release.sh >release.yaml

service: install ## add a service: NAME=… PORT=… TEAM=… (TEAM defaults to NAME-team)
	@tsx scripts/new-service.ts

pay: ## pay the invoices of the running make up
	@$(POST)/invoices/pay

reset: ## reset the invoices of the running make up
	@$(POST)/reset

down: install ## remove the cluster
	@scripts/down.sh

# Scripts of package.json. model takes RUNS=10000 SEED=1, and AT=… from a printed failure; bench-loop takes ROUNDS=50.
PARTS := check test-slow test-install test-page test-service ci-loop ci-service screenshots model sweep load mutants bench-loop bench-start bench-image
.PHONY: install $(PARTS)
install:
	@PATH="$$HOST_PATH" NODE_OPTIONS="$$HOST_NODE_OPTIONS" scripts/install.sh

$(PARTS): install
	@node --run $@
