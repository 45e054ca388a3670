# What is needed: Python 3.11 or later with venv, and make. `make run` and `make test` install the rest
# into .venv: exactly the files whose hashes stand in locks/.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := $(VENV)/tools/bin
LOCK := $(TOOLS)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test test-hardware test-hardware-nightly test-hardware-arm test-package deb check screenshots bench explore soak format lock audit licences sbom clean

run: $(VENV)/.run
	$(BIN)/gateway demo

# Two at a time: most tests wait for a process or a disk.
test: check $(VENV)/.chromium $(VENV)/.prometheus
	$(BIN)/python -m pytest -n 2

# Scanners, relay boards and GPIO lines on a real kernel, in a virtual machine; docs/hardware-bench.md. Needs root.
# ONLY=tests/hardware/test_gpio.py: a part.
ONLY ?= tests/hardware
test-hardware: $(VENV)/.dev $(VENV)/.tools $(VENV)/.debian $(VENV)/.qemu
	PATH="$(abspath $(TOOLS)):$$PATH" $(BIN)/python -m tests.hardware.install
	$(BIN)/python -m pytest $(ONLY) -n 2 --dist loadfile --timeout 1800

# Its power cuts at length: 300 of a whole computer, and 20 random states of the disk's cache before each flush. Hours.
# GATEWAY_HARDWARE_SEED=n: other moments.
test-hardware-nightly: $(VENV)/.dev $(VENV)/.tools $(VENV)/.debian $(VENV)/.qemu
	PATH="$(abspath $(TOOLS)):$$PATH" $(BIN)/python -m tests.hardware.install
	GATEWAY_HARDWARE_CUTS=300 GATEWAY_HARDWARE_SUBSETS=20 $(BIN)/python -m pytest -n 2 --dist loadfile \
		--timeout 36000 tests/hardware/test_power.py tests/hardware/test_power_too.py tests/hardware/test_writes.py

# The package on 64-bit Arm, as a Raspberry Pi has it. Slow: each instruction is translated.
test-hardware-arm: $(VENV)/.dev $(VENV)/.tools $(VENV)/.debian $(VENV)/.arm
	PATH="$(abspath $(TOOLS)):$$PATH" GATEWAY_HARDWARE_PATIENCE=5 $(BIN)/python -m tests.hardware.arm
	GATEWAY_HARDWARE_PATIENCE=5 $(BIN)/python -m pytest tests/arm --timeout 3600

# The Debian package for PCs and for the Raspberry Pi, in dist/, with its bill of materials. Needs debhelper.
deb: $(VENV)/.run $(VENV)/.tools $(VENV)/.debian sbom
	@PATH="$(abspath $(TOOLS)):$$PATH" $(BIN)/python debian/build.py $(DEB)

test-package: $(VENV)/.dev $(VENV)/.tools $(VENV)/.debian
	PATH="$(abspath $(TOOLS)):$$PATH" $(BIN)/python -m pytest tests/package

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The pictures in docs/: real pages in a real browser, and the dashboards of a real run, which takes minutes. Look at
# them.
screenshots: $(VENV)/.dev $(VENV)/.chromium $(VENV)/.prometheus
	$(BIN)/python -m tests.screenshots docs/images
	$(BIN)/python -m tests.monitoring.pictures docs/images

bench: $(VENV)/.dev
	$(BIN)/python -m bench

# New examples for the property tests of the judgement; half an hour.
explore: $(VENV)/.dev
	HYPOTHESIS_PROFILE=explore $(BIN)/python -m pytest tests/test_judgement.py -k plain --timeout=7200

# Central, sync and gate killed over and over, for 100,000 events and 10,000 changes; some minutes.
# GATEWAY_SOAK_SEED=n: other moments.
soak: $(VENV)/.dev
	GATEWAY_SOAK=1 $(BIN)/python -m pytest tests/e2e/test_chaos.py -s

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: Python 3.11 or later is needed: apt-get install python3, or make PYTHON=python3.x"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install -y python3-venv; } || \
		{ echo "make: Python's venv is needed: sudo apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# pip cannot check the hash of a folder: first everything else with hashes, then this project, asking no index.
$(VENV)/.run: $(VENV)/bin/python pyproject.toml locks/build.txt locks/central.txt
	$(PIP) --require-hashes -r locks/build.txt -r locks/central.txt
	$(PIP) --no-index --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml locks/build.txt locks/dev.txt
	$(PIP) --require-hashes -r locks/build.txt -r locks/dev.txt
	$(PIP) --no-index --no-deps --no-build-isolation -e .
	@touch $@ $(VENV)/.run

$(VENV)/.chromium: $(VENV)/bin/python
	@command -v chromium >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -y --no-install-recommends chromium; } || \
		{ echo "make: Chromium is needed for the tests of the pages: sudo apt-get install chromium"; exit 1; }
	@touch $@

DEBIAN := dpkg-dev debhelper lintian binutils man-db
$(VENV)/.debian: $(VENV)/bin/python
	@dpkg -s $(DEBIAN) >/dev/null 2>&1 || \
		{ [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -y --no-install-recommends $(DEBIAN); } || \
		{ echo "make: the package needs: sudo apt-get install $(DEBIAN)"; exit 1; }
	@touch $@

ARM := qemu-system-arm qemu-user-static
$(VENV)/.arm: $(VENV)/.qemu
	@dpkg -s $(ARM) >/dev/null 2>&1 || \
		{ [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -y --no-install-recommends $(ARM); } || \
		{ echo "make: the Arm machine needs: sudo apt-get install $(ARM)"; exit 1; }
	@touch $@

QEMU := qemu-system-x86 qemu-utils debootstrap cpio e2fsprogs
$(VENV)/.qemu: $(VENV)/bin/python
	@dpkg -s $(QEMU) >/dev/null 2>&1 || \
		{ [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -y --no-install-recommends $(QEMU); } || \
		{ echo "make: the virtual machine needs: sudo apt-get install $(QEMU)"; exit 1; }
	@touch $@

# After a change of dependencies in pyproject.toml; `make lock UPGRADE=--upgrade` for newer versions of all.
lock: $(VENV)/.tools
	$(LOCK) $(UPGRADE) --generate-hashes --extra dev --extra central -o locks/dev.txt pyproject.toml
	$(LOCK) --generate-hashes -c locks/dev.txt --extra central -o locks/central.txt pyproject.toml
	$(LOCK) --generate-hashes -c locks/dev.txt -o locks/gateway.txt pyproject.toml
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
		| $(LOCK) $(UPGRADE) --generate-hashes -o locks/build.txt -
	$(LOCK) $(UPGRADE) --generate-hashes -o locks/tools.txt locks/tools.in
	$(LOCK) -c locks/dev.txt --extra dev --extra central -o constraints.txt pyproject.toml

# Known vulnerabilities of everything in the locks, as PyPI knows them: needs the internet.
# AUDIT="--vulnerability-service osv" asks OSV instead of PyPI.
audit: $(VENV)/.tools
	@$(TOOLS)/pip-audit --strict --progress-spinner off --disable-pip --require-hashes $(AUDIT) \
		-r locks/build.txt -r locks/dev.txt -r locks/tools.txt || \
		{ echo "make audit: a vulnerability is named above, or the vulnerability service did not answer"; exit 1; }

# docs/licences.md anew.
licences: $(VENV)/.dev
	$(BIN)/python -m tests.licences > docs/licences.md

# The bill of materials, CycloneDX 1.6: an environment with what is installed at a gate, read and validated. The same
# commit gives the same file.
sbom: $(VENV)/.tools
	rm -rf $(VENV)/sbom && $(PYTHON) -m venv --without-pip $(VENV)/sbom
	$(BIN)/python -m pip --python $(VENV)/sbom/bin/python install --quiet --disable-pip-version-check \
		--require-hashes -r locks/central.txt
	mkdir -p dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(TOOLS)/cyclonedx-py environment --pyproject pyproject.toml \
		--output-reproducible --validate --sv 1.6 --of JSON -o dist/sbom.cdx.json $(VENV)/sbom/bin/python

# promtool and prometheus for the tests of monitoring/: Debian's package, unpacked and not installed, so that no service
# starts and nobody need be root.
$(VENV)/.prometheus: $(VENV)/bin/python
	@rm -rf $(VENV)/debian && mkdir -p $(VENV)/debian
	@if ! (command -v promtool && command -v prometheus) >/dev/null; then cd $(VENV)/debian && \
		{ apt-get download -qq prometheus 2>/dev/null || { apt-get update -qq && apt-get download -qq prometheus; } \
			&& dpkg -x prometheus_*.deb . && rm prometheus_*.deb; } || \
		{ echo "make: Prometheus is needed for the tests: sudo apt-get install prometheus"; exit 1; }; fi
	@touch $@

# pip-audit, cyclonedx-py and uv: apart, so that the project's own environment does not depend on theirs.
$(VENV)/.tools: $(VENV)/bin/python locks/tools.txt
	rm -rf $(VENV)/tools && $(PYTHON) -m venv $(VENV)/tools
	$(TOOLS)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/tools.txt
	@touch $@

clean:
	rm -rf $(VENV) .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache bench/.work
