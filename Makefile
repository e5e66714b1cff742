# Two commands matter: `make shell` (a shell with a network of its own) and `make check`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CMD    ?=
MAKEFLAGS += --no-builtin-rules

# Debian packages that give the system tests their peers, and the modules for `python3 -m venv`.
PACKAGES := iproute2 iputils-ping procps iperf3 socat curl nginx-light dnsmasq-base redis-tools \
	bind9-dnsutils ncat tcpdump nftables ethtool util-linux strace \
	isc-dhcp-client dhcpcd-base udhcpc ndisc6 apparmor checkpolicy semodule-utils m4
PROGRAMS := ip ping ps iperf3 socat curl nginx dnsmasq redis-benchmark dig ncat tcpdump nft ethtool \
	setpriv strace dhclient dhcpcd udhcpc rdisc6 ndisc6 apparmor_parser checkmodule \
	semodule_package m4

# Files of tests at a time.
JOBS ?= 3

# For `make fuzz`: seconds for each harness, and which, by default all.
SECONDS ?= 60
NAMES   ?=

# What compiles the program for the kernel: its tests are skipped where these do not exist.
COMPILER := python3-bpfcc linux-headers-$$(dpkg --print-architecture)

# For `make compare`: a Debian tree with upstream passt and slirp4netns; further options.
PEERS ?=
PERF  ?=

.PHONY: shell check lint test unit system fuzz perf compare tools bytecode clean

shell: $(VENV)/.runtime
	@$(BIN)/pasta --config-net $(if $(CMD),-- sh -c '$(subst ','\'',$(CMD))')

check: tools lint test

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Files of tests run side by side, as much of the time is spent waiting.  What fails is run once
# more, by itself: programs and networks under test have time limits, which a busy machine may miss.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile tests || { \
		echo "Once more, what failed:"; \
		$(BIN)/python -m pytest -q --last-failed --last-failed-no-failures none tests; \
	}

unit: $(VENV)/.dev
	$(BIN)/python -m pytest -q tests/unit

system: $(VENV)/.dev
	$(BIN)/python -m pytest -q tests/system

# The program for the kernel that --accel=ebpf uses, from its source: takes root, bcc and the
# headers of a kernel (on Debian: python3-bpfcc linux-headers-amd64).
bytecode: $(BIN)/python
	$(BIN)/python -m passt.kernel.ebpf.bytecode

# Hostile input, other each time: docs/fuzzing.md. With atheris where there is a build of it.
fuzz: $(VENV)/.dev
	-@$(BIN)/python -m pip install -q --disable-pip-version-check '.[fuzz]'
	$(BIN)/python -m tests.fuzz run $(NAMES) --seconds $(SECONDS)
	test -n "$(NAMES)" || FUZZ_LOOP=$(SECONDS) $(BIN)/python -m pytest -q -s tests/system/test_fuzz_loop.py

# Installed when root; otherwise what is missing is named, and its tests say so themselves.
tools:
	@missing=; for program in $(PROGRAMS); do \
		PATH=$$PATH:/usr/sbin:/sbin command -v $$program >/dev/null || missing="$$missing $$program"; \
	done; \
	test -z "$$missing" || if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -q --no-install-recommends $(PACKAGES) && { \
			apt-get install -y -q --no-install-recommends $(COMPILER) || \
			echo "No bcc: the shipped bytecode is not compared with its source" >&2; }; \
	else \
		echo "Missing for the system tests:$$missing" >&2; \
		echo "On Debian or Ubuntu: apt-get install $(PACKAGES)" >&2; exit 1; \
	fi

# A stock Debian or Ubuntu has python3 without venv: that is a package of its own.
$(BIN)/python:
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { \
		rm -rf $(VENV); \
		if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
			apt-get update -q && apt-get install -y -q --no-install-recommends python3-venv; \
		else \
			echo "python3 -m venv does not work; on Debian or Ubuntu: apt-get install python3-venv" >&2; \
			exit 1; \
		fi; \
		$(PYTHON) -m venv $(VENV); \
	}
# Start-up time: scripts made by older versions of pip import `re`, and the hooks of setuptools
# are loaded by every interpreter.
	@$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip uninstall -q -y setuptools

# A regular install, not an editable one: its modules are compiled and found without detours,
# which start-up time notices.
$(VENV)/.runtime: $(BIN)/python pyproject.toml $(shell find syscalls kernel userspace passt -name '*.py' -o -name '*.bpf' 2>/dev/null)
	@echo "Installing passt into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --force-reinstall --no-deps .
	@$(BIN)/python -m pip install -q --disable-pip-version-check .
	@$(BIN)/python -m compileall -q $(VENV)/lib || true
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install -q --disable-pip-version-check '.[dev]'
	@touch $@

# Two minutes, as root: fails if a path lost more than 40 % of its speed, relative to loopback.
perf: $(VENV)/.dev
	@if test "$$(id -u)" = 0; then \
		$(BIN)/python -m perf gate --baseline perf/baseline.json \
			--rounds 5 --seconds 1 --exchanges 1000; \
	else echo "Performance is not measured: that takes root" >&2; fi

# The table of docs/performance.md, in an hour and a half, on a machine that does nothing else.
compare: $(VENV)/.dev
	$(BIN)/python -m perf run --set full --subjects direct,veth,ours,ebpf,upstream,slirp4netns \
		--rounds 3 --output docs/performance/results.json $(if $(PEERS),--peers $(PEERS)) $(PERF)
	$(BIN)/python -m perf report docs/performance/results.json --folder docs/performance \
		--insert docs/performance.md --insert README.md

clean:
	rm -rf $(VENV) .fuzz build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
