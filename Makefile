# Every target makes what it needs. torch is installed first and pinned, so that nothing drags in another build of it.
PYTHON ?= python3
BIN := .venv/bin
BIN3 := .venv-tl3/bin

.PHONY: demo test test-tl3 bench lint clean

demo: .venv/.demo
	$(BIN)/embspace-lens demo --report report.html

test: .venv/.dev
	$(BIN)/python -m pytest

test-tl3: .venv-tl3/.dev
	$(BIN3)/python -m pytest

bench: .venv/.dev
	$(BIN)/python -m tests.benchmarks

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

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
	rm -rf .venv .venv-tl3 .pytest_cache .ruff_cache .hypothesis report.html
