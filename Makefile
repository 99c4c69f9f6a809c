# make demo: train and evaluate on drawn scenes.  make test: lint and test.
# make test-long: the tests that take some seconds each, which `make test` leaves out.
# make docs: build the site into site/.  All set up what they need.
# make sanitize: drive the CPU kernels under the address, undefined behaviour and thread
# sanitizers; takes minutes.
# PYTHON and TORCH choose the interpreter and the torch;
# STACK=onedl the maintained forks of the OpenMMLab packages, in an environment of its own;
# LOCK=1 installs the versions and files that requirements/ names, hashes checked.
# make lock writes requirements/ anew, make audit looks it up in an advisory database, and
# make sbom lists what the environment has installed, as CycloneDX in build/sbom.json.
PYTHON ?= python3
TORCH ?= torch==2.13.0
STACK ?= openmmlab
LOCK ?=
VENV := .venv$(patsubst %,-%,$(filter-out openmmlab,$(STACK)))
# The variable silences an advertisement of the theme.
BUILD_SITE = NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --strict
PYTEST = $(VENV)/bin/python -m pytest -n 2 --dist worksteal

# uv, cyclonedx-bom and pip-audit, away from the packages that they look at.
SUPPLY := .venv-supply

.PHONY: demo test test-long docs sanitize env lock sbom audit clean

demo: env
	$(VENV)/bin/python demo/demo.py

test: env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m mypy
	$(BUILD_SITE)
	$(PYTEST)

test-long: env
	$(PYTEST) -m 'long and not slow'

docs: env
	$(BUILD_SITE)

sanitize: env
	$(VENV)/bin/python tests/sanitize/run.py

env:
	@$(PYTHON) tools/setup_env.py $(VENV) --torch '$(TORCH)' --stack '$(STACK)' \
	  $(if $(LOCK),--lock)

$(SUPPLY)/done: requirements/supply.txt
	@$(PYTHON) -m venv $(SUPPLY)
	@$(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --require-hashes -r $<
	@touch $@

lock: $(SUPPLY)/done
	@$(SUPPLY)/bin/python tools/supply_chain.py lock --torch '$(TORCH)'

sbom: env $(SUPPLY)/done
	@mkdir -p build
	@$(SUPPLY)/bin/python tools/supply_chain.py sbom $(VENV) build/sbom.json

audit: $(SUPPLY)/done
	@$(SUPPLY)/bin/python tools/supply_chain.py audit

clean:
	rm -rf $(VENV) $(SUPPLY) build site work_dirs
