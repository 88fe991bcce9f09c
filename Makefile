# What a person types. `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Where bytecode is not kept, each start of Python takes twice as long, and the tests start many.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint bench pictures

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(INSTALLED)  ## make .venv with everything needed; instant when it is up to date

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, and $(PYTHON) is $$($(PYTHON) --version); try make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --editable . --group dev
	@touch $@

demo: setup  ## train on drawn shapes (a minute or two), caption held-out pictures, and say where everything is
	@run=runs/demo-$$(date +%Y-%m-%d_%H-%M-%S) && \
	$(BIN)/python train.py experiment=demo run_dir=$$run && \
	$(BIN)/python -m captioning.shapes draw $$run/pictures && \
	$(BIN)/python predict.py checkpoint=$$run input=$$run/pictures output=$$run/captions.jsonl \
		gallery=true heat_maps=8 heat_maps_layers=1 && \
	printf '\n%s\n' "The first captions of $$run/captions.jsonl, and how many of all are true:" && \
	head -n 5 $$run/captions.jsonl && \
	$(BIN)/python -m captioning.shapes judge $$run/captions.jsonl && \
	if ! command -v npm > /dev/null; then page="none: it takes the runtime from npm, which is not installed"; \
	elif $(BIN)/python -m captioning.export $$run $$run/captioner page=true; then page="$(BIN)/python -m http.server \
	--directory $$run/captioner --bind 127.0.0.1 8000, then http://127.0.0.1:8000"; \
	else page="none, for the reason above"; fi && \
	printf '%s\n' "" "Look at" \
		"  the captions      $$run/captions.jsonl, of the pictures in $$run/pictures" \
		"  pictures, captions and where the model looked, in a browser: $$run/captions.html" \
		"  the table         $$run/results.md, and its curves $$run/curves.png" \
		"  every logged step $$run/metrics.csv" \
		"  a page that captions in the browser: $$page" && \
	for wandb in $$run/wandb/offline-run-*; do \
		test ! -d "$$wandb" || printf '%s\n' \
			"  the W&B run       in the terminal: $(BIN)/wandb leet $$wandb" \
			"                    in the browser, with an account: $(BIN)/wandb sync $$wandb"; \
	done

test: setup  ## the whole test suite in two processes, offline, in a few minutes
	$(BIN)/python -m pytest

test-all: setup  ## the same and the slower proofs
	$(BIN)/python -m pytest -m "slow or not slow"

lint: setup  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## every benchmark small, and one table of their ratios (about nine minutes)
	$(BIN)/python benchmarks/all.py

pictures: setup  ## docs/*.png again, of RUN=a run of the demo; without RUN it is trained first
	$(BIN)/python docs/make_pictures.py $(RUN)
