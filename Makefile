# gatework. Everything here needs only make and Python >= 3.11: the first target makes .venv, the others reuse it.
# Without make, as on Windows: `python .ci/environment.py EXTRA ...` makes .venv, and what follows are plain commands.

PYTHON ?= python3
PY := .venv/bin/python
PYTEST := $(PY) -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo study-recall study-state study-text test test-slow test-gpu lint docs bench clean environment environment-test environment-docs

help:  ## Show this list
	@echo "make TARGET, where TARGET is one of"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile

demo: environment  ## Compare eight mixers on recall and four on real text, and make the pages
	@echo "Comparing token mixers on associative recall, then on the Python library's source (minutes, on two cores)"
	.venv/bin/gatework compare recall --config recipes/demo/recall.yaml --output runs/demo-recall
	.venv/bin/gatework compare text --config recipes/demo/text.yaml --output runs/demo-text
	@echo "Open these pages in a browser:"
	@echo "  $(CURDIR)/runs/demo-recall/report.html"
	@echo "  $(CURDIR)/runs/demo-text/report.html"

study-recall: environment  ## Repeat two panels of Zoology's recall figure at laptop scale (within an hour)
	@echo "Training four mixers on two recall settings: within an hour on two cores; kill and repeat it at will"
	.venv/bin/gatework compare recall --config recipes/zoology/recall.yaml --output runs/study-recall
	@echo "Open $(CURDIR)/runs/study-recall/report.html"

study-state: environment  ## Draw recall against decoding state, every mixer at laptop scale (within half an hour)
	@echo "Training every mixer at two widths: within half an hour on two cores; kill and repeat it at will"
	.venv/bin/gatework compare recall --config recipes/zoology/state.yaml --output runs/study-state
	@echo "Open $(CURDIR)/runs/study-state/report.html"

study-text: environment  ## Where is the gap between language models on real text, and does recall explain it (within an hour)
	@echo "Training seven mixers on the Python library's source, and on recall: an hour on two cores; kill and repeat it at will"
	.venv/bin/gatework compare text --config recipes/zoology/laptop.yaml --output runs/study-text
	@echo "Open $(CURDIR)/runs/study-text/report.html"

# mypy, which takes a minute the first time, runs beside pytest. pytest's closing line is the last thing printed,
# unless mypy complains; a complaint of ruff or mypy fails the target all the same.
test: environment-test  ## Check style and types, then run the tests but for the slow ones
	@echo "Checking style and types, then running the tests"
	@$(call checked_pytest,-m "not slow and not gpu")

test-slow: environment-test  ## The same, with the slow tests
	@echo "Checking style and types, then running all tests"
	@$(call checked_pytest,-m "not gpu")

# On a machine that has PyTorch and no network: python3 -m pytest tests/gpu
test-gpu: environment-test  ## Run the tests of a GPU, and say engine by engine what passed
	@$(PY) -m pytest tests/gpu -q -n 4

checked_pytest = status=0; \
	$(PY) -m ruff check --quiet || status=1; \
	$(PY) -m ruff format --check --quiet || status=1; \
	complaints=$$(mktemp); $(PY) -m mypy --no-error-summary >$$complaints 2>&1 & mypy=$$!; \
	OMP_NUM_THREADS=1 $(PYTEST) $(1) || status=$$?; \
	wait $$mypy || { cat $$complaints; status=1; }; rm -f $$complaints; \
	exit $$status

lint: environment-test  ## Check style (ruff) and types (mypy)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

docs: environment-docs  ## Build the site; warnings are errors
	$(PY) -m sphinx -W --keep-going --quiet -b html docs docs/_build/html
	@echo "Open $(CURDIR)/docs/_build/html/index.html"

bench: environment  ## Run every benchmark but that of a GPU and print its table
	@for script in $(filter-out benchmarks/gpu.py,$(wildcard benchmarks/[!_]*.py)); do \
		echo "$$script"; \
		$(PY) "$$script" || exit 1; \
	done

clean:  ## Remove what is built from the sources; .venv and runs/ stay
	rm -rf build dist docs/_build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

environment:
	@$(call install,cpu)

environment-test:
	@$(call install,test)

environment-docs:
	@$(call install,docs cpu)

install = command -v $(PYTHON) >/dev/null || \
	{ echo "$(PYTHON) was not found; gatework needs Python 3.11 or newer"; exit 1; }; \
	$(PYTHON) .ci/environment.py $(1)
