# make             builds train_gpt, fold and infer (so does make train_gpt): with nvcc where there is one, else for the CPU alone
# make demo        installs what is missing, builds, trains, folds, runs (6 minutes)
# make test        installs what is missing, builds and runs the tests (10 minutes on 2 cores)
# make test-all    these and what takes longer: other orders of threads, sanitizers, nvcc (CONTRIBUTING.md)
# make install     copies train_gpt, fold and infer to PREFIX/bin; PREFIX=/usr/local, DESTDIR= goes in front
# make data-tools  prepare, bpe_train, make_stories: corpora and vocabularies (data/README.md)
# make deps        installs what is missing from the system's packages (MPI=1: Open MPI, too); make clean removes what was built
# More targets are explained in dev/bench.mk (bench, format ...), tests/fuzz.mk (fuzz, tsan ...), tests/cuda.mk (gpu-test ...).
#
# Settings: CXX, CUDA_HOME, NVCC, USE_CUDA=0 (ignore nvcc), USE_MPI=0, GPU=native or e.g. GPU="80 90",
#           SANITIZE=address,undefined, OPT=-O3, BUILD=<folder>. Without -j, make uses all cores.
CXX ?= g++
BUILD ?= build
OPT ?= -O3
PREFIX ?= /usr/local
CPPFLAGS += -I.
# Ubuntu's GCC warns of formats without arguments by default; ours come through templates whose callers write literals.
WARNINGS = -Wall -Wextra -Wmissing-declarations -Wno-format-security -Werror
CXXFLAGS += -std=c++20 $(OPT) -fno-math-errno -fopenmp $(WARNINGS)
LDFLAGS += -fopenmp
ifdef SANITIZE
# (Where it instruments, GCC takes some members of the standard library for uninitialized.)
CXXFLAGS += -fsanitize=$(SANITIZE) -fno-omit-frame-pointer -fno-sanitize-recover=undefined -Wno-error
LDFLAGS += -fsanitize=$(SANITIZE)
endif

PROGRAMS = train_gpt fold infer
DATA_TOOLS = prepare bpe_train make_stories
LIBRARY_SOURCES = $(wildcard io/*.cpp model/*.cpp inference/*.cpp) data/stories.cpp
TRAIN_SOURCES = $(wildcard train/*.cpp train/ranks/*.cpp)
TEST_SOURCES = $(wildcard tests/*.cpp)
ARCH := $(shell uname -m)
LEAVES = $(patsubst %,ops/leaf_%.o,base $(if $(filter x86_64,$(ARCH)),avx2 avx512))
LIBRARY = $(LIBRARY_SOURCES:%.cpp=$(BUILD)/%.o) $(LEAVES:%=$(BUILD)/%)
TRAIN = $(TRAIN_SOURCES:%.cpp=$(BUILD)/%.o)

# On all cores, unless make was given -j, which wins. Targets that call make again must not overtake each other.
ifeq ($(MAKELEVEL)$(filter clean deps,$(MAKECMDGOALS)),0)
MAKEFLAGS += -j$(shell nproc)
$(if $(and $(word 2,$(MAKECMDGOALS)),$(filter demo test% bench emu-% gpu-%,$(MAKECMDGOALS))),$(eval .NOTPARALLEL:))
endif
.PHONY: all data-tools install demo test cpu-test test-all deps clean need-build need-tests FORCE
.DELETE_ON_ERROR:
all: $(PROGRAMS)
data-tools: $(DATA_TOOLS)
LDLIBS += -lcrypt
# 1 where the compiler finds these headers, given these flags. (%: is C++'s other way to write the number sign.)
have_headers = $(shell printf '%%:include <%s>\n' $(1) | $(CXX) $(2) -x c++ -E - >/dev/null 2>&1 && echo 1)
# GPT-2's tokenizer splits text with PCRE2; without it the programs know bytes only. Libedit edits what is typed into infer.
have_pcre2 := $(call have_headers,pcre2.h,-DPCRE2_CODE_UNIT_WIDTH=8)
have_libedit := $(call have_headers,histedit.h)
CPPFLAGS += $(if $(have_pcre2),-DHAVE_PCRE2=1) $(if $(have_libedit),-DHAVE_LIBEDIT=1)
LDLIBS += $(if $(have_pcre2),-lpcre2-8) -Wl,--as-needed $(if $(have_libedit),-ledit)
# Many ranks: Open MPI where there is one (make deps MPI=1); without it, no ranks on CPUs and none by mpirun.
ifneq ($(USE_MPI),0)
MPI_LIBS := $(or $(shell mpicc --showme:link 2>/dev/null),$(shell pkg-config --libs ompi-c 2>/dev/null))
MPI_FLAGS := $(or $(shell mpicc --showme:compile 2>/dev/null),$(shell pkg-config --cflags ompi-c 2>/dev/null))
endif
USE_OF_MPI = $(if $(MPI_LIBS),-DHAVE_MPI $(patsubst -I%,-isystem %,$(MPI_FLAGS)))

# $(eval $(call objects,FOLDER,COMPILER OF .cpp,COMPILER OF .cu)): FOLDER/x.o of x.cpp or x.cu, made again when the command
# changes (USE_CUDA=0 and back); ops/leaf.cpp once per instruction set (ops/leaf.h). EXTRA holds the flags of single files.
stamp = @mkdir -p $(@D); echo '$(TEXT)' | cmp -s - $@ || echo '$(TEXT)' > $@
LEAF_avx2 = -march=x86-64-v3
LEAF_avx512 = -march=x86-64-v4 -mprefer-vector-width=512
define objects
$(1)/command.cpp: TEXT = $(2)
$(1)/command.cu: TEXT = $(3)
$(1)/command.cpp $(1)/command.cu: FORCE | need-build
	$$(stamp)
$(1)/%.o: %.cpp $(1)/command.cpp
	@mkdir -p $$(@D)
	$(2) -MMD -MP -c $$< -o $$@ $$(EXTRA)
$(1)/%.o: %.cu $(1)/command.cu
	@mkdir -p $$(@D)
	$(3) -MMD -MP -c $$< -o $$@ $$(EXTRA)
$(1)/ops/leaf_%.o: ops/leaf.cpp $(1)/command.cpp
	@mkdir -p $$(@D)
	$(2) -fno-trapping-math $$(LEAF_$$*) -DLEAF_ISA=$$* -MMD -MP -c $$< -o $$@
endef
include tests/cuda.mk tests/fuzz.mk dev/bench.mk
$(eval $(call objects,$(BUILD),$(CXX) $(CPPFLAGS) $(CXXFLAGS),$(COMPILE_CU)))
# What --version says: compiled again when it changes. So is the link to MPI.
COMMIT = $(or $(if $(wildcard .git),$(shell git describe --always --dirty 2>/dev/null)),unknown)
$(BUILD)/io/version.o: EXTRA = -DTAPERNORM_COMMIT=$(COMMIT) $(if $(MPI_LIBS),-DHAVE_MPI) $(CUDA_VERSION_FLAGS)
$(BUILD)/train/ranks/mpi_link.o: EXTRA = $(USE_OF_MPI)
$(BUILD)/io/version.o $(BUILD)/train/ranks/mpi_link.o: %.o: %.extra
$(BUILD)/%.extra: TEXT = $(EXTRA)
$(BUILD)/%.extra: FORCE | need-build
	$(stamp)

train_gpt: $(BUILD)/train_gpt.o $(TRAIN) $(LIBRARY) | fold infer
train_gpt: private LDLIBS += $(MPI_LIBS) $(CUDA_LIBS)
infer: $(BUILD)/infer.o $(LIBRARY)
infer: private LDLIBS += $(CUDA_LIBS)
fold: $(BUILD)/fold.o $(LIBRARY)
$(DATA_TOOLS): %: $(BUILD)/data/%.o $(LIBRARY)
$(PROGRAMS) $(DATA_TOOLS):
	$(CXX) $(LDFLAGS) $^ $(LDLIBS) -o $@
install: $(PROGRAMS)
	install -D -m 755 -t "$(DESTDIR)$(PREFIX)/bin" $(PROGRAMS)
demo: deps
	$(MAKE) $(PROGRAMS)
	dev/demo.sh

# Tests that run no code of the project's templates, only its programs and its library, need no optimization of their own.
$(addprefix $(BUILD)/,$(patsubst %.cpp,%.o,$(shell grep -L '^#include ".*\.cu' $(TEST_SOURCES)))): EXTRA = -O1
$(TEST_SOURCES:%.cpp=$(BUILD)/%.o): | need-tests
$(BUILD)/run_tests: $(TEST_SOURCES:%.cpp=$(BUILD)/%.o) $(TRAIN) $(LIBRARY) | $(SHIM)
	$(CXX) $(LDFLAGS) $^ $(LDLIBS) $(MPI_LIBS) -o $@
# Recursive, so that what deps installs is seen by the build. Runs side by side: threads that wait must not spin then.
test: deps
	tests/check_sources.sh
	$(MAKE) $(TESTED) $(BUILD)/run_tests fuzz-replay-programs emu-kernels
	OMP_WAIT_POLICY=passive $(MAKE) --output-sync=target cpu-test fuzz-replay emu-test RUNS=200
cpu-test: $(TESTED) $(BUILD)/run_tests
	TAPERNORM_BIN=$(BIN) $(BUILD)/run_tests -tce="bench_infer*"
test-all: test
	$(MAKE) test-rest

# One line for what is missing, before anything is compiled.
need-build need-tests:
	@CXX="$(CXX)" dev/install_deps.sh --check $@
deps:
	@CXX="$(CXX)" MPI="$(MPI)" dev/install_deps.sh
clean:
	rm -rf $(BUILD) $(PROGRAMS) $(DATA_TOOLS) bench_infer
# Not made from anything: else make would try, by its built-in rules.
$(BUILD)/%.d: ;
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
