PYTHON ?= python3
VENV   := .venv
RUN_IN := $(VENV)/bin/python

SOURCE     ?= stories
VOCAB_SIZE ?= 2048
DATA       ?= tokens/stories
PRESET     ?= quickstart
RUN        ?= runs/$(PRESET)
ARGS       ?=

INSTALLED := $(VENV)/.installed
BUILT     := $(VENV)/.built
CSRC      := $(shell find kernels/csrc -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help setup train sample lens chat serve docs test lint bench gpu-check clean

help:
	@echo 'make setup        .venv with everything built, which all other targets make first'
	@echo 'make train        the corpus, a tokenizer and a model, in a few minutes: runs/quickstart'
	@echo 'make sample       a story by it; ARGS=--interactive writes one with you'
	@echo 'make lens         a page that runs it and shows what is inside it, opened in the browser'
	@echo 'make chat         teach it to follow instructions, and talk to it'
	@echo "make serve        put it behind OpenAI's API at http://127.0.0.1:8000/v1"
	@echo 'make docs         the pages as a site with search that needs no network: build/site/index.html'
	@echo 'make test lint    what must be green before a change lands'
	@echo 'make bench        every benchmark beside its peers'
	@echo 'make gpu-check    build, test and measure the CUDA kernels on a machine with a GPU'
	@echo 'make clean        remove what was built; runs and tokens stay'
	@echo 'With SOURCE=my.txt RUN=runs/mine DATA=tokens/mine PRESET=… ARGS=…: python train.py --help and docs/ say more.'

$(INSTALLED): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "slm needs Python 3.11 or newer, this is %s: set PYTHON=…" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(RUN_IN) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

$(BUILT): $(INSTALLED) setup.py kernels/toolchain.py pyproject.toml $(CSRC)
	$(RUN_IN) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
		--config-settings editable_mode=compat --editable .
	@touch $@

setup: $(BUILT)

$(DATA)/meta.json: | $(BUILT)
	$(RUN_IN) -m data prepare --source '$(SOURCE)' --vocab-size $(VOCAB_SIZE) --out $(DATA)

# A source or size that is asked for is held against what DATA holds, so that no other corpus is trained on.
ifneq ($(origin SOURCE) $(origin VOCAB_SIZE),file file)
.PHONY: $(DATA)/meta.json
endif

train: $(BUILT) $(DATA)/meta.json
	$(RUN_IN) train.py --preset $(PRESET) --data $(DATA) --run $(RUN) --overwrite $(ARGS)

sample: $(BUILT)
	$(RUN_IN) sample.py --run $(RUN) $(ARGS)

lens: $(BUILT)
	$(RUN_IN) -m lens $(RUN) --index $(DATA) $(ARGS)

# Instruction data for the quickstart, fine-tuning, rewards, how well each stage follows instructions, a chat.
runs/quickstart/report.json: | $(BUILT) $(DATA)/meta.json
	$(RUN_IN) train.py --preset quickstart --run runs/quickstart --overwrite

tokens/chat/meta.json: | $(BUILT) runs/quickstart/report.json
	$(RUN_IN) -m alignment data

chat: $(BUILT) tokens/chat/meta.json
	$(RUN_IN) -m alignment sft --overwrite
	$(RUN_IN) -m alignment grpo --overwrite
	$(RUN_IN) -m alignment evaluate runs/quickstart runs/sft runs/grpo --samples 0 --prompts 200
	$(RUN_IN) sample.py --chat --run runs/grpo

serve: $(BUILT)
	$(RUN_IN) -m serving $(RUN) $(ARGS)

# The packages of the extra docs, which nothing else needs.
$(VENV)/.docs: $(INSTALLED) pyproject.toml
	$(RUN_IN) -m pip install --quiet --disable-pip-version-check -c requirements.lock \
		$$($(RUN_IN) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	@touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(RUN_IN) -m mkdocs build --quiet --strict
	@echo 'open build/site/index.html'

test: $(BUILT)
	$(RUN_IN) -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(BUILT)
	$(RUN_IN) -m ruff check .
	$(RUN_IN) -m ruff format --check .
	$(VENV)/bin/lint-imports

# Without what trains for an hour or more, or needs a run of make chat.
LONG := $(addprefix benchmarks/, variants.py scaling.py alignment.py)

bench: $(BUILT)
	@for question in $(filter-out $(LONG), $(wildcard benchmarks/*.py)); do echo "$$question"; $(RUN_IN) "$$question" || exit 1; done
	$(RUN_IN) -m kernels bench

# With the Python that PYTHON names, as it is: a machine with a GPU may have no network to make an environment from.
gpu-check:
	PYTHON='$(PYTHON)' scripts/gpu_check.sh $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info kernels/*.so
