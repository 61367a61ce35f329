# Benchmarks, and what developers need. Included by the Makefile.
#
# make bench        speed and memory, as ratios to peers and limits measured in the same run
# make bench_infer  a program: the speed of a model's states, last token and decoding
# make bench-attention  on a GPU: attention's TFLOP/s, by single warps and by warpgroups, for 256 to 16384 positions (half a minute)
# make gpu-day      on a GPU: its tests, then speed beside PyTorch and llm.c, in the order of worth, MINUTES=9 a call, and again where it
#                   stopped (dev/gpu_day.py); BLOCKS="update decoding" only these, RESULTS=DIR another folder than dev/results
# make gpu-day-programs  builds what that needs
# make gpu-day-dry-run  every block in tiny sizes, on the stand-in of tests/emu
# make gpu-science  on a GPU: trains what dev/experiments/gpu_science.py lists, MINUTES=9 a call, and again where it stopped; BOOKS=DIR
#                   has the corpus, STEPS="1 2" only these, RECORDS=FILE another file than dev/results/gpu-runs.jsonl
# make gpu-science-dry-run  the same in tiny sizes, on the stand-in of tests/emu or, without CUDA's headers, on the CPU
# make plot-env     Python with what dev/plot.py needs, and TensorBoard, in dev/.venv: 62 MB to download
# make dev-env      the same and the references and peers that dev/ compares with (PyTorch): some gigabytes; nothing else needs it
# make format       clang-format over all sources (the version of make dev-env)
.PHONY: bench bench-attention gpu-day gpu-day-programs gpu-day-dry-run gpu-science gpu-science-dry-run plot-env dev-env format
HAVE_DNNL = $(call have_headers,dnnl.h)
$(BUILD)/bench_%: $(BUILD)/dev/bench_%.o $(TRAIN) $(LIBRARY)
	$(CXX) $(LDFLAGS) $^ $(LDLIBS) $(MPI_LIBS) $(if $(HAVE_DNNL),-ldnnl) -o $@
$(BUILD)/dev/bench_train.o $(BUILD)/dev/bench_matmul.o: EXTRA = $(if $(HAVE_DNNL),-DHAVE_DNNL)
bench_infer: $(BUILD)/dev/bench_infer.o $(LIBRARY)
	$(CXX) $(LDFLAGS) $^ $(LDLIBS) $(CUDA_LIBS) -o $@

bench: deps
	$(MAKE) $(PROGRAMS) make_stories bench_infer $(BUILD)/bench_train $(BUILD)/bench_matmul
	dev/bench.py

# From the trainer's own code.
$(BUILD)/gpu/bench_gpu: $(BUILD)/gpu/dev/bench_gpu.o $(TRAIN) $(LIBRARY)
	$(CXX) $(LDFLAGS) $^ $(LDLIBS) $(MPI_LIBS) $(GPU_LIBS) -o $@
$(BUILD)/gpu/bench_attention: $(BUILD)/gpu/dev/bench_attention.o $(LIBRARY)
	$(CXX) $(LDFLAGS) $^ $(LDLIBS) $(GPU_LIBS) -o $@
bench-attention: need-nvcc
	$(MAKE) $(BUILD)/gpu/bench_attention $(if $(filter file,$(origin GPU)),GPU=native)
	$(BUILD)/gpu/bench_attention
$(BUILD)/gpu/infer: $(BUILD)/gpu/infer.o $(LIBRARY)
	$(CXX) $(LDFLAGS) $^ $(LDLIBS) $(GPU_LIBS) -o $@
$(BUILD)/gpu/bench_infer: $(BUILD)/gpu/dev/bench_infer.o $(LIBRARY)
	$(CXX) $(LDFLAGS) $^ $(LDLIBS) $(GPU_LIBS) -o $@
$(BUILD)/gpu/fold $(EMU)/fold: fold
	@mkdir -p $(@D)
	cp $< $@
gpu-day-programs: $(addprefix $(BUILD)/gpu/,run_cuda_tests bench_gpu bench_attention bench_infer train_gpt fold infer)
gpu-day: need-nvcc
	@mkdir -p $(BUILD)/gpu; date +%s > $(BUILD)/gpu/begun
	$(MAKE) gpu-day-programs $(if $(filter file,$(origin GPU)),GPU=native)
	dev/gpu_day.py --programs $(BUILD)/gpu --begun $$(cat $(BUILD)/gpu/begun) --minutes $(MINUTES) \
	    $(if $(BLOCKS),--blocks $(BLOCKS)) $(if $(RESULTS),--results "$(RESULTS)")
ifeq ($(HAVE_EMU),1)
gpu-day-dry-run: $(addprefix $(EMU)/,run_kernel_tests bench_gpu bench_attention bench_infer train_gpt fold infer)
	dev/gpu_day.py --dry-run --programs $(EMU)
else
gpu-day-dry-run:
	@echo "$@: skipped: no cublasLt.h and nccl.h in $(CUDA_INCLUDE); set CUDA_HOME to a CUDA Toolkit (12 or later)"
endif

# The time that building takes counts, too. (Without infer, which the trainer does not need.)
MINUTES ?= 9
$(BUILD)/gpu/train_gpt: $(BUILD)/gpu/train_gpt.o $(TRAIN) $(LIBRARY)
	$(CXX) $(LDFLAGS) $^ $(LDLIBS) $(MPI_LIBS) $(GPU_LIBS) -o $@
gpu-science: need-nvcc
	@mkdir -p $(BUILD)/gpu; date +%s > $(BUILD)/gpu/begun
	$(MAKE) $(BUILD)/gpu/train_gpt bpe_train $(if $(filter file,$(origin GPU)),GPU=native)
	dev/experiments/gpu_science.py --program $(BUILD)/gpu/train_gpt --begun $$(cat $(BUILD)/gpu/begun) --minutes $(MINUTES) \
	    $(if $(STEPS),--steps $(STEPS)) $(if $(BOOKS),--books "$(BOOKS)") $(if $(RECORDS),--records "$(RECORDS)")
DRY_TRAIN_GPT = $(if $(filter 1,$(HAVE_EMU)),$(EMU),$(BIN))/train_gpt
gpu-science-dry-run: $(DRY_TRAIN_GPT) bpe_train
	dev/experiments/gpu_science.py --dry-run --program $(DRY_TRAIN_GPT) --device $(if $(filter 1,$(HAVE_EMU)),cuda,cpu)

plot-env dev-env: %-env:
	@python3 -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo '$@ needs python3 and its venv (Debian, Ubuntu: apt-get install python3-venv)' >&2; exit 1; }
	python3 -m venv dev/.venv
	dev/.venv/bin/pip install -r dev/requirements$(if $(filter plot,$*),-plot).txt

format:
	$(or $(wildcard dev/.venv/bin/clang-format),clang-format) -i $(shell git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')
