# The project's commands. Thin: run_all.py does the work, and only this file knows of .venv and apt.
#   make study   set-up, baseline and hybrid trained again and compared with their records, then the whole study up to
#                outputs/cpu/report.pdf; ARGS="--study smoke" gives run_all.py other arguments than --reproduce
#   make verify  trains two runs chosen at random again and compares them with their records; ARGS="5 --study gpt2-small"
#   make test    every test; ARGS="tests/test_golden.py" some (5 is pytest's status where it finds none of them)
#   make crash-test  kills, faults, damage and broken inputs by the hundred; its figures go to outputs/cpu/results/
#   make gpu-check  on a machine with a CUDA GPU: its tests, a short GPT-2 Small of every arm, and the ratios as a table
#   make prose   the English text that some sweeps of --full train on: a dictionary, from Debian's package dict-gcide
#   make lab     JupyterLab on notebooks/index.ipynb
#   make browser  Chromium and its driver, from Debian, for the tests that look at pages and notebooks as people see them
#   make clean   removes what can be made again: .venv, caches, the smoke study
PYTHON ?= python3
# Python makes no environment in a folder whose path has a colon: it lies in the user's cache then.
VENV := $(if $(findstring :,$(CURDIR)),$(HOME)/.cache/hybridlib/$(shell pwd | cksum | cut -d ' ' -f 1),.venv)
BIN := $(VENV)/bin
WORKERS ?= 2
TEX := texlive-xetex texlive-fonts-recommended texlive-plain-generic pandoc fonts-texgyre fonts-texgyre-math
CHROMIUM := chromium chromium-driver
AS_ROOT := $(if $(filter 0,$(shell id -u)),env,sudo -n)

.PHONY: study verify test crash-test gpu-check lab clean setup tex browser lock prose
.DEFAULT_GOAL := study

study: setup tex
	$(BIN)/python run_all.py $(or $(ARGS),--reproduce)

verify: setup
	$(BIN)/python run_all.py --verify $(ARGS)

# Compiled modules are kept, whatever the environment says: many tests start processes that import the project.
test: export PYTHONDONTWRITEBYTECODE =
test: setup tex browser
	@command -v pdftotext >/dev/null || $(call apt-install,poppler-utils)
	$(BIN)/ruff check --quiet && $(BIN)/ruff format --check --quiet
	$(BIN)/python -m pytest -m "not timed" --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS) || [ $$? = 5 ]
	$(BIN)/python -m pytest -m timed $(ARGS) || [ $$? = 5 ]

crash-test: setup tex
	$(BIN)/python -m pytest tests/test_crash.py tests/test_killed_reports.py tests/test_damage.py tests/test_any_damage.py \
	  tests/test_faults.py tests/test_inputs.py tests/test_cluster.py tests/test_cluster_kills.py --kills 100 \
	  --pipeline-kills 20 --faults 3 --inputs 10000 --damages 2000 --cluster-kills 36 --cluster-runs 2000 \
	  --record outputs/cpu/results $(ARGS)

gpu-check: setup
	$(BIN)/python -m pytest -m cuda -v -rs $(ARGS)
	$(BIN)/python -m hybridlib.benchmark --study gpt2-small --larger gpt2-medium --device cuda:0

lab: setup
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/index.ipynb $(if $(filter env,$(AS_ROOT)),--allow-root) $(ARGS)

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis *.egg-info outputs/smoke outputs/*/reproduced
	find hybridlib tests -name __pycache__ -type d -prune -exec rm -rf {} +

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11'; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(call apt-install,python3-venv)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Without TeX a study runs, and says at its end that it has no PDF: so a refusal here stops nothing.
tex:
	@command -v pandoc >/dev/null && command -v xelatex >/dev/null && kpsewhich ulem.sty >/dev/null && kpsewhich texgyretermes-math.otf >/dev/null \
	  || $(call apt-install,$(TEX)) || true

# Without a browser its tests are skipped.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || $(call apt-install,$(CHROMIUM)) || true

prose: .cache/prose/gcide.txt

.cache/prose/gcide.txt:
	mkdir -p $(@D)
	cd $(@D) && apt-get download -qq dict-gcide && dpkg-deb --extract dict-gcide_*.deb deb
	gzip -dc $(@D)/deb/usr/share/dictd/gcide.dict.dz | iconv -c -f utf-8 -t utf-8 > $@.part || test -s $@.part
	rm -rf $(@D)/deb $(@D)/dict-gcide_*.deb
	mv $@.part $@

# After a change of pyproject.toml, in a fresh environment.
lock:
	$(BIN)/pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' > requirements.lock

apt-install = { $(AS_ROOT) true 2>/dev/null && command -v apt-get >/dev/null \
  && $(AS_ROOT) apt-get update -qq \
  && $(AS_ROOT) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(1); } \
  || { echo 'These packages are missing and could not be installed from here: $(1)'; \
       echo 'Install them (Debian, Ubuntu: sudo apt-get install $(1)), then run make again.'; false; }
