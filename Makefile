# What one does with this project.  Needs Python >= 3.11 and make; a C compiler makes it faster.

PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell $(name) -c \
	'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
VENV := .venv
BIN := $(VENV)/bin
KERNELS := $(wildcard actormq/kernels/*.py actormq/kernels/*.pxd actormq/kernels/*.h tests/faults/judging.p*)
PYTEST_ARGS ?=
WORKERS ?= 2
DIST ?= dist
BENCH_ARGS ?=
LOADTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv kernels test lint type imports fmt demo bench interop soak loadtest wheel docs clean

help: ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
		printf '%-18s %s\n' "$$name" "$$text"; done

venv: $(VENV)/.installed $(VENV)/.kernels ## make .venv: the package, kernels compiled where possible, and the tools
	@$(BIN)/python -m compileall -q actormq # a start must not wait for it where Python may not keep bytecode

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "ActorMQ needs Python 3.11 or newer (make venv PYTHON=/path/to/python3)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install -q --upgrade "setuptools>=77" "cython>=3.1"
	PYTHONWARNINGS=ignore ACTORMQ_PURE=1 $(BIN)/python -m pip install -q --no-build-isolation -e '.[dev]'
	@touch $@

$(VENV)/.kernels: $(VENV)/.installed $(KERNELS)
	$(BIN)/python setup.py -q build_ext --inplace --parallel 2
	@$(BIN)/python -c 'from actormq import kernels; print("kernels:", "compiled" if kernels.COMPILED else "python")'
	@touch $@

kernels: venv ## compile the kernels that have changed

test: venv ## run the tests (not interop, not soak) in two processes (WORKERS=0: in this one)
	$(BIN)/python -m pytest -m "not interop and not soak" -n $(WORKERS) --dist loadscope $(PYTEST_ARGS) tests

lint: venv ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: venv ## check types
	$(BIN)/mypy --strict actormq

imports: venv ## check which room imports which
	$(BIN)/lint-imports

fmt: venv ## format, and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

ifdef WHEEL
# A venv of its own, without a build tool, and nothing of this folder on Python's path but the demo's file.
demo: ; $(PYTHON) -m venv --clear build/demo-venv
	build/demo-venv/bin/python -m pip install -q --only-binary :all: "$(WHEEL)"
	PYTHONSAFEPATH=1 PYTHONPATH= build/demo-venv/bin/python loadtest/demo.py $(FILES)
else
demo: venv ## send real files through a broker that loses a consumer (FILES=..., WHEEL=dist/...whl)
	$(BIN)/python -m loadtest.demo $(FILES)
endif

bench: venv ## measure the broker on this machine, beside RocketMQ and Kafka (BENCH_ARGS=--quick)
	$(BIN)/python -m loadtest.bench $(BENCH_ARGS)

interop: venv ## test against Java RocketMQ (needs Java; RMQ_WORK=folder)
	$(BIN)/python -m pytest -m interop $(PYTEST_ARGS) tests

soak: venv ## run the long tests
	ACTORMQ_SOAK=1 $(BIN)/python -m pytest -m soak $(PYTEST_ARGS) tests

$(VENV)/.loadtest: pyproject.toml | venv
	PYTHONWARNINGS=ignore ACTORMQ_PURE=1 $(BIN)/python -m pip install -q --no-build-isolation -e '.[loadtest]'
	@touch $@

loadtest: venv $(VENV)/.loadtest ## locust: 30 users send and receive for 30 s (LOADTEST_ARGS="-u 50 -t 2m --host ...")
	$(BIN)/python -m locust -f loadtest/locustfile.py --headless --only-summary -u 30 -r 30 -t 30s --stop-timeout 10 \
		$(LOADTEST_ARGS)

$(VENV)/.wheel: pyproject.toml | venv
	PYTHONWARNINGS=ignore ACTORMQ_PURE=1 $(BIN)/python -m pip install -q --no-build-isolation -e '.[wheel]'
	@touch $@

# The wheel is made of the sdist; every kernel must compile.  auditwheel names the oldest Linux that it runs on.
wheel: venv $(VENV)/.wheel ## build the sdist and a wheel with compiled kernels in dist
	rm -rf build/wheel && mkdir -p build/wheel "$(DIST)"
	@SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || date +%s)} \
		ACTORMQ_PURE= ACTORMQ_KERNELS=required $(BIN)/python -m build --no-isolation --outdir build/wheel . \
		> build/wheel/log 2>&1 || { cat build/wheel/log; exit 1; }
	@if [ "$$(uname)" = Linux ]; then \
		PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir "$(DIST)" build/wheel/*.whl; \
	else mv build/wheel/*.whl "$(DIST)"; fi
	@mv build/wheel/*.tar.gz "$(DIST)" && ls -l "$(DIST)"

$(VENV)/.docs: pyproject.toml | venv
	PYTHONWARNINGS=ignore ACTORMQ_PURE=1 $(BIN)/python -m pip install -q --no-build-isolation -e '.[docs]'
	@touch $@

docs: venv $(VENV)/.docs ## build the documentation as pages in build/docs
	$(BIN)/python -m sphinx -q -W --keep-going docs build/docs

clean: ## remove what was built, but .venv
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	rm -f actormq/kernels/*.c actormq/kernels/*.so actormq/kernels/*.html tests/faults/*.so $(VENV)/.kernels
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
