# Everything is installed into .venv; `make test` and `make demo` need Python 3.11 or later and nothing else.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= runs/demo
SEED ?= 0
BUDGET ?= 10000
# Tests that load ONNX Runtime, OpenVINO and Ray, in processes of their own: among all others OpenVINO has brought a worker down.
RUNTIMES := tests/cluster tests/deploy tests/inference tests/serving

# Two processes with a thread each: two with two threads each would wait for each other on two cores. The tests of a file stay
# together, so that what they share is made once; files come in the order of tests/conftest.py, not that of their number of tests.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: install install-dev demo lint test docs fuzz format clean

install: .venv/.installed
install-dev: .venv/.installed-dev

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/.installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,dev]"
	touch $@ .venv/.installed

demo: install
	$(BIN)/retinanet demo --output $(DEMO)

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(PYTEST) $(RUNTIMES:%=--ignore %)
	$(PYTEST) $(RUNTIMES)

docs: install-dev
	$(BIN)/python docs/generate
	$(BIN)/zensical build --strict --clean

fuzz: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz --runtimes --seed $(SEED) --budget $(BUDGET)
	TEST_SCALE=10 $(PYTEST) tests/anchors

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs build dist site .cache .pytest_cache .mypy_cache .ruff_cache
