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

.PHONY: help install up debug test check test-install test-page screenshots model sweep load mutants ci prove release review bench bench-loop bench-start bench-image prod down

help:
	@echo 'make up     run the services, and the payment test on every save: in a cluster under Tilt,'
	@echo '            or without Docker as local processes (MODE=cluster or MODE=local chooses);'
	@echo '            OVERLAY=flaky with a provider that cannot be relied on'
	@echo 'make debug  make up with the inspector of each service open on loopback, for .vscode/launch.json'
	@echo 'make test   check the types, the style and the manifests, and run every test that needs no cluster'
	@echo 'make check  just the types, the style and the manifests'
	@echo 'make test-install  fresh clones, each with a Node and an npm that users have: make up, its test, make check'
	@echo 'make model  run payments in RUNS random orders, with random mishaps, and check the seven rules'
	@echo 'make sweep  kill -9 each service at every step of a payment, and check the seven rules'
	@echo 'make load   pay beside 200 slow readers and 200 streams of the page: the time, the probes and the memory are bounded'
	@echo 'make mutants  take the guards out of a copy of the code, one after the other: a test must notice'
	@echo 'make test-page  the page of invoice-app in a real browser: Chromium or Chrome, CHROMIUM=path if it is not found'
	@echo 'make screenshots  the pictures of the page in docs/'
	@echo 'make ci     test in a cluster and tear it down (OVERLAY=dev or OVERLAY=prod)'
	@echo 'make prove  the long tests: make sweep, make load, and in a cluster pods that die while invoices are paid, restarts and'
	@echo '            a drained node under load, autoscaling, and each policy and each right taken out in turn'
	@echo 'make review what a change does to production: its manifests against those of BASE (main)'
	@echo 'make release  build and push the releases that REGISTRY lacks, and write what to apply to release.yaml'
	@echo 'make bench  invoices paid a second, next to the plain ways'
	@echo 'make bench-loop  how fast a save is served in a cluster (ROUNDS=50), next to the floor and the plain way'
	@echo 'make bench-start  how long make up takes from nothing and again, and where the time goes'
	@echo 'make bench-image  how large the prod image of SERVICE is, and what makes it so'
	@echo 'make prod   make up with the prod overlay'
	@echo 'make down   remove the cluster'

install:
	@PATH="$$HOST_PATH" NODE_OPTIONS="$$HOST_NODE_OPTIONS" scripts/install.sh

up: install
	@local/up.sh -- --overlay=$(OVERLAY)

debug: install
	@local/up.sh -- --overlay=$(OVERLAY) --debug

test: check
	@vitest run

check: install
	@scripts/check.sh

test-install: install
	@vitest run --config=tests/install/vitest.config.ts

# RUNS=10000 SEED=1; AT=… replays the failure that printed it.
model: install
	@tsx tests/payments/run-model.ts

sweep: install
	@tsx tests/payments/run-sweep.ts

load: install
	@tsx tests/payments/run-load.ts

mutants: install
	@tsx tests/payments/run-mutants.ts

test-page: install
	@tsx services/invoice-app/page-tests/run.ts

screenshots: install
	@tsx services/invoice-app/page-tests/screenshots.ts

ci: install
	@scripts/ci.sh

prove: sweep load
	@PROVE=yes OVERLAY=flaky scripts/ci.sh
	@PROVE=yes OVERLAY=prod scripts/ci.sh

# REGISTRY=ghcr.io/acme.
release: install
	@scripts/release.sh >release.yaml

# Needs no npm packages.
review:
	@scripts/review.sh

bench: install
	@tsx bench/payments.ts

bench-loop: install
	@tsx bench/loop/loop.ts

bench-start: install
	@tsx bench/start.ts

bench-image:
	@bench/image.sh

prod: install
	@MODE=cluster local/up.sh -- --overlay=prod

down: install
	@scripts/down.sh
