# `make demo` and `make test` set up .venv themselves; nothing has to be installed before.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PARALLEL := -n logical --maxprocesses 4 --dist worksteal

.PHONY: demo test test-fast test-ray faults check notebooks docs bench clean

demo: $(STAMP)
	$(BIN)/rolelens demo --out runs/demo

test: $(STAMP)
	$(BIN)/pytest $(PARALLEL)

# Faults in full counts, and the table of docs/reliability.md.
faults: $(STAMP)
	FAULTS=full $(BIN)/pytest $(PARALLEL) tests/faults

# The tests on a Ray cluster of this machine, with nothing beside them: a node gives up where its
# helpers need more than 15 s to begin.
test-ray: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ray]'
	$(BIN)/pytest tests/test_runners.py -k ray

# Without the embedded model.
test-fast: $(STAMP)
	$(BIN)/pytest $(PARALLEL) -m "not model"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: $(STAMP)
	$(BIN)/ruff format --quiet notebooks
	$(BIN)/python notebooks/build.py

# The site, in runs/site; a broken link or an unknown name stops it.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict --quiet

# make bench MMLU=folder PAPER=folder GSM8K=file TRUTHFUL=file: with MMLU's own CSV files (and
# few-shot), with the paper's prompts and split, with GSM8K's JSONL file and TruthfulQA's
# mc_task.json.
bench: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt lm_eval==0.4.13
	$(BIN)/python benchmarks/extraction.py
	$(BIN)/python benchmarks/sweep.py $(if $(MMLU),--mmlu $(MMLU))
	$(BIN)/python benchmarks/search.py $(if $(PAPER),--paper $(PAPER))
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/reading.py
	$(BIN)/python benchmarks/explorer.py --lab
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/rates.py $(if $(PAPER),--paper $(PAPER))
	$(BIN)/python benchmarks/calibration.py
	$(BIN)/python benchmarks/roast.py $(if $(GSM8K),--problems $(GSM8K)) $(if $(TRUTHFUL),--truthful $(TRUTHFUL))
	$(if $(MMLU),$(BIN)/python benchmarks/harness.py --mmlu $(MMLU) $(if $(PAPER),--paper $(PAPER)))

clean:
	rm -rf $(VENV) runs

$(STAMP): pyproject.toml constraints.txt tests/foreign.txt
	$(PYTHON) -c 'import sys; sys.exit("rolelens needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another with make PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps --ignore-requires-python -r tests/foreign.txt
	touch $(STAMP)
