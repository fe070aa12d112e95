# One entry for everything; `make` alone lists it.
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIN    := $(shell sed -n 's/^version //p' patches/UPSTREAM)

help:      ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

# The bindings come without libraries of their own: ours is the one they load.
$(VENV)/.installed: pyproject.toml CMakeLists.txt patches/UPSTREAM patches/series patches/prepare.py $(wildcard patches/*.patch patches/src/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	@# setuptools and wheel: rouge-score comes as source, and nothing here is built in isolation
	$(BIN)/pip install --quiet cmake ninja "scikit-build-core>=0.11" "patch-ng>=1.18" setuptools wheel
	$(BIN)/pip show --quiet llama-cpp-python 2>/dev/null || \
		CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" $(BIN)/pip install --quiet "llama-cpp-python==$(PIN)"
	CMAKE_ARGS="-DGGML_NATIVE=ON $(CMAKE_ARGS)" $(BIN)/pip install --no-build-isolation --editable ".[demo,dev]"
	touch $@

setup: $(VENV)/.installed ## build and install into .venv, with the demo model

demo: setup ## read 4,000 tokens with 512 rows of cache and answer from their beginning
	$(BIN)/restkv-chat demo --budget 512 --temp 0 -f benchmarks/harbour.txt \
		-p "What is the registration number of the red lighthouse?"

chat: setup ## chat with the demo model
	$(BIN)/restkv-chat demo

lint: setup ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell README.md ARCHITECTURE.md CHANGELOG.md restkv_local cli patches/README.md patches/src
	@# cli/ is installed as restkv_local.cli: show mypy the tree as it is installed
	@rm -rf build/types && mkdir -p build/types/restkv_local
	@ln -sfn $(CURDIR)/restkv_local/* build/types/restkv_local/ && ln -sfn $(CURDIR)/cli build/types/restkv_local/cli
	MYPYPATH=build/types $(BIN)/mypy -p restkv_local
	$(BIN)/mypy patches/prepare.py patches/check.py
	$(BIN)/python benchmarks/report.py --check

test: lint ## lint and all tests but the slow ones
	$(BIN)/pytest

test-slow: setup stock ## the long tests too, with the unpatched library to compare with
	$(BIN)/pytest -m "slow or not slow"

test-gpu: setup ## native and engine tests with every layer on the GPU; needs a GPU build
	$(BIN)/pytest --gpu tests/native tests/engine

stock: setup ## build the unpatched sources once, to compare with
	$(BIN)/cmake -S . -B build/stock -G Ninja -DRESTKV_STOCK=ON -DGGML_NATIVE=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
		-DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) --log-level=WARNING
	$(BIN)/cmake --build build/stock --target restkv

kvpress: setup ## kept rows beside kvpress, on the same tensors (an environment of its own: 1.4 GB with the CPU build of torch)
	$(PYTHON) -m venv build/kvpress && build/kvpress/bin/pip install --quiet -r benchmarks/kvpress/requirements.txt
	build/kvpress/bin/python benchmarks/kvpress/capture.py \
		"$$($(BIN)/python -c 'import restkv_local.model.demo as d; print(d.resolve_model("demo"))')" build/kvpress-capture
	$(BIN)/python benchmarks/kvpress/overlap.py build/kvpress-capture

patches-check: setup ## the series applies to the pin and exports to itself
	$(BIN)/python patches/check.py --downloads build/downloads

patches-export: setup ## write the commits of build/llama.cpp (see patches/README.md) back to the series
	$(BIN)/python patches/check.py --downloads build/downloads --export build/llama.cpp

bench: setup ## needles of restkv+ with 512 rows, talks, speed and memory; hours, goes on where it was stopped
	mkdir -p build
	$(BIN)/python benchmarks/requantise.py demo build/smollm2-q8_0.gguf
	for n in 1500 4000 8000 16000 32000; do \
		$(BIN)/python benchmarks/needle.py --model build/smollm2-q8_0.gguf --tokens $$n --budget 512 \
			--policy restkv+ --set allocation=global --json build/needle.jsonl || exit; \
	done
	$(BIN)/python benchmarks/talk.py --model build/smollm2-q8_0.gguf --json build/talk.jsonl
	$(BIN)/restkv bench demo --budget 1024 -d 1024,8192,32768 --profile --log build/bench.jsonl --png build/bench.png

.PHONY: help setup demo chat lint test test-slow test-gpu stock patches-check patches-export bench kvpress
