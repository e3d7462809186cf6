# Everything here works on a fresh machine with Python 3.11 (or newer) and make; the first call
# makes .venv and installs into it.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

# make run VARIANT=ssim TAG=try1 ARGS="pretrain.optim.epochs=3"
VARIANT ?= mae
TAG ?=
# Fashion-MNIST, or MNIST where that cannot be had, when it is empty.
SOURCE ?=
# make compare VARIANTS=mae,ssim; all of them when it is empty.
VARIANTS ?=
ARGS ?=
# Processes, each with its files and one thread, for tests of torch are small; more than the two
# cores that are common, for a third of the time a test waits for others. (Four took longer.)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder
# Run again on MinIO where PERCMAE_TEST_MINIO names its program.
STORE_TESTS := tests/storage tests/data/test_ingest.py
# Of test-faults: all that are marked so when it is empty.
TESTS ?=
# Tests on a cluster side by side; more than cores, for they wait.
CLUSTER_WORKERS ?= 6
# docker/build.sh says what these are for.
export PLATFORM REGISTRY VERSION BUILDER BUILD_ARGS

# make gpu-check PYTHON=python3 WHEELS=.whl: with that Python and what it lacks, installing nothing.
OUT ?= build/gpu-check
WHEELS ?=
GPU_PACKAGES := annotated-types prometheus_client pydantic pydantic_core typing-inspection
GPU_PLATFORMS := manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64

.DEFAULT_GOAL := help
.PHONY: help run compare test test-fast test-docs test-faults lint format golden manifests lock images image-list test-images test-cluster bench gpu-check test-gpu-check gpu-wheels clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

run: $(VENV)/.installed-run ## Run the whole pipeline on real images (VARIANT= TAG= SOURCE= ARGS=)
	@$(BIN)/percmae run --variant $(VARIANT) $(if $(TAG),--tag $(TAG)) $(if $(SOURCE),--source $(SOURCE)) $(ARGS)

compare: $(VENV)/.installed-run ## Run several variants and compare them (VARIANTS= TAG= SOURCE= ARGS=)
	@$(BIN)/percmae compare $(if $(VARIANTS),--variants $(VARIANTS)) $(if $(TAG),--tag $(TAG)) $(if $(SOURCE),--source $(SOURCE)) $(ARGS)

test: $(VENV)/.installed-dev ## Run all tests but those of faults and of the texts' commands
	@$(PYTEST) -m "not faults and not documents" --durations=10
	@if [ -n "$$PERCMAE_TEST_MINIO" ]; then $(PYTEST) --s3=minio $(STORE_TESTS); fi

test-fast: $(VENV)/.installed-dev ## Run the tests of less than a few seconds, in under a minute
	@$(PYTEST) -m "not slow and not faults and not documents"

test-docs: $(VENV)/.installed-dev ## Carry out the commands of README and docs/
	@$(PYTEST) --dist load -m documents tests/documents

test-faults: $(VENV)/.installed-dev ## Kill, stop, hang and starve what runs, and see that it goes on (TESTS=tests/faults)
	@$(PYTEST) --dist loadgroup -m faults --durations=10 $(TESTS)

lint: $(VENV)/.installed-dev ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: $(VENV)/.installed-dev ## Compile the pipelines anew into the golden files of the tests
	for name in train retrain; do $(BIN)/python -m pipelines compile --pipeline $$name --output tests/pipelines/golden/$$name.yaml || exit; done

manifests: $(VENV)/.installed-run ## Render jobs and overlays in k8s/; your own jobs: ARGS="--to DIR image=NAME@sha256:…"
	@$(BIN)/python -m percmae.jobs.manifests $(ARGS)

lock: $(VENV)/.installed-dev ## Find versions and hashes of what the images install (ARGS=--upgrade: the newest)
	@$(BIN)/python docker/lock.py $(ARGS)

images: ## Build the container images (PLATFORM=cpu|cuda REGISTRY= VERSION= BUILDER= BUILD_ARGS=)
	@docker/build.sh

# Ours, what k8s/ names, and what the training operator starts of its own accord.
image-list: ## List the images a cluster has to have, for one without a way to a registry
	@{ find k8s -name '*.yaml' -exec sed -nE 's/^ *(- )?image: //p' {} +; \
	  sed -nE 's/^version = "(.*)"/percmae-pipeline:\1/p' pyproject.toml; \
	  echo docker.io/library/alpine:3.10; } | sort -u

test-images: $(VENV)/.installed-dev ## Build the container images and run them
	@PERCMAE_TEST_IMAGES=1 $(BIN)/python -m pytest tests/images

test-cluster: $(VENV)/.installed-dev ## Test on the Kubernetes cluster of KUBECONFIG, in namespaces of its own
	@PERCMAE_TEST_CLUSTER=1 $(BIN)/python -m pytest -n $(CLUSTER_WORKERS) --dist loadscope --durations=10 tests/cluster

bench: $(VENV)/.installed-dev ## Measure the loader beside those of others, and a training step of each variant
	$(BIN)/percmae bench loader
	$(BIN)/percmae bench step

gpu-check: $(if $(WHEELS),,$(VENV)/.installed-dev) ## Is it right and fast on this GPU? (OUT= ARGS=--tiny; PYTHON= WHEELS=)
	@$(if $(WHEELS),$(PYTHON),$(BIN)/python) tests/benchmarks/gpu_check --out $(OUT) $(if $(WHEELS),--wheels $(WHEELS)) $(ARGS)

test-gpu-check: $(VENV)/.installed-dev ## Try all of gpu-check at tiny sizes, on any machine
	@PERCMAE_TEST_GPU_CHECK=1 $(BIN)/python -m pytest tests/bench/test_gpu_check.py

gpu-wheels: $(VENV)/.installed-dev ## Fill .whl/ with what a Python 3.12 that has PyTorch lacks for gpu-check
	@rm -rf .whl
	@$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
	  --implementation cp $(addprefix --platform ,$(GPU_PLATFORMS)) -d .whl \
	  $$($(BIN)/python -m pip freeze | grep -E $(foreach p,$(GPU_PACKAGES),-e '^$(p)=='))
	@ls -s .whl

clean: ## Remove the virtual environment and what runs have left here
	rm -rf $(VENV) .percmae .whl runs

# A stamp for each set of dependencies: made anew when the project file changes.
$(VENV)/.installed-run: pyproject.toml
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "installing percmae into $(VENV) (once; a few minutes)" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[pipelines,local]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-run
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[pipelines,local,dev]'
	@touch $@
