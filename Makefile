# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/digits
# of make real: a chat model by its name on the hub, or a directory
MODEL ?= Qwen/Qwen2.5-Coder-0.5B-Instruct
# Files of tests are shared out over the cores, four at most; SPREAD= runs them one after the other.
SPREAD ?= -n logical --maxprocesses 4 --dist loadfile
# One thread: a tiny model gains little from a second one, and loses much where other work contends for it.
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help install demo real notebooks test test-slow test-newest lint release-check docs docs-check clean
.DEFAULT_GOAL := help

help:
	@echo "make install        the package with everything for development, in .venv (2 GB)"
	@echo "make demo           install, then measure, close and re-measure the gap of the tiny omni model (writes $(RUN))"
	@echo "make real           install, then close the gap of a pretrained language model (MODEL: hub name or directory; docs/start/pretrained.md)"
	@echo "make notebooks      install, then execute the notebooks of examples/ again (ARGS=\"--out DIRECTORY\" for copies)"
	@echo "make test           install, then run the tests"
	@echo "make test-slow      the tests that take minutes"
	@echo "make test-newest    the tests with the newest transformers, peft, trl and accelerate, in an environment of its own"
	@echo "make lint           ruff, pyright, and the direction of imports"
	@echo "make release-check  builds wheel and sdist, installs them outside the checkout, runs version, import and quickstart (DEMO=1: the demo too)"
	@echo "make docs           the documentation as a site, on a local port"
	@echo "make docs-check     builds that site into site/; warnings are errors"
	@echo "make clean          removes .venv, .venv-newest, dist, site and runs"

# torch first and alone: it keeps pip from choosing a build of its own when other packages ask for it
$(VENV)/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
# Voxtral's tokenizer, without its bound on numpy (below 2.4), which would replace the numpy of everything else; the tests run on this one
	$(BIN)/python -m pip install --quiet -c constraints.txt tiktoken pycountry pydantic-extra-types
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps mistral-common
	touch $@

install: $(VENV)/ready
	@echo "installed; activate it with: . $(VENV)/bin/activate"

demo: $(VENV)/ready
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python recipes/close.py --config configs/digits.yaml --run_dir $(RUN) $(ARGS)

real: export HF_HUB_OFFLINE := $(if $(wildcard $(MODEL)),1,0)
real: $(VENV)/ready
	$(BIN)/gapclose close --config configs/people.yaml --model.path $(MODEL) $(ARGS)

notebooks: $(VENV)/ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,notebooks]"
	OMP_NUM_THREADS=1 $(BIN)/python examples/execute.py $(ARGS)

test: $(VENV)/ready
	OMP_NUM_THREADS=1 WANDB_MODE=offline $(BIN)/python -m pytest $(SPREAD) $(ARGS)

test-slow: $(VENV)/ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,deepspeed,notebooks]"
	OMP_NUM_THREADS=1 WANDB_MODE=offline $(BIN)/python -m pytest -m slow --timeout 3600 $(ARGS)
# last and apart: trackio brings an older pillow
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[trackio]"
	OMP_NUM_THREADS=1 WANDB_MODE=offline $(BIN)/python -m pytest tests/training/test_other_trackers.py -k trackio

# What is known to work is installed first and then replaced, so that torch and the rest stay as they are where they can.
NEWEST := .venv-newest
test-newest:
	$(MAKE) VENV=$(NEWEST) $(NEWEST)/ready
	$(NEWEST)/bin/python -m pip install --quiet --upgrade transformers peft trl accelerate
	$(NEWEST)/bin/python -m pip list | grep -iE "^(torch|transformers|peft|trl|accelerate) "
	$(MAKE) VENV=$(NEWEST) test

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

release-check:
	$(PYTHON) tests/release_check.py $(if $(DEMO),--demo) $(if $(SITE),--site $(SITE))

$(VENV)/docs: $(VENV)/ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

docs-check: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(NEWEST) dist site runs
