# Each target builds its own prerequisites. torch is installed first and pinned, so that no other package replaces its build.
PYTHON ?= python3
PYTEST_WORKERS ?= 2
BIN := .venv/bin
BIN3 := .venv-tl3/bin
# All tests of a file run in one process, so that its models are booted once.
PYTEST := -m pytest -n $(PYTEST_WORKERS) --dist loadfile

.PHONY: demo test test-full test-tl3 bench lint docs wheel clean

demo: .venv/.demo
	$(BIN)/embspace-lens demo --report report.html

# The core set: every module, about twenty of the eighty architectures.
test: .venv/.dev
	$(BIN)/python $(PYTEST) -m "not full"

# The rest: slow tests, all architectures, the tutorials; and everything on TransformerLens 3.
test-full: .venv/.dev
	$(BIN)/python $(PYTEST) -m full
	$(MAKE) test-tl3

test-tl3: .venv-tl3/.dev
	$(BIN3)/python $(PYTEST)

bench: .venv/.dev
	$(BIN)/python -m tests.benchmarks

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: .venv/.dev
	$(BIN)/python .ci/make_docs.py build/docs

# A wheel, installed into a new environment without the constraints file, and run in another folder.
wheel: .venv/.dev
	rm -rf dist .venv-wheel
	$(BIN)/python -m build --wheel
	$(BIN)/python .ci/check_wheel.py dist/*.whl
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/pip install -q -c constraints.txt torch
	.venv-wheel/bin/pip install -q dist/*.whl
	cd .venv-wheel && bin/embspace-lens demo

.venv/.torch: constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	touch $@

.venv/.demo: .venv/.torch pyproject.toml
	$(BIN)/pip install -q -c constraints.txt -e ".[plots]"
	touch $@

.venv/.dev: .venv/.torch pyproject.toml
	$(BIN)/pip install -q -c constraints.txt -e ".[all,dev]"
	touch $@ .venv/.demo

.venv-tl3/.dev: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv-tl3
	$(BIN3)/pip install -q -c constraints.txt torch
	$(BIN3)/pip install -q -c constraints.txt -e ".[all,dev]" "transformer-lens==3.9.*"
	touch $@

clean:
	rm -rf .venv .venv-tl3 .venv-wheel .pytest_cache .ruff_cache .hypothesis build dist report.html
