# Benchmarks, and what developers need. Included by the Makefile.
#
# make bench        speed and memory, as ratios to peers and limits measured in the same run
# make bench_infer  a program: the speed of a model's states, last token and decoding
# make gpu-bench    one table of speeds on a GPU
# make plot-env     Python with what dev/plot.py needs, and TensorBoard, in dev/.venv: 62 MB to download
# make dev-env      the same and the references and peers that dev/ compares with (PyTorch): some gigabytes; nothing else needs it
# make format       clang-format over all sources (the version of make dev-env)
.PHONY: bench gpu-bench plot-env dev-env format
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
gpu-bench: need-nvcc
	$(MAKE) $(BUILD)/gpu/bench_gpu infer bench_infer GPU=native
	dev/gpu_bench.sh $(BUILD)/gpu/bench_gpu

plot-env dev-env: %-env:
	@python3 -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo '$@ needs python3 and its venv (Debian, Ubuntu: apt-get install python3-venv)' >&2; exit 1; }
	python3 -m venv dev/.venv
	dev/.venv/bin/pip install -r dev/requirements$(if $(filter plot,$*),-plot).txt

format:
	$(or $(wildcard dev/.venv/bin/clang-format),clang-format) -i $(shell git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')
