# Every target sets up what it needs by itself (see .ci/setup) and says what it does.
#
# Settings, each as NAME=value on the command line:
#   INPUT        make demo, make demo2d: the image to segment, in place of the one that is there
#   PYTHON       the Python 3.11 or 3.12 to make the environment with
#   VENV         where the environment stands
#   TORCH        the torch to install, for example TORCH='torch==2.13.0+cpu'
#   SECONDS      make fuzz: for how long
#   JOBS         make test: how many processes run the tests (2; about 3 GB of memory each)
#   PYTEST_ARGS  further arguments for pytest, for example PYTEST_ARGS='-k geometry -x'

VENV ?= .venv
INPUT ?=
JOBS ?= 2
PYTEST_ARGS ?=
SECONDS ?= 3600

BIN := $(VENV)/bin
DEMO_EXTRAS := torch,cpu,demo
TEST_EXTRAS := torch,cpu,cluster,demo,dicomweb,encoders,export,monai,slides,train,test,docs,dev
export VENV PYTHON TORCH

.DEFAULT_GOAL := help
# One after the other also with -j, so that the closing line of pytest comes last.
.NOTPARALLEL:
.PHONY: help demo demo2d test test-slow bench coverage fuzz check docs lint types setup-demo setup-test clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup-demo ## segment a real head MR (or INPUT=image) with the bundled brain model, into demo/
	$(BIN)/medsegai demo $(if $(INPUT),"$(INPUT)") -o demo

demo2d: setup-demo ## segment nuclei in a drawn picture (or INPUT=picture), into demo2d/
	$(BIN)/medsegai demo --model nuclei $(if $(INPUT),"$(INPUT)") -o demo2d

# A file stays in one process, because its tests share what is expensive to make; one thread each, so that the processes
# do not wait for each other. mypy, which uses one processor, runs beside them; what it finds is said at the end.
# Bytecode is kept, also where an image says otherwise, because tests start hundreds of processes.
test: setup-test lint ## style, types and every test but the slow ones
	@mkdir -p build
	$(BIN)/mypy > build/types.txt 2>&1 & types=$$!; \
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow" $(PYTEST_ARGS); tests=$$?; \
	wait $$types || { cat build/types.txt; exit 1; }; exit $$tests

test-slow: setup-test ## the slow tests
	@.ci/browser
	@.ci/plastimatch
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

bench: setup-test ## time and memory, beside the plain fp32 forward of the same weights and nnunetv2
	$(BIN)/python Testing/bench/run.py
	$(BIN)/python Testing/bench/resampling.py
	$(BIN)/python Testing/bench/nnunet.py

coverage: setup-test ## which lines of the code the tests of make test run, also in processes that they start
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -m "not slow" $(PYTEST_ARGS)
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report

fuzz: setup-test ## feed made files to every way in for SECONDS (3600), each in a child with limits
	$(BIN)/python Testing/fuzz/fuzzing.py --seconds $(SECONDS)

check: setup-test lint types ## style, types and the rules of the house (Testing/architecture)
	$(BIN)/python -m pytest Testing/architecture $(PYTEST_ARGS)

docs: setup-test ## the documentation as a site, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

lint: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup-test
	$(BIN)/mypy

setup-demo:
	@.ci/setup $(DEMO_EXTRAS)
	@.ci/niivue

setup-test:
	@.ci/setup $(TEST_EXTRAS)
	@.ci/niivue

clean: ## remove the environment, caches and everything that make wrote
	rm -rf .venv build dist demo demo2d bench Testing/output MedSegAI/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find MedSegAI Testing -name __pycache__ -type d -prune -exec rm -rf {} +
