# CUDA: where it is, and the tests of the CUDA code. Included by the Makefile.
#
# make emu-test            every kernel on the CPU, through the stand-in of tests/emu; needs the CUDA Toolkit's headers, no GPU
# make emu-schedules       the programs too, and all of it in other orders of threads, with streams that run as late as they may
# make emu-asan            the kernels and all but the longest training runs under AddressSanitizer
# make emu-tsan            the kernels, without training runs, under ThreadSanitizer
# make cuda-compile-check  all that nvcc ever compiles, warnings as errors, and the registers and tensor core instructions of every kernel
# make program-test        some tests of the programs, with those that nvcc built, where there is one, and with bench_infer
# make kernel-table        writes that table to dev/results/kernel-resources.md
# make gpu-test            on a GPU: the tests, the programs, both under compute-sanitizer (blocks of gpu-day)

# nvcc and cuBLASLt, where there are both. The programs then run on a GPU, and where they find none, on the CPU.
comma := ,
ifeq ($(origin NVCC),undefined)
NVCC := $(firstword $(wildcard $(CUDA_HOME)/bin/nvcc) $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
endif
CUDA_HOME ?= $(if $(NVCC),$(abspath $(dir $(realpath $(NVCC)))..),/usr/local/cuda)
CUDA_INCLUDE = $(CUDA_HOME)/include
CUDA_LIB = $(firstword $(wildcard $(CUDA_HOME)/lib64 $(CUDA_HOME)/lib))
# NCCL, for many GPUs, where it is: beside CUDA or in the system's folders.
HAVE_NCCL := $(and $(call have_headers,nccl.h,-isystem $(CUDA_INCLUDE)),$(wildcard \
               $(CUDA_LIB)/libnccl.so /usr/lib/$(ARCH)-linux-gnu/libnccl.so /usr/lib64/libnccl.so),1)
NCCL = $(if $(HAVE_NCCL),-DHAVE_NCCL)
GPU_LIBS = -L$(CUDA_LIB) -Wl,-rpath,$(CUDA_LIB) -lcublasLt $(if $(HAVE_NCCL),-lnccl) -lcudart_static -lrt -ldl -lpthread
ifneq ($(USE_CUDA),0)
HAVE_CUDA := $(and $(NVCC),$(wildcard $(CUDA_INCLUDE)/cublasLt.h),$(wildcard $(CUDA_LIB)/libcublasLt.so),1)
endif

# For the GPUs of this machine; where it has none, sm_80's code for every newer one (compiled at the first start). Warpgroup products
# (runtime/wgmma.cuh) are in code for sm_90a alone, which every GPU of compute capability 9.0 runs and nvcc makes only where it is
# named, not for -arch=native. No other GPU can use compute_90a's PTX: the one for newer GPUs has no letter.
GPU ?= $(if $(shell nvidia-smi -L 2>/dev/null),native,80)
ifneq ($(and $(HAVE_CUDA),$(GPU)),$(and $(HAVE_CUDA),$(shell echo '$(GPU)' | grep -xE 'native|[0-9]+[af]?( [0-9]+[af]?)*')))
$(error GPU: expected native, or architectures such as 80 or "80 90", found "$(GPU)")
endif
gencode = -gencode arch=compute_$(1:90=90a),code=sm_$(1:90=90a)
capabilities = $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -xE '([89]|[1-9][0-9])\.[0-9]' | tr -d . | sort -un)
GPUS := $(if $(filter native,$(GPU)),$(capabilities),$(GPU))
newest := $(shell printf '%s\n' $(GPUS:%a=%) | sort -n | tail -n 1)
GPU_FLAGS = $(or $(foreach g,$(GPUS),$(call gencode,$(g))),-arch=native) \
            $(if $(filter-out native,$(GPU)),-gencode arch=compute_$(newest)$(comma)code=compute_$(newest))
# (What nvcc makes of a kernel for the host is declared nowhere.)
NVCC_HOST = $(foreach f,$(filter-out -std=% -O% -Werror -Wmissing-declarations,$(CXXFLAGS)),-Xcompiler=$(f))
NVCC_FLAGS = -std=c++20 --threads 0 -DTN_CUDA $(NCCL) $(CPPFLAGS) $(NVCC_HOST) -ccbin $(lastword $(CXX))
# How the programs are compiled and linked, and what --version says.
ifdef HAVE_CUDA
COMPILE_CU = $(NVCC) -O3 $(NVCC_FLAGS) $(NVCC_STRICT) $(GPU_FLAGS)
CUDA_LIBS = $(GPU_LIBS)
CUDA_VERSION_FLAGS = -DTN_CUDA $(NCCL) -isystem $(CUDA_INCLUDE)
else
COMPILE_CU = $(CXX) $(CPPFLAGS) $(CXXFLAGS) -x c++
endif

# ---- on the CPU, by programs for the CPU --------------------------------------------------------------------------------
# make test uses these where nvcc would build the others: that takes minutes, and without a GPU they do the same, but take a
# tenth of a second to start. (make program-test runs the others.)
ifdef HAVE_CUDA
BIN = $(BUILD)/cpu
$(eval $(call objects,$(BIN),$(CXX) $(CPPFLAGS) $(CXXFLAGS),$(CXX) $(CPPFLAGS) $(CXXFLAGS) -x c++))
$(BIN)/train_gpt $(BIN)/infer: $(BIN)/%: $(BIN)/%.o $(TRAIN) $(LIBRARY)
	$(CXX) $(LDFLAGS) $^ $(LDLIBS) $(MPI_LIBS) -o $@
$(BIN)/fold: fold
	@mkdir -p $(@D)
	cp $< $@
else
BIN = .
endif
TESTED = $(addprefix $(BIN)/,$(PROGRAMS))

# ---- on the CPU, through the stand-in -------------------------------------------------------------------------------
# tests/emu is a project of its own: a static library that stands in for CUDA's, with its own tests. EMU_SANITIZE=address or
# thread builds it, the kernels and their tests for that sanitizer.
.PHONY: emu-kernels emu-test emu-schedules emu-programs emu-backward emu-random emu-asan emu-tsan cuda-compile-check program-test kernel-table gpu-test need-nvcc
EMU_SANITIZE ?= $(SANITIZE)
EMU = $(BUILD)/emu$(EMU_SANITIZE:%=-%)
# Relative paths: a checkout may be in a folder whose name has a space, which no target of make may have.
from_emu = $(if $(filter /%,$(1)),,../../)$(1)
EMU_MAKE = $(MAKE) -C tests/emu BUILD="$(call from_emu,$(EMU))" SANITIZE="$(EMU_SANITIZE)" CUDA_INCLUDE="$(CUDA_INCLUDE)"
EMU_LINK = -fsanitize=alignment $(EMU_SANITIZE:%=-fsanitize=%) -lrt -ldl -lpthread
EMU_CXX = $(CXX) -std=c++20 -O1 -fno-math-errno -fno-strict-aliasing -fsanitize=alignment \
          -fno-sanitize-recover=alignment $(EMU_SANITIZE:%=-g1 -fsanitize=% -fno-omit-frame-pointer -Wno-maybe-uninitialized) -fopenmp $(WARNINGS) \
          -Wno-unknown-pragmas -DTN_CUDA -DCUDA_EMU -DHAVE_NCCL -Itests/emu $(CPPFLAGS) -isystem $(CUDA_INCLUDE)
$(eval $(call objects,$(EMU),$(EMU_CXX),$(EMU_CXX) -x c++))
CUDA_TESTS = $(wildcard tests/cuda/*.cpp)
# (Under ThreadSanitizer hardly any test of the model runs: see EMU_LONG.)
EMU_TESTS = $(patsubst %.cpp,$(EMU)/%.o,tests/main.cpp \
              $(filter-out $(if $(filter thread,$(EMU_SANITIZE)),tests/cuda/test_cuda_model.cpp),$(CUDA_TESTS)))
EMU_PROGRAMS = $(addprefix $(EMU)/,train_gpt infer bench_infer)
EMU_PROGRAM_TESTS = $(patsubst %,$(EMU)/tests/cuda/test_cuda_%.o,infer ranks)
$(EMU_TESTS): | need-tests

# Made by a make of its own, which knows what is new.
$(EMU)/libemu.a: FORCE
	+$(EMU_MAKE) "$(call from_emu,$@)"
$(EMU)/run_emu_tests: FORCE $(EMU)/libemu.a
	+$(EMU_MAKE) "$(call from_emu,$@)"
$(EMU)/run_kernel_tests: $(filter-out $(EMU_PROGRAM_TESTS),$(EMU_TESTS))
$(EMU)/run_cuda_tests: $(EMU_TESTS) | $(EMU_PROGRAMS)
$(EMU)/train_gpt $(EMU)/infer: %: %.o
$(EMU)/bench_infer $(EMU)/bench_gpu $(EMU)/bench_attention: $(EMU)/%: $(EMU)/dev/%.o
$(EMU)/run_kernel_tests $(EMU)/run_cuda_tests $(EMU)/bench_gpu $(EMU)/bench_attention $(EMU_PROGRAMS): $(TRAIN) $(LIBRARY) $(EMU)/libemu.a
	$(CXX) $(LDFLAGS) $(filter %.o,$^) $(EMU)/libemu.a $(LDLIBS) $(MPI_LIBS) $(EMU_LINK) -o $@

# Under the sanitizers and in other orders: without the longest training runs, under ThreadSanitizer without any, and without
# the programs. (Their CPU side must be of one thread there: ThreadSanitizer does not know OpenMP.)
EMU_LONG = cuda attention: which*,cuda attention: kernels for*,cuda trainer: 30 updates*,cuda trainer: runs are equal*,cuda trainer: recomputation*,cuda trainer: attention by warpgroups agrees*,cuda attention: long*
emu-tsan: EMU_LONG = cuda attention: which*,cuda attention: kernels for*,cuda attention: long*,cuda sampling: the host*,cuda decoding: greedy*,cuda decoding: the same graph*,cuda decoding: more sequences*,cuda decoding: the models*,cuda decoding by one kernel: greedy*,cuda decoding by one kernel: the same*
emu_run = $(1) $(2)/run_emu_tests && $(1) $(2)/run_cuda_tests
HAVE_EMU := $(call have_headers,cublasLt.h nccl.h,-isystem $(CUDA_INCLUDE))
ifeq ($(HAVE_EMU),1)
emu-kernels: $(EMU)/run_kernel_tests $(EMU)/run_emu_tests
emu-test: emu-kernels
	$(EMU)/run_emu_tests
	$(EMU)/run_kernel_tests
emu-schedules: emu-programs emu-backward emu-random
emu-programs emu-backward emu-random: $(EMU)/run_cuda_tests $(EMU)/run_emu_tests
emu-programs:
	$(EMU)/run_cuda_tests -sf="*test_cuda_infer*,*test_cuda_ranks*"
emu-backward:
	$(call emu_run,EMU_ORDER=backward EMU_LAZY=1,$(EMU)) -tce="$(EMU_LONG)"
emu-random:
	$(call emu_run,EMU_ORDER=1 EMU_LAZY=1,$(EMU)) -tce="$(EMU_LONG)"
emu-asan:
	$(MAKE) emu-kernels EMU_SANITIZE=address
	$(BUILD)/emu-address/run_emu_tests
	$(BUILD)/emu-address/run_kernel_tests -tce="$(EMU_LONG)"
emu-tsan:
	$(MAKE) emu-kernels EMU_SANITIZE=thread
	$(BUILD)/emu-thread/run_emu_tests
	$(BUILD)/emu-thread/run_kernel_tests -tce="$(EMU_LONG)"
else
emu-kernels emu-test emu-schedules emu-asan emu-tsan:
	@echo "$@: skipped: no cublasLt.h and nccl.h in $(CUDA_INCLUDE); set CUDA_HOME to a CUDA Toolkit (12 or later)"
endif

# ---- by nvcc --------------------------------------------------------------------------------------------------------
# The kernels of the trainer, which has all, for three architectures: device code alone. None may spill registers, and the machine code
# must have the tensor core instructions that its names promise (dev/kernel_resources.py). The table is compared with the committed
# one, which must list the same kernels. Of what is not shipped, only whether nvcc takes it.
CHECK = $(BUILD)/compile_check
STRICT = --Werror all-warnings -Xcompiler=-Werror
NVCC_CHECK = $(NVCC) $(NVCC_FLAGS) $(STRICT) -x cu
$(eval $(call objects,$(CHECK),$(NVCC_CHECK),$(NVCC_CHECK)))
CHECKED = $(patsubst %,$(CHECK)/%.o,$(basename $(CUDA_TESTS) dev/bench_gpu.cu dev/bench_attention.cu))
$(CHECKED): EXTRA = -O0 -Xcicc -O0 -gencode arch=compute_80$(comma)code=compute_80
$(CHECKED): | need-tests
$(CHECK)/train_gpt.o: EXTRA = -O3 -fatbin --no-compress $(foreach g,80 90 100,$(call gencode,$(g))) -Xptxas -v \
                          2> $(CHECK)/kernels.log || (cat $(CHECK)/kernels.log; false)
COMMITTED_TABLE = dev/results/kernel-resources.md
$(if $(filter cuda-compile-check,$(MAKECMDGOALS)),$(eval NVCC_STRICT = $(STRICT)))
ifdef HAVE_CUDA
cuda-compile-check: $(CHECKED) $(CHECK)/kernel-resources.md $(PROGRAMS) bench_infer
else
cuda-compile-check:
	@echo "$@: skipped: no nvcc and cuBLASLt in $(CUDA_HOME); set CUDA_HOME to a CUDA Toolkit (12 or later)"
endif
program-test: $(PROGRAMS) bench_infer $(BUILD)/run_tests
	OMP_WAIT_POLICY=passive $(BUILD)/run_tests -tc="programs: train*$(comma)bench_infer*$(comma)infer*"
$(CHECK)/kernel-resources.md: $(CHECK)/train_gpt.o dev/kernel_resources.py $(COMMITTED_TABLE)
	NVCC="$(NVCC)" dev/kernel_resources.py $(CHECK)/kernels.log $< $@ $(COMMITTED_TABLE)
kernel-table: need-nvcc $(CHECK)/train_gpt.o
	NVCC="$(NVCC)" dev/kernel_resources.py $(CHECK)/kernels.log $< $(COMMITTED_TABLE)

# ---- on a GPU -------------------------------------------------------------------------------------------------------
# The same tests as on the stand-in, the programs, and both under compute-sanitizer.
NVCC_GPU = $(NVCC) -O3 $(NVCC_FLAGS) $(GPU_FLAGS)
$(eval $(call objects,$(BUILD)/gpu,$(NVCC_GPU) -x cu,$(NVCC_GPU)))
$(BUILD)/gpu/run_cuda_tests: $(CUDA_TESTS:%.cpp=$(BUILD)/gpu/%.o) $(BUILD)/tests/main.o $(TRAIN) $(LIBRARY)
	$(CXX) $(LDFLAGS) $^ $(LDLIBS) $(MPI_LIBS) $(GPU_LIBS) -o $@
need-nvcc:
	@$(if $(HAVE_CUDA),:,echo "this target needs nvcc and cuBLASLt (CUDA 12 or later), which are not in $(CUDA_HOME): set CUDA_HOME" >&2; exit 1)
gpu-test: BLOCKS = tests sanitizer
gpu-test: gpu-day
