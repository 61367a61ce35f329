# make             builds train_gpt, fold and infer: with nvcc where there is one, else for the CPU alone
# make demo        installs what is missing, builds, trains, folds, runs (about 4 minutes)
# make test        installs what is missing, builds and runs all tests
# make bench       speed and memory, as ratios to peers and limits measured in the same run
# make data-tools  prepare, bpe_train, make_stories: corpora and vocabularies (data/README.md)
# make dev-env     Python with the references and peers that dev/ compares with
# make deps        installs what is missing from the system's packages
# make format      clang-format over all sources
#
# Settings: CXX, CUDA_HOME, USE_CUDA=0 (ignore nvcc), SANITIZE=address,undefined, BUILD=<folder>
CXX ?= g++
BUILD ?= build
OPT ?= -O3
CPPFLAGS += -I.
CXXFLAGS += -std=c++20 $(OPT) -fno-math-errno -fopenmp -Wall -Wextra -Werror
LDFLAGS += -fopenmp
ifdef SANITIZE
CXXFLAGS += -fsanitize=$(SANITIZE) -fno-omit-frame-pointer -fno-sanitize-recover=undefined
LDFLAGS += -fsanitize=$(SANITIZE)
endif

PROGRAMS = train_gpt fold infer
DATA_TOOLS = prepare bpe_train make_stories
LIBRARY_SOURCES = $(wildcard io/*.cpp model/*.cpp) data/stories.cpp
ARCH := $(shell uname -m)
LEAF_ISAS = base $(if $(filter x86_64,$(ARCH)),avx2 avx512)
LIBRARY = $(LIBRARY_SOURCES:%.cpp=$(BUILD)/%.o) $(LEAF_ISAS:%=$(BUILD)/ops/leaf_%.o)
TEST_OBJECTS = $(patsubst %.cpp,$(BUILD)/%.o,$(wildcard tests/*.cpp))

.PHONY: all data-tools test demo bench dev-env deps format clean
.DELETE_ON_ERROR:
all: $(PROGRAMS)
data-tools: $(DATA_TOOLS)

# GPT-2's tokenizer splits text with PCRE2; without it the programs know bytes only.
HAVE_PCRE2 := $(shell printf '\#define PCRE2_CODE_UNIT_WIDTH 8\n\#include <pcre2.h>\n' | $(CXX) -x c++ -E - >/dev/null 2>&1 && echo 1)
ifeq ($(HAVE_PCRE2),1)
CPPFLAGS += -DHAVE_PCRE2=1
LDLIBS += -lpcre2-8
endif

# ---- programs -------------------------------------------------------------------------------------------------------
train_gpt: $(BUILD)/train_gpt.o $(LIBRARY)
infer: $(BUILD)/infer.o $(LIBRARY)
fold: $(BUILD)/fold.o $(LIBRARY)
$(PROGRAMS):
	$(CXX) $(LDFLAGS) $^ $(LDLIBS) -o $@

$(BUILD)/%.o: %.cu
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) -MMD -MP -x c++ -c $< -o $@

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
$(BUILD)/run_tests: $(TEST_OBJECTS) $(LIBRARY)
	$(CXX) $(LDFLAGS) $^ $(LDLIBS) -o $@

# Recursive, so that what deps installs is seen by the build.
test: deps
	$(MAKE) $(PROGRAMS) $(BUILD)/run_tests
	$(BUILD)/run_tests

# ---- benchmarks -----------------------------------------------------------------------------------------------------
HAVE_DNNL := $(shell printf '\#include <dnnl.h>\n' | $(CXX) -x c++ -E - >/dev/null 2>&1 && echo 1)
DNNL = $(if $(HAVE_DNNL),-DHAVE_DNNL -ldnnl)
$(BUILD)/bench_%: dev/bench_%.cpp train_gpt.cu $(LIBRARY)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) $< $(LIBRARY) $(LDLIBS) $(DNNL) -o $@

bench: deps
	$(MAKE) $(PROGRAMS) $(BUILD)/bench_train $(BUILD)/bench_matmul
	dev/bench.py

# Python with the references and peers that dev/ compares with; nothing else needs it.
dev-env:
	python3 -m venv dev/.venv
	dev/.venv/bin/pip install -r dev/requirements.txt

# ---- for people -----------------------------------------------------------------------------------------------------
demo: deps
	$(MAKE) $(PROGRAMS)
	dev/demo.sh

deps:
	@CXX="$(CXX)" dev/install_deps.sh

format:
	clang-format -i $(shell git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

clean:
	rm -rf $(BUILD) $(PROGRAMS)

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
