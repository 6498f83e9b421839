# `make` lists the targets. Everything that is installed is pinned by hash, in the requirements*.lock files.

# Not 3.14: onnxruntime-extensions, which reads the encoder's words, has no wheel for it yet.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
UV := 0.13.9
TORCH := 2.13.0
APT := dbus dbus-user-session libpam-systemd gnome-keyring libsecret-tools systemd-container nftables uidmap \
	chromium chromium-driver fonts-dejavu-core strace iproute2

# Where the system's Python has moved on to another version an environment of the earlier one holds nothing.
$(shell test ! -e .venv/.installed || $(BIN)/python -P -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("aiohttp"))' \
	2>/dev/null || rm -rf .venv)

.PHONY: help install run run-pair test test-deps lint docs bench train-deps lock clean
.DELETE_ON_ERROR:

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS='	' read -r name what; do \
		printf '  make %-12s%s\n' "$$name" "$$what"; done

install: .venv/.installed ## create .venv with upcall and its tests' tools; compiles llama.cpp the first time

run: install ## answer six prompts with the embedded model, then keep serving
	$(BIN)/upcall pull smollm2-135m use-multilingual
	$(BIN)/python -m daemon.tools.demo

run-pair: install ## the same with a second, larger local model in the place of the cloud
	$(BIN)/upcall pull smollm2-135m use-multilingual qwen2.5-coder-1.5b
	$(BIN)/python -m daemon.tools.demo --pair

test: install ## run the tests; what the machine lacks is skipped with the reason (ARGS=... goes to pytest; -n 0 runs them one by one)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-deps: debian train-deps .venv-llmock/.installed .venv-clients/.installed tests/emulators/node_modules/.installed tests/clients/node_modules/.installed tests/daemon/browser/node_modules/.installed ## install what the tests need beyond Python (as root)

lint: install ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install ## write the pages that are made from the code: settings, manual page
	mkdir -p .build
	$(BIN)/python -m daemon.tools.config_reference > .build/page && mv .build/page docs/configuration.md
	$(BIN)/python -m daemon.tools.man_page > .build/page && mv .build/page docs/upcall.1

bench: install ## measure start-up, routing and the cloud side against their peers; the engine's peer is named in its results
	$(BIN)/upcall pull smollm2-135m use-multilingual minilm-l6
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/route_latency.py --runs 60 \
		--encoder "$$($(call STORED,use-multilingual))" --peer "$$($(call STORED,minilm-l6))"
	$(BIN)/python benchmarks/cloud_overhead.py --seconds 5
STORED = $(BIN)/python -c "from models.store import Store; print(Store().path('$(1)'))"

train-deps: install ## add what training and evaluation need to .venv
	$(PIP) install --require-hashes -r requirements-train.lock
	$(PIP) install torch==$(TORCH)

lock: ## resolve the dependencies anew, keeping what still fits (UPGRADE=--upgrade for the newest)
	test -x .build/lock/bin/uv || { $(PYTHON) -m venv .build/lock && .build/lock/bin/pip install --quiet uv==$(UV); }
	echo torch > .build/without-torch.txt
	$(COMPILE) pyproject.toml --extra test --group pyproject.toml:build -o requirements.lock
	$(COMPILE) --group pyproject.toml:llama -o requirements-llama.lock
	$(COMPILE) pyproject.toml --extra train -c requirements.lock --excludes .build/without-torch.txt -o requirements-train.lock
	echo llmock | $(COMPILE) - -o tests/emulators/llmock.lock
	printf '%s\n' $(CLIENTS) | $(COMPILE) - -o tests/clients/clients.lock
# mcp is imported by litellm, which does not name it.
CLIENTS := langchain-openai litellm llm mcp ollama
COMPILE = .build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock" $(UPGRADE)

clean: ## remove everything that was made here; the cached wheel and pulled models stay
	rm -rf .venv .venv-llmock .venv-clients .build tests/emulators/node_modules tests/clients/node_modules .mypy_cache .ruff_cache .pytest_cache

.venv/.installed: requirements.lock requirements-llama.lock pyproject.toml .ci/llama_wheel.py .ci/nocommon.cmake
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; if it has another name: make PYTHON=/path/to/python"; exit 1; }
	@echo "Installing into .venv with $$($(PYTHON) --version)"
	$(PYTHON) -m venv .venv
	wheel=$$($(BIN)/python .ci/llama_wheel.py) && $(PIP) install --quiet --no-index --no-deps --force-reinstall "$$wheel"
	$(PIP) install --quiet --require-hashes -r requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	touch $@

.venv-llmock/.installed: tests/emulators/llmock.lock
.venv-clients/.installed: tests/clients/clients.lock
.venv-llmock/.installed .venv-clients/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r $<
	touch $@

tests/%/node_modules/.installed: tests/%/package-lock.json | debian
	@node -e 'const [major, minor] = process.versions.node.split("."); process.exit(major > 20 || major == 20 && minor >= 15 ? 0 : 1)' \
		|| { echo "aimock needs Node 20.15 or newer, and this is $$(node --version): install a newer one and try again"; exit 1; }
	npm ci --prefix tests/$* --no-audit --no-fund
	touch $@

.PHONY: debian
debian:
	@test "$$(id -u)" = 0 || { echo "make test-deps installs Debian packages and must be run as root"; exit 1; }
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(APT) \
		$$(command -v node >/dev/null || echo nodejs) $$(command -v npm >/dev/null || echo npm)
