# Needs Python 3.11 or newer (with venv) and make; sets itself up in .venv from requirements/*.txt, whose every file is pinned by hash.
#
#   make run     the embedded example, end to end          make test    the tests
#   make lint    what CI asks of the text                  make bench   measurements, as JSON lines
#   make ci      lint and test                             make clean   forget everything that was built
#   make lock    pin the newest dependencies (needs uv)    make kernels compile the kernels now, not at the first start
#   make endurance  the tests of tests/endurance at length: hours, and it goes on where it was stopped
#   make fuzz    each fuzzing target for FUZZ_SECONDS (60), guided by coverage; FUZZ="files language" for some of them
#   make slim    in SLIM=build/slim, an agent without numba: its kernels are compiled for CPU=x86-64-v3 and whatever has more

PYTHON_NAMES = python3.11 python3 python3.12 python3.13 python3.14
PIP = .venv/bin/python -m pip --disable-pip-version-check --no-input install --quiet --require-hashes --only-binary :all:
PYTEST_ARGS ?=
# Two at a time, each file as a whole by one of them: more, and tests of processes with deadlines get in each other's way.
TEST_WORKERS ?= -n 2 --dist loadfile
BENCH_ARGS ?=

export TAPMESH_CACHE_DIR ?= $(CURDIR)/.cache/tapmesh

.PHONY: run test lint bench ci lock clean kernels slim endurance fuzz

SLIM ?= build/slim
CPU ?= x86-64-v3

run: .venv/agent.stamp
	.venv/bin/tapmesh run --demo

# Kernels are compiled first: tests wait for processes, and each test process would compile them for itself.
test: .venv/test.stamp kernels
	.venv/bin/python -m pytest $(TEST_WORKERS) $(PYTEST_ARGS)

endurance: .venv/test.stamp kernels
	TAPMESH_LENGTH=1 .venv/bin/python -m pytest tests/endurance tests/stages/filter/test_mutated.py -s $(PYTEST_ARGS)

FUZZ ?= files language records packet configuration messages pipeline segment
FUZZ_SECONDS ?= 60

fuzz: .venv/fuzz.stamp kernels
	for target in $(FUZZ); do .venv/bin/python -m tests.endurance.fuzz $$target $(FUZZ_SECONDS) || exit; done

kernels: .venv/agent.stamp
	@.venv/bin/python -c 'from stages.warm import warm; warm(print)'

slim: .venv/agent.stamp
	rm -rf $(SLIM) build/wheel
	.venv/bin/python -m venv --without-pip $(SLIM)
	$(subst -m pip,-m pip --python $(SLIM)/bin/python,$(PIP)) -r requirements/slim.txt
	.venv/bin/python -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir build/wheel .
	.venv/bin/python -m pip --python $(SLIM)/bin/python --disable-pip-version-check install --quiet --no-deps --no-index build/wheel/tapmesh-*.whl
	find $(SLIM)/lib/python3*/site-packages/numpy -type d -name tests -prune -exec rm -r {} +
	.venv/bin/python -m stages compile --cpu $(CPU) --out $$(echo $(SLIM)/lib/python3*/site-packages/stages)/kernels.so
	@du -sh $(SLIM)

lint: .venv/dev.stamp
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: .venv/agent.stamp
	.venv/bin/python -m bench $(BENCH_ARGS)

ci: lint test

# A stamp is younger than what it was made from only when making it was completed, so an interrupted set-up is repeated.
.venv/python.stamp:
	@for name in $(PYTHON) $(PYTHON_NAMES); do \
	    if "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "Setting up .venv with $$("$$name" --version) (once; about 100 MB to download)" >&2; \
	        "$$name" -m venv --clear .venv && touch $@; exit; \
	    fi; \
	done; \
	echo "No Python 3.11 or newer with venv and ensurepip was found (Debian: apt install python3-venv). Looked for: $(PYTHON) $(PYTHON_NAMES)" >&2; \
	exit 1

.venv/agent.stamp: .venv/python.stamp requirements/build.txt requirements/agent.txt pyproject.toml
	$(PIP) -r requirements/build.txt -r requirements/agent.txt
	.venv/bin/python -m pip --disable-pip-version-check --no-input install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@

.venv/test.stamp: .venv/agent.stamp requirements/test.txt
	$(PIP) -r requirements/test.txt
	@touch $@

.venv/fuzz.stamp: .venv/test.stamp requirements/fuzz.txt
	$(PIP) -r requirements/fuzz.txt
	@touch $@

.venv/dev.stamp: .venv/test.stamp requirements/dev.txt
	$(PIP) -r requirements/dev.txt
	@touch $@

LOCK = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --only-binary :all: --upgrade
lock:
	$(LOCK) requirements/build.in -o requirements/build.txt
	$(LOCK) requirements/fuzz.in -o requirements/fuzz.txt
	$(LOCK) pyproject.toml --extra agent -o requirements/agent.txt
	$(LOCK) pyproject.toml --extra slim -c requirements/agent.txt -o requirements/slim.txt
	$(LOCK) pyproject.toml --extra agent --extra test -c requirements/agent.txt -o requirements/test.txt
	$(LOCK) pyproject.toml --extra agent --extra test --extra dev -c requirements/test.txt -o requirements/dev.txt

clean:
	rm -rf .venv .cache build dist *.egg-info
