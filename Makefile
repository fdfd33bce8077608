PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 3
PIP := $(BIN)/pip --disable-pip-version-check --quiet

# Every test process and every program that tests start would compile the modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test check format docs parts attack bench bench-check soak chaos clean

run: $(VENV)/.installed ## start the proxy on 127.0.0.1:5000, mirroring Docker Hub
	@exec $(BIN)/millpond serve $(ARGS)

test: $(VENV)/.installed-test ## every check and every test, real clients included, by WORKERS=3 processes
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target check parts
	$(BIN)/python -m pytest --numprocesses $(WORKERS) $(ARGS)

check: $(VENV)/.installed-test ## formatting, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

docs: $(VENV)/.installed ## write the generated parts of the documents
	$(BIN)/python -m docs.generate

parts: $(VENV)/.installed-test ## the real registries, clients and issuers that the tests drive
	@tests/parts/install

attack: $(VENV)/.installed-test ## hostile registries and clients against the real program; ONLY="'endless body' ranges"
	@exec $(BIN)/python -m tests.attack $(ONLY)

bench: $(VENV)/.installed-test ## beside the rivals; ONLY="case case", ROUNDS=5, ARGS=--write-baseline
	@exec $(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

bench-check: $(VENV)/.installed-test ## fail if a ratio is 15 % worse than in benchmarks/baseline.json
	@exec $(BIN)/python -m benchmarks --check $(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS))

soak: $(VENV)/.installed-test ## MINUTES=30 of mixed load on a small cache, then KILLS=500 kills and power cuts
	@$(BIN)/python -m benchmarks.soak $(MINUTES)
	@$(BIN)/python -m tests.crash --kills $(or $(KILLS),500) --seconds 3600
	@$(BIN)/python -m tests.crash --kills $(or $(KILLS),500) --seconds 3600 --cuts-power

chaos: $(VENV)/.installed-test ## three replicas whose machines, Redis and bucket fail for MINUTES=5; SEED=N
	@$(BIN)/python -m tests.fleet.chaos --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED))

clean:
	rm -rf $(VENV) build *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Millpond needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	       && { apt-get -qq update && apt-get -qq install -y --no-install-recommends python3-venv; } >&2; } \
	  || { echo "Python's venv module is missing; install it with: apt-get install python3-venv" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Setting up $(VENV) ..." >&2
	@$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-test: $(BIN)/python pyproject.toml constraints.txt
	@echo "Setting up $(VENV) for tests ..." >&2
	@$(PIP) install --constraint constraints.txt --editable '.[test]'
	@touch $(VENV)/.installed $@
