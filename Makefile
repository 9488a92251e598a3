# A newcomer's two commands are `make quickstart` and `make test`; both make the environment first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: env quickstart docs test test_extras lint battery slurm slurm_submission bench bench_simulation bench_ranks bench_step bench_gpu cuda_costs parity accelerated kernels parameters clean

env: $(VENV)/.made  ## virtual environment with everything that was tested

$(VENV)/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --constraint constraints.txt "torch==2.13.0"
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

quickstart: env  ## train, evaluate, print what to try next: about three minutes on two cores
	$(RUN) configs/quickstart/run.py

test: env  ## the default tests, two processes
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2

docs: env  ## the pages of docs/ as a site in build/docs; a broken link is an error
	$(RUN) -m mkdocs build --strict

lint: env  ## style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror model_utils/models/fast/cpp/*
	$(RUN) -m mypy
	$(RUN) benchmarks/style.py

parity: env  ## every combination of network options against mace-torch (long; see tests/models/test_parity.py)
	PARITY=full OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 tests/models/test_parity.py

accelerated:  ## --step cueq against mace-torch, in an environment of its own: with the package mace-torch has other defaults (2 minutes)
	$(MAKE) env VENV=.venv-cueq
	.venv-cueq/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,cueq]"
	OMP_NUM_THREADS=1 .venv-cueq/bin/python -m pytest tests/models/test_accelerated.py

TRITON ?= 3.7.1
kernels: env  ## the GPU's kernels without a GPU: interpreter against plain torch, compiled for sm_80 and sm_90 (some twenty minutes of two free cores; TRITON=3.6.0: that of torch 2.11)
	$(RUN) -m pip install --quiet --no-deps "triton==$(TRITON)"
	KERNELS=full OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 tests/models/test_triton.py

test_extras:  ## what needs the extras (torch-sim, W&B, graph-pes, torch_geometric, pymatgen, pyxtal, ase-ga, dpdispatcher), in an environment of its own (ten minutes, much of it downloads)
	$(MAKE) env VENV=.venv-extras
	.venv-extras/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,simulation,loggers,report,architectures,pipeline,cluster]"
	OMP_NUM_THREADS=1 .venv-extras/bin/python -m pytest -n 2 tests/simulation/test_torch_sim.py tests/run/test_loggers.py tests/run/test_slow_loggers.py tests/architectures tests/pipeline tests/stages tests/submission

battery: env  ## all tests with every case: kills, signals, failing disks, damaged files, a soak (about two and a half hours of two cores; BATTERY=product: more)
	BATTERY=$${BATTERY:-full} OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal -rP tests

slurm: env  ## a job preempted and timed out on a SLURM of its own, as root, with one task and with two (half an hour; packages slurm-wlm and munge)
	OMP_NUM_THREADS=1 $(RUN) tests/slurm/check.py

slurm_submission:  ## submit.py on a SLURM of its own, as root: a pipeline preempted on the way, files back (ten minutes; the same packages)
	$(MAKE) env VENV=.venv-extras
	.venv-extras/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,pipeline,cluster]"
	OMP_NUM_THREADS=1 .venv-extras/bin/python tests/slurm/submission.py

bench: env  ## whole process against mace_run_train at the mace01 settings (about 15 minutes; needs the measured data)
	$(RUN) benchmarks/against_mace_run_train.py

bench_simulation: env  ## calculator and relax.py against mace's calculator (about 30 minutes; needs the measured data)
	$(RUN) benchmarks/simulation.py

bench_ranks: env  ## how evenly steps are dealt, what adding costs (about 10 minutes; DATA=structures)
	$(RUN) benchmarks/ranks.py --data $(DATA)

bench_step: env  ## one training step against mace-torch's own (about 10 minutes on a quiet machine)
	$(RUN) benchmarks/train_step.py

bench_gpu: env  ## everything that only a GPU can say, then its tests (ten minutes on a machine with a GPU)
	$(RUN) benchmarks/gpu.py

cuda_costs: env  ## launches and bytes of a step on a GPU, counted without one (two minutes)
	$(RUN) benchmarks/cuda_costs.py

parameters: env  ## write the tables of Parameters.md anew
	$(RUN) model_utils/settings/parameters_md.py

clean:
	rm -rf $(VENV) .venv-cueq .venv-extras build/docs runs
