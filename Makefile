# make             builds train_gpt, fold and infer: with nvcc where there is one, else for the CPU alone
# make demo        installs what is missing, builds, trains, folds, runs (about 4 minutes)
# make test        installs what is missing, builds and runs all tests
# make fuzz        readers of files under libFuzzer (clang), FUZZ_SECONDS=600 each; make crash-test: 200 kills -9
# make tsan        the CPU's threads under ThreadSanitizer (clang)
# make bench       speed and memory, as ratios to peers and limits measured in the same run
# make data-tools  prepare, bpe_train, make_stories: corpora and vocabularies (data/README.md)
# make dev-env     Python with the references and peers that dev/ compares with
# make deps        installs what is missing from the system's packages
# make format      clang-format over all sources (the version of make dev-env)
#
# For CUDA: make emu-test runs its kernels on the CPU, emu-schedules in other orders, emu-asan and emu-tsan under sanitizers;
# cuda-compile-check builds them for all architectures (kernel-table: and writes dev/results/kernel-resources.md); gpu-test and
# gpu-bench need a GPU.
#
# Settings: CXX, CUDA_HOME, NVCC, USE_CUDA=0 (ignore nvcc), USE_MPI=0, GPU=native or e.g. GPU="80 90",
#           SANITIZE=address,undefined, BUILD=<folder>
CXX ?= g++
BUILD ?= build
OPT ?= -O3
CPPFLAGS += -I.
# Ubuntu's GCC warns of formats without arguments by default; ours come through templates whose callers write literals.
CXXFLAGS += -std=c++20 $(OPT) -fno-math-errno -fopenmp -Wall -Wextra -Wno-format-security -Werror
LDFLAGS += -fopenmp
ifdef SANITIZE
# (Where it instruments, GCC takes some members of the standard library for uninitialized.)
CXXFLAGS += -fsanitize=$(SANITIZE) -fno-omit-frame-pointer -fno-sanitize-recover=undefined -Wno-error
LDFLAGS += -fsanitize=$(SANITIZE)
endif

PROGRAMS = train_gpt fold infer
DATA_TOOLS = prepare bpe_train make_stories
LIBRARY_SOURCES = $(wildcard io/*.cpp model/*.cpp inference/*.cpp) data/stories.cpp
ARCH := $(shell uname -m)
LEAF_ISAS = base $(if $(filter x86_64,$(ARCH)),avx2 avx512)
LIBRARY = $(LIBRARY_SOURCES:%.cpp=$(BUILD)/%.o) $(LEAF_ISAS:%=$(BUILD)/ops/leaf_%.o)
TEST_OBJECTS = $(patsubst %.cpp,$(BUILD)/%.o,$(wildcard tests/*.cpp))

.PHONY: all data-tools test emu-test emu-schedules emu-asan emu-tsan cuda-compile-check kernel-table gpu-test gpu-bench FORCE demo bench dev-env deps format clean
.DELETE_ON_ERROR:
PARALLEL = $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(shell nproc))
all: $(PROGRAMS)
data-tools: $(DATA_TOOLS)

# 1 where the compiler finds these headers, given these flags. (%: is C++'s other spelling of the number sign, which make would
# not pass on in all of its versions.)
have_headers = $(shell printf '%%:include <%s>\n' $(1) | $(CXX) $(2) -x c++ -E - >/dev/null 2>&1 && echo 1)

# GPT-2's tokenizer splits text with PCRE2; without it the programs know bytes only.
HAVE_PCRE2 := $(call have_headers,pcre2.h,-DPCRE2_CODE_UNIT_WIDTH=8)
ifeq ($(HAVE_PCRE2),1)
CPPFLAGS += -DHAVE_PCRE2=1
LDLIBS += -lpcre2-8
endif

# ---- many ranks -----------------------------------------------------------------------------------------------------
# Of the trainer and what contains it. Open MPI where there is one; without it, no ranks on CPUs and none by mpirun.
RANKS = $(patsubst %.cpp,$(BUILD)/%.o,$(wildcard train/*.cpp train/ranks/*.cpp))
ifneq ($(USE_MPI),0)
MPI_LIBS := $(or $(shell mpicc --showme:link 2>/dev/null),$(shell pkg-config --libs ompi-c 2>/dev/null))
MPI_FLAGS := $(or $(shell mpicc --showme:compile 2>/dev/null),$(shell pkg-config --cflags ompi-c 2>/dev/null))
endif
ifneq ($(MPI_LIBS),)
$(BUILD)/train/ranks/mpi_link.o: CPPFLAGS += -DHAVE_MPI $(patsubst -I%,-isystem %,$(MPI_FLAGS))
endif

# ---- CUDA -----------------------------------------------------------------------------------------------------------
# nvcc and cuBLASLt, where there are both. The programs then run on a GPU, and where they find none, on the CPU.
comma := ,
NVCC ?= $(firstword $(wildcard $(CUDA_HOME)/bin/nvcc) $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
CUDA_HOME ?= $(if $(NVCC),$(abspath $(dir $(realpath $(NVCC)))..),/usr/local/cuda)
CUDA_INCLUDE = $(CUDA_HOME)/include
CUDA_LIB = $(firstword $(wildcard $(CUDA_HOME)/lib64 $(CUDA_HOME)/lib))
# NCCL, for many GPUs, where it is: beside CUDA or in the system's folders.
HAVE_NCCL := $(and $(call have_headers,nccl.h,-isystem $(CUDA_INCLUDE)),$(wildcard \
               $(CUDA_LIB)/libnccl.so /usr/lib/$(ARCH)-linux-gnu/libnccl.so /usr/lib64/libnccl.so),1)
CUDA_LIBS = -L$(CUDA_LIB) -Wl,-rpath,$(CUDA_LIB) -lcublasLt $(if $(HAVE_NCCL),-lnccl) -lcudart_static -lrt -ldl -lpthread
CUDA_HEADERS := $(wildcard $(CUDA_INCLUDE)/cublasLt.h)
ifneq ($(USE_CUDA),0)
HAVE_CUDA := $(and $(NVCC),$(CUDA_HEADERS),$(wildcard $(CUDA_LIB)/libcublasLt.so),1)
endif

# For the GPUs of this machine; where it has none, sm_80's code for every newer one (compiled at the first start).
GPU ?= $(if $(shell nvidia-smi -L 2>/dev/null),native,80)
gencode = -gencode arch=compute_$(1),code=sm_$(1)
newest = $(lastword $(GPU))
GPU_FLAGS = $(if $(filter native,$(GPU)),-arch=native,$(foreach g,$(GPU),$(call gencode,$(g))) \
            -gencode arch=compute_$(newest)$(comma)code=compute_$(newest))
NVCC_HOST = $(foreach f,$(filter-out -std=% -O% -Werror,$(CXXFLAGS)),-Xcompiler=$(f))
NVCC_FLAGS = -std=c++20 -O3 --threads 0 -DTN_CUDA $(if $(HAVE_NCCL),-DHAVE_NCCL) $(CPPFLAGS) $(NVCC_HOST) -ccbin $(CXX)
NVCC_STRICT = --Werror all-warnings -Xcompiler=-Werror

# ---- programs -------------------------------------------------------------------------------------------------------
ifdef HAVE_CUDA
train_gpt infer bench_infer: LDLIBS += $(CUDA_LIBS)
COMPILE_CU = $(NVCC) $(NVCC_FLAGS) $(GPU_FLAGS) -MMD -MP -c
else
COMPILE_CU = $(CXX) $(CPPFLAGS) $(CXXFLAGS) -MMD -MP -x c++ -c
endif
# Changes when the command does, so that USE_CUDA=0 and back rebuilds the programs.
$(BUILD)/compile_cu: FORCE
	@mkdir -p $(@D)
	@echo '$(COMPILE_CU)' | cmp -s - $@ || echo '$(COMPILE_CU)' > $@
FORCE:

train_gpt: $(BUILD)/train_gpt.o $(RANKS) $(LIBRARY)
train_gpt: LDLIBS += $(MPI_LIBS)
infer: $(BUILD)/infer.o $(LIBRARY)
bench_infer: $(BUILD)/dev/bench_infer.o $(LIBRARY)
fold: $(BUILD)/fold.o $(LIBRARY)
$(PROGRAMS) bench_infer:
	$(CXX) $(LDFLAGS) $^ $(LDLIBS) -o $@

$(BUILD)/%.o: %.cu $(BUILD)/compile_cu
	@mkdir -p $(@D)
	$(COMPILE_CU) $< -o $@

$(BUILD)/%.o: %.cpp
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) -MMD -MP -c $< -o $@

# The CPU's inner loops, once per instruction set (see ops/leaf.h).
LEAF_FLAGS = -fno-trapping-math
$(BUILD)/ops/leaf_avx2.o: LEAF_FLAGS += -march=x86-64-v3
$(BUILD)/ops/leaf_avx512.o: LEAF_FLAGS += -march=x86-64-v4 -mprefer-vector-width=512
$(BUILD)/ops/leaf_%.o: ops/leaf.cpp
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) $(LEAF_FLAGS) -DLEAF_ISA=$* -MMD -MP -c $< -o $@

# Tools for corpora and vocabularies (data/README.md).
prepare: $(BUILD)/data/prepare.o $(LIBRARY)
bpe_train: $(BUILD)/data/bpe_train.o $(LIBRARY)
make_stories: $(BUILD)/data/make_stories.o $(LIBRARY)
$(DATA_TOOLS):
	$(CXX) $(LDFLAGS) $^ $(LDLIBS) -o $@

# ---- tests ----------------------------------------------------------------------------------------------------------
$(BUILD)/run_tests: $(TEST_OBJECTS) $(RANKS) $(LIBRARY)
	$(CXX) $(LDFLAGS) $^ $(LDLIBS) $(MPI_LIBS) -o $@

# Recursive, so that what deps installs is seen by the build.
test: deps
	$(MAKE) $(PARALLEL) $(PROGRAMS) $(BUILD)/run_tests
	$(BUILD)/run_tests
	$(MAKE) fuzz-replay
	$(MAKE) $(PARALLEL) emu-test
	$(MAKE) emu-schedules emu-asan emu-tsan $(if $(HAVE_CUDA),cuda-compile-check)

# ---- tests of the CUDA code -----------------------------------------------------------------------------------------
# On the CPU, through the stand-in of tests/emu; needs the CUDA Toolkit's headers and no GPU. EMU_SANITIZE=address or thread
# builds the kernels and their tests for that sanitizer; ThreadSanitizer must not see the stand-in itself.
EMU_SANITIZE ?= $(SANITIZE)
EMU = $(BUILD)/emu$(EMU_SANITIZE:%=-%)
EMU_SOURCES = $(wildcard tests/emu/*.cpp tests/test_emu*.cpp tests/cuda/*.cpp) tests/main.cpp
EMU_FLAGS = -std=c++20 -O2 -g1 -fno-math-errno -fno-strict-aliasing -fsanitize=alignment -fno-sanitize-recover=alignment \
            -fopenmp -Wall -Wextra -Wno-format-security -Werror -Wno-unknown-pragmas -DTN_CUDA -DCUDA_EMU -DHAVE_NCCL -Itests/emu $(CPPFLAGS) \
            -isystem $(CUDA_INCLUDE) $(if $(filter thread,$(EMU_SANITIZE)),-DEMU_TSAN)
EMU_INSTRUMENT = $(EMU_SANITIZE:%=-fsanitize=% -fno-omit-frame-pointer)
$(EMU)/tests/emu/%.o: EMU_FLAGS += $(filter-out %=thread,$(EMU_INSTRUMENT))
$(EMU)/tests/cuda/%.o $(EMU)/tests/test_%.o $(EMU)/train_gpt.o $(EMU)/infer.o: EMU_FLAGS += $(EMU_INSTRUMENT)
$(EMU)/%.o: %.cpp
	@mkdir -p $(@D)
	$(CXX) $(EMU_FLAGS) -MMD -MP -c $< -o $@
$(EMU)/%.o: %.cu
	@mkdir -p $(@D)
	$(CXX) $(EMU_FLAGS) -MMD -MP -x c++ -c $< -o $@
EMU_PROGRAMS = $(EMU)/train_gpt $(EMU)/infer
$(EMU_PROGRAMS): $(EMU)/%: $(EMU)/%.o $(patsubst %.cpp,$(EMU)/%.o,$(wildcard tests/emu/*.cpp)) $(RANKS) $(LIBRARY)
	$(CXX) $(LDFLAGS) -fsanitize=alignment $(EMU_INSTRUMENT) $^ $(LDLIBS) $(MPI_LIBS) -lrt -ldl -lpthread -o $@
$(EMU)/run_cuda_tests: | $(EMU_PROGRAMS)
$(EMU)/run_cuda_tests: $(EMU_SOURCES:%.cpp=$(EMU)/%.o) $(RANKS) $(LIBRARY)
	$(CXX) $(LDFLAGS) -fsanitize=alignment $(EMU_INSTRUMENT) $^ $(LDLIBS) $(MPI_LIBS) -lrt -ldl -lpthread -o $@

# Orders in which a GPU may run the threads, with streams that run as late as they may, and the sanitizers: without the
# longest training runs, under ThreadSanitizer without any.
EMU_LONG = cuda trainer: 30 updates*,cuda trainer: runs are equal*,cuda trainer: recomputation*
# (Their CPU side must be of one thread there: ThreadSanitizer does not know OpenMP.)
emu-tsan: EMU_LONG = cuda trainer*,cuda: the model file*,cuda decoding: the same graph*
HAVE_EMU := $(call have_headers,cublasLt.h nccl.h,-isystem $(CUDA_INCLUDE))
ifeq ($(HAVE_EMU),1)
emu-test: $(EMU)/run_cuda_tests
	$<
emu-schedules: $(EMU)/run_cuda_tests
	EMU_ORDER=backward EMU_LAZY=1 $< -tce="$(EMU_LONG)"
	EMU_ORDER=1 EMU_LAZY=1 $< -tce="$(EMU_LONG)"
emu-asan:
	$(MAKE) $(PARALLEL) $(BUILD)/emu-address/run_cuda_tests EMU_SANITIZE=address
	$(BUILD)/emu-address/run_cuda_tests -tce="$(EMU_LONG)"
emu-tsan:
	$(MAKE) $(PARALLEL) $(BUILD)/emu-thread/run_cuda_tests EMU_SANITIZE=thread
	$(BUILD)/emu-thread/run_cuda_tests -tce="$(EMU_LONG)"
else
emu-test emu-schedules emu-asan emu-tsan:
	@echo "$@: skipped: no cublasLt.h and nccl.h in $(CUDA_INCLUDE); set CUDA_HOME to a CUDA Toolkit (12 or later)"
endif

# All that nvcc ever compiles, warnings as errors; every kernel for three architectures, where none may spill registers.
CHECK = $(BUILD)/compile_check
GPU_SOURCES = $(wildcard tests/cuda/*.cpp) tests/test_emu.cpp
CHECKED = $(GPU_SOURCES:%.cpp=$(CHECK)/%.o) $(CHECK)/infer.o $(CHECK)/dev/bench_gpu.o
COMPILE_CHECKED = @mkdir -p $(@D); echo "nvcc $<"; $(NVCC) $(NVCC_FLAGS) $(NVCC_STRICT) -MMD -MP -x cu -c $< -o $@
cuda-compile-check:
	$(MAKE) $(PARALLEL) $(CHECKED) $(CHECK)/kernel-resources.md
# Compared with the committed table, which must list the same kernels; kernel-table makes it the committed one.
COMMITTED_TABLE = dev/results/kernel-resources.md
$(CHECK)/kernel-resources.md: $(CHECK)/train_gpt.o dev/kernel_resources.py $(COMMITTED_TABLE)
	dev/kernel_resources.py $(CHECK)/kernels.log $@ $(COMMITTED_TABLE)
kernel-table: $(CHECK)/train_gpt.o
	dev/kernel_resources.py $(CHECK)/kernels.log $(COMMITTED_TABLE)
$(CHECK)/train_gpt.o: train_gpt.cu
	$(COMPILE_CHECKED) $(foreach g,80 90 100,$(call gencode,$(g))) -Xptxas -v 2> $(CHECK)/kernels.log || \
	    (cat $(CHECK)/kernels.log; false)
$(CHECK)/%.o: %.cpp
	$(COMPILE_CHECKED) $(call gencode,80)
$(CHECK)/%.o: %.cu
	$(COMPILE_CHECKED) $(call gencode,80)

# On a GPU: the same tests as on the stand-in, the programs, and both under compute-sanitizer.
$(BUILD)/gpu/%.o: %.cpp
	@mkdir -p $(@D)
	$(NVCC) $(NVCC_FLAGS) $(GPU_FLAGS) -MMD -MP -x cu -c $< -o $@
$(BUILD)/gpu/run_cuda_tests: $(GPU_SOURCES:%.cpp=$(BUILD)/gpu/%.o) $(BUILD)/tests/main.o $(RANKS) $(LIBRARY)
	$(CXX) $(LDFLAGS) $^ $(LDLIBS) $(MPI_LIBS) $(CUDA_LIBS) -o $@
gpu-test:
	$(MAKE) $(PARALLEL) $(BUILD)/gpu/run_cuda_tests $(PROGRAMS) GPU=native
	dev/gpu_test.sh $(BUILD)/gpu/run_cuda_tests

# ---- fuzzing, crashes -----------------------------------------------------------------------------------------------
# The readers of tests/fuzz under libFuzzer, AddressSanitizer and UBSan, FUZZ_SECONDS each, from the seeds of
# dev/fuzz_seeds.sh and what earlier runs found (build/fuzz/corpus). Needs clang; without it, says so.
FUZZ_SECONDS ?= 600
.PHONY: fuzz fuzz-replay tsan crash-test
FUZZ_CXX ?= $(firstword $(shell command -v clang++ clang++-19 clang++-18 clang++-17 clang++-16 clang++-15 clang++-14))
FUZZ_TARGETS = $(patsubst tests/fuzz/fuzz_%.cpp,%,$(wildcard tests/fuzz/fuzz_*.cpp))
# No OpenMP but its number of threads, 1, so that a finding can be repeated.
FUZZ_FLAGS = -std=c++20 -O1 -g1 -fno-math-errno -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address,undefined \
             -fno-sanitize-recover=undefined -Wall -Wextra -Wno-unknown-pragmas -Wno-pass-failed
FUZZ_LIBRARY = $(patsubst %.cpp,$(BUILD)/fuzz/%.o,$(LIBRARY_SOURCES) $(wildcard train/*.cpp train/ranks/*.cpp)) $(LEAF_ISAS:%=$(BUILD)/ops/leaf_%.o)
$(BUILD)/fuzz/%.o: %.cpp
	@mkdir -p $(@D)
	$(FUZZ_CXX) $(CPPFLAGS) $(FUZZ_FLAGS) -MMD -MP -c $< -o $@
$(FUZZ_TARGETS:%=$(BUILD)/fuzz/fuzz_%): $(BUILD)/fuzz/fuzz_%: $(BUILD)/fuzz/tests/fuzz/fuzz_%.o $(FUZZ_LIBRARY)
	$(FUZZ_CXX) -fsanitize=fuzzer,address,undefined $^ $(LDLIBS) -lgomp -o $@
HAVE_FUZZER := $(if $(FUZZ_CXX),$(shell printf '%s\n' '%:include <omp.h>' \
    'extern "C" int LLVMFuzzerTestOneInput(const char*, long) { return omp_get_thread_num(); }' | \
    $(FUZZ_CXX) -x c++ -fsanitize=fuzzer,address - -lgomp -o /dev/null 2>/dev/null && echo 1))
ifeq ($(HAVE_FUZZER),1)
fuzz: $(PROGRAMS) bpe_train $(FUZZ_TARGETS:%=$(BUILD)/fuzz/fuzz_%)
	dev/fuzz.sh $(BUILD)/fuzz $(FUZZ_SECONDS) $(FUZZ_TARGETS)
else
fuzz:
	@echo "fuzz: skipped: no clang with libFuzzer (packages clang, libclang-rt-dev and libomp-dev)"
endif

# The same targets, built by any compiler, with each seed and changes of them that are always the same: for make test.
REPLAY = $(BUILD)/fuzz-replay
REPLAY_FLAGS = -std=c++20 -O1 -fno-math-errno -fno-omit-frame-pointer -fsanitize=address,undefined \
               -fno-sanitize-recover=undefined -Wall -Wextra -Wno-format-security -Werror -Wno-unknown-pragmas
REPLAY_LIBRARY = $(FUZZ_LIBRARY:$(BUILD)/fuzz/%=$(REPLAY)/%)
$(REPLAY)/%.o: %.cpp
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(REPLAY_FLAGS) -MMD -MP -c $< -o $@
$(FUZZ_TARGETS:%=$(REPLAY)/fuzz_%): $(REPLAY)/fuzz_%: $(REPLAY)/tests/fuzz/fuzz_%.o $(REPLAY)/tests/fuzz/replay.o $(REPLAY_LIBRARY)
	$(CXX) -fsanitize=address,undefined $^ $(LDLIBS) -lgomp -o $@
fuzz-replay:
	$(MAKE) $(PARALLEL) $(PROGRAMS) bpe_train $(FUZZ_TARGETS:%=$(REPLAY)/fuzz_%)
	dev/fuzz_seeds.sh $(REPLAY)/seeds
	@[ -w /dev/shm ] && export TMPDIR=/dev/shm; set -e; for target in $(FUZZ_TARGETS); do $(REPLAY)/fuzz_$$target $(REPLAY)/seeds/$$target 2000 >/dev/null; done

# ---- ThreadSanitizer ------------------------------------------------------------------------------------------------
# Ops, model, training and ranks with several threads, by Clang: its OpenMP runtime tells ThreadSanitizer of its barriers
# (Archer), GCC's does not.
TSAN_CXX ?= $(FUZZ_CXX)
TSAN_FLAGS = -std=c++20 -O1 -g1 -fno-math-errno -fopenmp -fsanitize=thread -Wall -Wextra -Wno-unknown-pragmas -Wno-pass-failed
TSAN_TESTS = main test_decoder test_matmul test_model test_ops test_panels test_ranks test_tapernorm
TSAN_OBJECTS = $(patsubst %.cpp,$(BUILD)/tsan/%.o,$(TSAN_TESTS:%=tests/%.cpp) $(LIBRARY_SOURCES) $(wildcard train/*.cpp train/ranks/*.cpp)) \
               $(LEAF_ISAS:%=$(BUILD)/tsan/ops/leaf_%.o)
$(BUILD)/tsan/%.o: %.cpp
	@mkdir -p $(@D)
	$(TSAN_CXX) $(CPPFLAGS) $(TSAN_FLAGS) -MMD -MP -c $< -o $@
$(BUILD)/tsan/ops/leaf_avx2.o: LEAF_FLAGS += -march=x86-64-v3
$(BUILD)/tsan/ops/leaf_avx512.o: LEAF_FLAGS += -march=x86-64-v4
$(BUILD)/tsan/ops/leaf_%.o: ops/leaf.cpp
	@mkdir -p $(@D)
	$(TSAN_CXX) $(CPPFLAGS) $(TSAN_FLAGS) $(LEAF_FLAGS) -DLEAF_ISA=$* -MMD -MP -c $< -o $@
$(BUILD)/tsan/run_tests: $(TSAN_OBJECTS)
	$(TSAN_CXX) -fopenmp -fsanitize=thread $^ $(LDLIBS) -o $@
ARCHER := $(if $(TSAN_CXX),$(wildcard $(shell $(TSAN_CXX) -print-resource-dir)/../../libarcher.so))
ifneq ($(ARCHER),)
tsan:
	$(MAKE) $(PARALLEL) $(BUILD)/tsan/run_tests
	OMP_WAIT_POLICY=passive OMP_TOOL_LIBRARIES=$(ARCHER) TSAN_OPTIONS="ignore_noninstrumented_modules=1 $$TSAN_OPTIONS" $(BUILD)/tsan/run_tests
else
tsan:
	@echo "tsan: skipped: no clang with OpenMP's tool Archer (packages clang and libomp-dev)"
endif

# 200 kills -9 at random moments of a run; make test has ten.
crash-test: $(PROGRAMS) $(BUILD)/run_tests
	CRASH_KILLS=200 $(BUILD)/run_tests -tc="crash*"

# ---- benchmarks -----------------------------------------------------------------------------------------------------
HAVE_DNNL := $(call have_headers,dnnl.h)
DNNL = $(if $(HAVE_DNNL),-DHAVE_DNNL -ldnnl)
$(BUILD)/bench_%: dev/bench_%.cpp train_gpt.cu $(RANKS) $(LIBRARY)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) $< $(RANKS) $(LIBRARY) $(LDLIBS) $(MPI_LIBS) $(DNNL) -o $@

bench: deps
	$(MAKE) $(PARALLEL) $(PROGRAMS) $(BUILD)/bench_train $(BUILD)/bench_matmul
	dev/bench.py

# On a GPU: one table, from the trainer's own code.
$(BUILD)/gpu/%.o: %.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVCC_FLAGS) $(GPU_FLAGS) -MMD -MP -c $< -o $@
$(BUILD)/gpu/bench_gpu: $(BUILD)/gpu/dev/bench_gpu.o $(RANKS) $(LIBRARY)
	$(CXX) $(LDFLAGS) $^ $(LDLIBS) $(MPI_LIBS) $(CUDA_LIBS) -o $@
gpu-bench:
	$(MAKE) $(PARALLEL) $(BUILD)/gpu/bench_gpu infer GPU=native
	dev/gpu_bench.sh $(BUILD)/gpu/bench_gpu

# Python with the references and peers that dev/ compares with; nothing else needs it.
dev-env:
	python3 -m venv dev/.venv
	dev/.venv/bin/pip install -r dev/requirements.txt

# ---- for people -----------------------------------------------------------------------------------------------------
demo: deps
	$(MAKE) $(PARALLEL) $(PROGRAMS)
	dev/demo.sh

deps:
	@CXX="$(CXX)" dev/install_deps.sh

format:
	$(or $(wildcard dev/.venv/bin/clang-format),clang-format) -i $(shell git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

clean:
	rm -rf $(BUILD) $(PROGRAMS)

# Not made from anything: else make would try, by its built-in rules.
$(BUILD)/%.d: ;
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
