# Another shell than make's own: else make 3.81 looks up commands in the PATH that it was started with.
SHELL := bash
# The user's own, for npm: the Node of node_modules must not run the npm that replaces node_modules.
export HOST_PATH := $(PATH)
# npm may need NODE_OPTIONS, for a company's certificates.
export HOST_NODE_OPTIONS := $(NODE_OPTIONS)
export PATH := $(CURDIR)/.payloop/bin:$(CURDIR)/node_modules/.bin:$(PATH)

# What the user has set for other programs must not decide how these run: where Postgres is, how it is spoken to, what
# Node loads at its start, where `cd` goes, and which proxy stands before this machine itself.
unexport $(filter PG%,$(.VARIABLES)) CDPATH NODE_OPTIONS NODE_USE_ENV_PROXY
export NO_PROXY := localhost,.localhost,127.0.0.1,::1,$(NO_PROXY),$(no_proxy)
export no_proxy := $(NO_PROXY)

# By themselves tsx, npm, vitest and prettier keep compiled code in the temporary folder that all users share, and run
# what they find there, whoever put it there.
export NODE_COMPILE_CACHE := $(CURDIR)/.payloop/compile-cache
export TSX_DISABLE_CACHE := 1

OVERLAY ?= dev
export OVERLAY

POST = curl --disable --noproxy '*' --silent --show-error --fail-with-body --write-out '\n' --request POST \
	$(or $(URL),http://localhost:$(or $(INVOICE_APP_PORT),8081))

# What people type. `make help` prints what is behind ##.
.PHONY: help up debug test ci prove bench review release service pay reset down
help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' $(MAKEFILE_LIST) | expand -t 14
	@echo 'parts of these by themselves: make $(PARTS)'

up: install ## run the services, and the payment test on every save: in a cluster, or without Docker (MODE=local); OVERLAY=flaky, prod
	@local/up.sh -- --overlay=$(OVERLAY)

debug: install ## make up with the inspector of each service open on loopback, for .vscode/launch.json
	@local/up.sh -- --overlay=$(OVERLAY) --debug

test: check ## the types, the style, the manifests, and the fast tests: none needs a cluster
	@vitest run --tags-filter='!slow'

ci: install ## the tests in a cluster that is made for them and torn down (OVERLAY=dev, OVERLAY=prod)
	@scripts/ci.sh

prove: sweep load model ## the long tests: kills, loads, and in a cluster chaos, restarts, drained nodes, each rule taken out in turn, a third service
	@PROVE=yes OVERLAY=flaky scripts/ci.sh
	@PROVE=yes OVERLAY=prod scripts/ci.sh
	@node --run ci-service

bench: install ## invoices paid a second, next to the plain ways
	@tsx bench/payments.ts

# Needs no npm packages.
review: ## what a change does to production: its manifests against those of BASE (main)
	@scripts/review.sh

release: install ## build and push the releases that REGISTRY lacks, and write what to apply to release.yaml
	@scripts/release.sh >release.yaml

service: install ## add a service: NAME=… PORT=…, and TEAM=… unless that is its name and -team
	@tsx scripts/new-service.ts

pay: ## pay, in what make up runs
	@$(POST)/invoices/pay

reset: ## make its invoices anew
	@$(POST)/reset

down: install ## remove the cluster
	@scripts/down.sh

# The scripts of package.json. model: RUNS=10000 SEED=1, AT=… replays the failure that printed it; bench-loop: ROUNDS=50.
PARTS := check test-slow test-install test-page test-service ci-service screenshots model sweep load mutants bench-loop bench-start bench-image
.PHONY: install $(PARTS)
install:
	@PATH="$$HOST_PATH" NODE_OPTIONS="$$HOST_NODE_OPTIONS" scripts/install.sh

$(PARTS): install
	@node --run $@
