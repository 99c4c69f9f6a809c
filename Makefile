# make demo: train and evaluate on drawn scenes.  make test: lint and test.
# make docs: build the site into site/.  All set up what they need.
# make sanitize: drive the CPU kernels under the address, undefined behaviour and thread
# sanitizers; takes minutes.
# PYTHON and TORCH choose the interpreter and the torch;
# STACK=onedl the maintained forks of the OpenMMLab packages, in an environment of its own.
PYTHON ?= python3
TORCH ?= torch==2.13.0
STACK ?= openmmlab
VENV := .venv$(patsubst %,-%,$(filter-out openmmlab,$(STACK)))
# The variable silences an advertisement of the theme.
BUILD_SITE = NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --strict

.PHONY: demo test docs sanitize env clean

demo: env
	$(VENV)/bin/python demo/demo.py

test: env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m mypy
	$(BUILD_SITE)
	$(VENV)/bin/python -m pytest -n 2

docs: env
	$(BUILD_SITE)

sanitize: env
	$(VENV)/bin/python tests/sanitize/run.py

env:
	@$(PYTHON) tools/setup_env.py $(VENV) --torch '$(TORCH)' --stack '$(STACK)'

clean:
	rm -rf $(VENV) build site work_dirs
