PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test smoke e2e lint types check docs wheel-check fuzz hostile kills thorough extras speed clean

demo: $(READY)  ## compare methods on images and on text; two to three minutes after set-up
	$(BIN)/fedistill compare examples/digits.toml
	$(BIN)/fedistill compare examples/bbc-news.toml

test: $(READY)  ## all tests
	$(BIN)/python -m pytest -n auto --dist worksteal --ignore tests/flower/test_network.py

smoke: $(READY)  ## one run on a network of processes, stopped and resumed
	$(BIN)/python -m pytest tests/flower/test_network.py -k stopped_and_resumed

e2e: $(READY)  ## all tests on a network of processes: SuperLink and SuperNodes on this machine
	$(BIN)/python -m pytest tests/flower/test_network.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

check: lint types test

docs: $(READY)  ## the site, in site/; a warning, a broken link or a page that loads from elsewhere is an error
	$(BIN)/python docs/generate.py --check
	$(BIN)/zensical build --clean --strict
	! grep -rlE '<(script|link|img|iframe)[^>]* (src|href)="(https?:)?//' site --include='*.html'

wheel-check: $(READY)  ## builds the wheel, installs it in an empty environment and runs it there, also on own data
	PYTHON=$(PYTHON) TESTS=$(abspath $(BIN))/python .ci/wheel-check

$(READY): pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs,flower]'
	touch $(READY)

hostile: $(READY)  ## complete frames with hostile content, for the server of every method; CASES and SEED as for fuzz
	PYTHONPATH=tests $(BIN)/python tests/contract/hostile.py --cases $(or $(CASES),100000) --seed $(or $(SEED),0)

fuzz: $(READY)  ## bytes that nobody meant, for every decoder; CASES and SEED say how many and which
	$(BIN)/python tests/communication/fuzzing.py --cases $(or $(CASES),1000000) --seed $(or $(SEED),0)

kills: $(READY)  ## a run that is killed at random moments ends in the same bits; KILLS and SEED say how many and which
	$(BIN)/python benchmarks/kills.py --kills $(or $(KILLS),300) --seed $(or $(SEED),0)

thorough: $(READY)  ## the long tests, and many more examples of each property
	$(BIN)/python -m pytest -n auto --dist worksteal -m long
	$(BIN)/python -m pytest -n auto --dist worksteal --hypothesis-profile thorough tests/aggregation \
		tests/communication tests/data tests/methods tests/oracle tests/test_state.py

speed: $(READY)  ## all that docs/speed.md measures, two to three hours; FEDISTILL_DATA names a folder with Fashion-MNIST
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/peers.py --environments runs/peers
	$(BIN)/python benchmarks/small_clients.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/many_classes.py
	$(BIN)/python benchmarks/storage.py
	$(BIN)/python benchmarks/storage.py --clients 10000
	$(BIN)/python docs/generate.py

extras: e2e thorough wheel-check fuzz hostile kills  ## what takes long and .ci/run leaves out

clean:
	rm -rf $(VENV) runs site dist build
