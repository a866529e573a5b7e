# `make` lists the targets. Everything works from a bare checkout with Python 3.11 or newer.

VENV := .venv
# Not to be set from outside (PYTHON is): when it is missing, $(VENV) is emptied and made anew.
override PY := $(VENV)/bin/python
# A lock's distributions, by uv; without a lock only uv itself.
INSTALL := $(PY) deploy/packages.py
SERVICES := $(PY) deploy/services.py run
STORES := $(SERVICES) --want nginx,chromium,faketime,pgbouncer,prometheus,alertmanager
# All tests but the slow: N processes side by side, which a few tests would not repay. One more than the cores of
# a small machine, since those that start servers often wait.
N := 3
ALL = -n $(N) --dist loadscope --max-worker-restart 0 $(QUICK)
QUICK := -m 'not slow'
ROWS := 10000000
# Named after the content, not dated: switching branches or restoring a cached .venv reinstalls
# only what really changed.
BASE := $(VENV)/.base-$(shell cksum < requirements/base.txt | cut -d' ' -f1)
DEV := $(VENV)/.dev-$(shell cat requirements/base.txt requirements/dev.txt | cksum | cut -d' ' -f1)
# Extras stay in the lock: an older pip that meets `coverage[toml]` where only `coverage` is pinned
# takes the newest there is, and refuses it for want of a hash. Universal: for each Python we test.
# The flags also stand in the locks' heads: Dependabot repeats those that it reads there.
FLAGS := --generate-hashes --no-strip-extras --universal --python-version 3.11
LOCK := pip compile --quiet $(FLAGS) --no-emit-index-url --no-emit-find-links \
	--custom-compile-command "make lock  (uv pip compile $(FLAGS))"
AUDIT := pip-audit@2.10.1 --require-hashes --disable-pip --progress-spinner off
LOCKED := requirements/base requirements/s3 requirements/otel requirements/engine requirements/dev \
	requirements/train benchmarks/requirements deploy/clients/requirements \
	sdks/python/tests/integrations/requirements examples/requirements
WORKFLOWS := .github/workflows/*.yml

# The tests start nearly two hundred processes: each would compile the whole project again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev run serve test test-all pytest hostile checks lint style types imports \
	migrations-check migrations-lint deploy-check chart check bench \
	litellm coverage run-two chaos soak image bench-disaster bench-batches bench-webhooks bench-live bench-idle bench-neighbours bench-memory bench-detector bench-engine \
	bench-drain bench-hot-path \
	bench-rows robin-real messages pictures screenshots train clients sdk-test cold lock audit migrations format

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) \
		| while IFS='	' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

setup: $(BASE) ## Create .venv with what the gateway needs
	@:

setup-dev: $(DEV) ## The same with what checking needs on top
	@:

# Debian keeps ensurepip in a package of its own (python3-venv). Without it the machine's own pip
# can fill the environment; only when that is missing as well does something have to be installed.
$(PY):
	@for python in $${PYTHON:-python3.11 python3 python3.14 python3.13 python3.12}; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			break; \
		fi; \
		python=; \
	done; \
	if [ -z "$$python" ] && [ -n "$$PYTHON" ]; then \
		echo "PYTHON names $$PYTHON, which is no Python 3.11 or newer here: $$("$$PYTHON" --version 2>&1)" >&2; \
		exit 1; \
	fi; \
	if [ -z "$$python" ]; then \
		echo "Python 3.11 or newer is needed, found: $$(python3 --version 2>&1). Install it, or" \
			"name it: PYTHON=/path/to/python3.11 make setup" >&2; \
		exit 1; \
	fi; \
	echo "Creating $(VENV) with $$("$$python" --version)"; \
	if "$$python" -c 'import ensurepip' 2>/dev/null; then \
		"$$python" -m venv --clear $(VENV); exit; \
	fi; \
	if "$$python" -m pip --python "$$(command -v "$$python")" list >/dev/null 2>&1; then \
		"$$python" -m venv --clear --without-pip $(VENV) \
			&& "$$python" -m pip --python $(VENV)/bin/python --disable-pip-version-check \
				--no-input --quiet install pip; \
		exit; \
	fi; \
	package="$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "Python's venv is incomplete here: please install $$package." >&2; exit 1; \
	fi; \
	echo "Installing $$package with apt-get"; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get -qq update && apt-get -qq install -y --no-install-recommends "$$package" >/dev/null \
		&& "$$python" -m venv --clear $(VENV)

$(BASE): | $(PY)
	@echo "Installing requirements/base.txt into $(VENV) (the first time takes a minute)"
	@$(INSTALL) requirements/base.txt
	@rm -f $(VENV)/.base-* && touch $@

# dev.txt holds everything that base.txt holds, so one installation makes both stamps.
$(DEV): | $(PY)
	@echo "Installing requirements/dev.txt into $(VENV) (the first time takes a minute)"
	@$(INSTALL) requirements/dev.txt --only
	@rm -f $(VENV)/.base-* $(VENV)/.dev-* && touch $(BASE) $@

run: setup ## Try everything on this machine, without services (Ctrl-C ends it)
	@exec $(PY) manage.py run $(ARGS)

serve: setup ## The web processes as in production; the environment names the stores
	@exec $(PY) manage.py serve

ifdef T
test: pytest ## What a change has to pass; T=path runs only those tests, slow or not
else
test: # The stages one after the other; at the end the seconds of each
	@times=; for stage in setup-dev checks pytest; do \
		began=$$(date +%s); code=0; \
		$(MAKE) --no-print-directory $$stage || code=$$?; \
		times="$$times  $$stage $$(($$(date +%s) - began)) s"; \
		[ $$code = 0 ] || break; \
	done; \
	[ $$code = 0 ] && echo "Passed:$$times" || echo "Failed in $$stage:$$times" >&2; \
	exit $$code
endif

# As `test`, and the tests marked slow: what main has to pass once a change has landed.
test-all: ## test, with the browser tests and all that starts many processes
	@$(MAKE) --no-print-directory test QUICK=

# A test of processes or threads may be too late for its waits where hundreds of others share two
# cores: a few are asked once more, with the machine to themselves, and have then failed for good.
AGAIN := .pytest_cache/v/again
pytest: setup-dev ## Only the tests, with PostgreSQL and Redis (T=path, or any arguments)
	@rm -rf .pytest_cache
	@$(STORES) -- $(PY) -m pytest $(if $(T),$(T),$(ALL)) || { \
		code=$$?; [ -z "$(T)$(findstring --cov,$(ALL))" ] && grep -q :: $(AGAIN) 2>/dev/null || exit $$code; \
		echo "Once more, alone, what failed beside the others:"; \
		$(STORES) -- $(PY) -m pytest -rpfEs --no-header --last-failed --last-failed-no-failures none; \
	}

# Apart from `test`: before Python 3.14, counting branches makes all that runs twice as slow.
coverage: QUICK :=
coverage: ALL += --cov --cov-branch --cov-report=term
coverage: pytest ## All tests, failing below 90 % branch coverage

run-two: setup-dev ## The tests of served processes behind pgbouncer: two gateways, two workers (T=path)
	@$(SERVICES) --need postgres,redis,pgbouncer --want nginx,chromium,faketime -- \
		$(PY) -m pytest -m served $(T)

hostile: setup-dev ## Only the tests of what one customer, row, host or version does to the others
	@$(STORES) -- $(PY) -m pytest -n $(N) --dist loadscope -m hostile

checks: setup-dev # What needs no stores, two at a time: the types take as long as all others
	@$(MAKE) --no-print-directory -j 2 types style imports migrations-check migrations-lint deploy-check

lint: style types imports migrations-lint ## Style, types, directions of imports, locks of migrations

style: setup-dev
	@$(VENV)/bin/ruff check --quiet
	@$(VENV)/bin/ruff format --check --quiet || { echo "Run: make format" >&2; exit 1; }

types: setup-dev
	@$(PY) -m mypy --no-error-summary

imports: setup-dev
	@$(VENV)/bin/lint-imports --no-logo >$(VENV)/imports.log 2>&1 \
		|| { cat $(VENV)/imports.log >&2; exit 1; }

messages: setup-dev ## Take up new sentences in the catalogues under locale/, and compile them
	@$(PY) -m deploy.messages

migrations-lint: setup-dev # What a migration locks, rewrites, or takes away from old processes
	@$(PY) -m deploy.migrations

migrations-check: setup-dev
	@$(PY) manage.py makemigrations --check --dry-run

# What GitHub reads is refused there without a word in a pull request, so its schemas are held here.
deploy-check: setup-dev ## Dockerfile, docker-compose.yml, what GitHub and pre-commit read
	@$(VENV)/bin/hadolint Dockerfile
	@check() { \
			report=$$($(VENV)/bin/check-jsonschema --builtin-schema "$$@") || { echo "$$report" >&2; false; }; \
		}; \
		check vendor.compose-spec docker-compose.yml \
		&& check vendor.github-workflows $(WORKFLOWS) \
		&& check custom.github-workflows-require-timeout $(WORKFLOWS) \
		&& check vendor.dependabot .github/dependabot.yml \
		&& check vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml \
		&& check vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	@$(VENV)/bin/zizmor --offline --no-progress --quiet --persona pedantic .github
	@$(VENV)/bin/pre-commit validate-config

# Both are built by Go, which takes a minute or two each the first time.
chart: setup-dev ## The Helm chart: install helm and kubeconform if missing, lint, render, validate
	@command -v helm >/dev/null || { command -v go >/dev/null || { echo "Please install Go, or helm" >&2; exit 1; }; \
		echo "Building helm"; GOBIN=$(CURDIR)/$(VENV)/bin go install helm.sh/helm/v3/cmd/helm@v3.22.0; }
	@command -v kubeconform >/dev/null || { command -v go >/dev/null || { echo "Please install Go, or kubeconform" >&2; exit 1; }; \
		echo "Building kubeconform"; GOBIN=$(CURDIR)/$(VENV)/bin go install github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0; }
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m pytest -q deploy/tests/test_chart.py

check: test-all ## test-all, and Django's own look at a deployment
	@SECRET_KEY=$$($(PY) -c 'import secrets; print(secrets.token_urlsafe(60))') \
		$(PY) manage.py check --deploy --fail-level ERROR

litellm: setup-dev ## The page about LiteLLM with the real proxy (downloads it once)
	@$(PY) -m deploy.litellm >/dev/null
	@LITELLM=1 $(SERVICES) -- $(PY) -m pytest gateway_project/tests/test_litellm_proxy.py $(ARGS)

bench: setup-dev ## Load tests against the running code (ARGS=…)
	@$(SERVICES) -- $(PY) -m benchmarks.run $(ARGS)

bench-batches: setup-dev ## Batch items per second of one worker process (ARGS=…)
	@$(SERVICES) --want nginx -- $(PY) -m benchmarks.batches $(ARGS)

bench-drain: setup-dev ## Usage rows per second through one worker process (ARGS=…)
	@$(SERVICES) -- $(PY) -m benchmarks.drain $(ARGS)

bench-hot-path: setup-dev ## What a detection costs a web process, counted (ARGS=--beside=FOLDER)
	@$(SERVICES) --want nginx -- $(PY) -m benchmarks.hot_path $(ARGS)

bench-live: setup-dev ## The live queue with 1,000 watchers on one worker (ARGS=…)
	@$(SERVICES) -- $(PY) -m benchmarks.live $(ARGS)

robin-real: setup-dev ## The real Robin and Robin UI (ROBIN=checkout UI=checkout): docs/robin-real.md
	@[ -n "$(ROBIN)" ] || { echo "make robin-real ROBIN=checkout UI=checkout: see docs/robin-real.md" >&2; exit 2; }
	@$(SERVICES) --want nginx,chromium -- $(PY) -m deploy.robin_real --robin $(ROBIN) $(if $(UI),--ui $(UI)) $(ARGS)

bench-idle: setup-dev ## CPU and memory of `make run` while nobody uses it (ARGS=…)
	@$(PY) -m benchmarks.idle $(ARGS)

bench-neighbours: setup-dev ## What ten tenants at full speed cost an eleventh (ARGS=…)
	@$(SERVICES) --want nginx -- $(PY) -m benchmarks.neighbours $(ARGS)

bench-memory: setup-dev ## What processes grow by, at rest and under load (ARGS=…)
	@$(SERVICES) --want nginx -- $(PY) -m benchmarks.memory $(ARGS)

sdk-test: setup-dev ## The client libraries: vectors, and a served gateway (needs Go and Node)
	@$(PY) sdks/test.py

bench-rows: setup-dev ## What everything costs beside ten million rows (ROWS=1000000: a tenth)
	@$(SERVICES) -- sh -c '$(PY) manage.py migrate --verbosity 0 \
		&& $(PY) manage.py fill_usage --rows $(ROWS) $(ARGS)'

image: setup-dev ## Build the image, start each of its roles, say its size (ARGS=--extra=engine)
	@$(SERVICES) -- $(PY) -m deploy.image $(ARGS)

soak: setup-dev ## Memory, files and tables of a gateway over an hour (ARGS=--minutes=5)
	@$(SERVICES) --want nginx -- $(PY) -m benchmarks.soak $(ARGS)

chaos: setup-dev ## Break an installation on several hosts under load, and count what it costs (ARGS=…)
	@$(SERVICES) --need haproxy --want postgres,redis,pgbouncer,nginx -- $(PY) -m benchmarks.chaos $(ARGS)

bench-disaster: setup-dev ## How long backup and restore take of about ten million rows (ARGS=…)
	@$(SERVICES) --need redis --want postgres -- $(PY) -m benchmarks.disaster $(ARGS)

bench-webhooks: setup-dev ## Deliveries per second of one worker process (ARGS=…)
	@$(SERVICES) --want nginx -- $(PY) -m benchmarks.webhooks $(ARGS)

bench-detector: setup-dev ## The embedded detector on one core: CPU a text, by length and kind (ARGS=…)
	@$(PY) -m benchmarks.detector $(ARGS)

bench-engine: setup-dev ## Our own engine on one core (ARGS=--model=FOLDER)
	@$(PY) -m benchmarks.engine $(ARGS)

pictures: setup-dev ## Take docs/screenshots anew, of what `make run` serves meanwhile
	@DJANGO_SETTINGS_MODULE=gateway_project.settings $(PY) -m portal.tests.pictures $(ARGS)

screenshots: setup-dev ## Each page in both themes, wide and narrow, into var/screenshots, of `make run`
	@DJANGO_SETTINGS_MODULE=gateway_project.settings $(PY) -m portal.tests.pictures --all $(ARGS)

clients: setup-dev ## Clients by four generators call a served gateway (needs npm, Go, the network)
	@$(PY) deploy/clients/run.py

# In an environment of its own: what it needs must not come between the gateway and its lock.
train: | $(PY) ## Make the embedded detector's weights anew (DATA=folder of labelled JSONL)
	@[ -n "$(DATA)" ] || { echo "make train DATA=path: see docs/detectors.md" >&2; exit 2; }
	@$(PY) -m venv $(VENV)/train && $(VENV)/train/bin/python -m pip --disable-pip-version-check \
		--no-input --quiet install -r requirements/train.txt
	@OPENBLAS_NUM_THREADS=1 $(VENV)/train/bin/python -m detection.training $(DATA) $(ARGS)

cold: ## Both commands of the README in an empty clone, with a fresh HOME and no cache (T=path)
	@PYTHON="$(PYTHON)" T="$(T)" bash deploy/cold.sh

lock: | $(PY) ## Pin what each requirements.in names, with hashes
	@$(INSTALL)
	@for name in $(LOCKED); do \
		echo "Locking $$name.txt"; \
		$(VENV)/bin/uv $(LOCK) $$name.in -o $$name.txt || exit 1; \
	done

audit: | $(PY) ## Ask for known holes in what is locked (needs the network)
	@$(INSTALL)
	@for name in $(LOCKED); do \
		echo "Auditing $$name.txt"; \
		$(VENV)/bin/uvx $(AUDIT) -r $$name.txt || exit 1; \
	done

migrations: setup-dev ## Write the migrations that the models ask for
	@$(PY) manage.py makemigrations $(ARGS)

format: setup-dev ## Let ruff correct what it can
	@$(VENV)/bin/ruff check --fix
	@$(VENV)/bin/ruff format
