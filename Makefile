# make demo: train and evaluate on drawn scenes.  make test: lint and test.
# Both set up what they need. PYTHON and TORCH choose the interpreter and the torch;
# STACK=onedl the maintained forks of the OpenMMLab packages, in an environment of its own.
PYTHON ?= python3
TORCH ?= torch==2.13.0
STACK ?= openmmlab
VENV := .venv$(patsubst %,-%,$(filter-out openmmlab,$(STACK)))

.PHONY: demo test env clean

demo: env
	$(VENV)/bin/python demo/demo.py

test: env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m mypy
	$(VENV)/bin/python -m pytest -n 2

env:
	@$(PYTHON) tools/setup_env.py $(VENV) --torch '$(TORCH)' --stack '$(STACK)'

clean:
	rm -rf $(VENV) build work_dirs
