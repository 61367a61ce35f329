# Fuzzing, races of threads, torture, and what `make test-all` adds to `make test`. Included by the Makefile.
#
# make test-rest    what make test-all runs beside make test
# make fuzz         the readers of tests/fuzz under libFuzzer and UBSan (clang), FUZZ_SECONDS=600 or FUZZ_RUNS each; what that
#                   finds to be interesting, and a tenth as many of its own, under AddressSanitizer, too
# make fuzz-corpus  the smallest part of what make fuzz found that reaches as much, to tests/fuzz/corpus
# make fuzz-coverage  which lines of each reader that corpus and the seeds reach (clang)
# make fuzz-replay  the same readers, by any compiler, on their seeds and on RUNS changed ones, the same each time
# make tsan         the CPU's threads under ThreadSanitizer (clang)
# make torture      1200 kills, torn files and failing calls (TORTURE), of which make test has 24; and make fuzz
# make help-check   whether dev/guides quotes what the programs print (dev/readme.py)
# make arm-test     the inner loops of 64-bit ARM (NEON), compiled by a cross compiler and run by qemu-user
# make o0-test      the CPU's tests without optimization, where two types of one name (an ODR violation) are an error
.PHONY: test-rest help-check fuzz fuzz-corpus fuzz-coverage fuzz-replay-programs fuzz-replay tsan torture arm-test o0-test
test-rest: export NVCC_STRICT = $(STRICT)
test-rest:
	OMP_WAIT_POLICY=passive $(MAKE) --output-sync=target RUNS=500 fuzz-replay emu-tsan emu-asan emu-schedules \
	    $(if $(HAVE_ARM),arm-test) cuda-compile-check program-test \
	    $(if $(shell command -v python3),help-check gpu-science-dry-run gpu-day-dry-run)

help-check: $(PROGRAMS) $(DATA_TOOLS) bench_infer
	dev/readme.py --check

FUZZ_CXX ?= $(firstword $(shell command -v clang++ clang++-19 clang++-18 clang++-17 clang++-16 clang++-15 clang++-14))
FUZZ_TARGETS = $(patsubst tests/fuzz/fuzz_%.cpp,%,$(wildcard tests/fuzz/fuzz_*.cpp))
SANITIZED = -std=c++20 -fno-math-errno -fno-omit-frame-pointer -Wall -Wextra -Wno-unknown-pragmas
# No OpenMP but its number of threads, 1, so that a finding can be repeated.
FUZZ_OBJECTS = $(patsubst %.cpp,$(1)/%.o,$(LIBRARY_SOURCES) $(TRAIN_SOURCES)) $(LEAVES:%=$(1)/%)

# From the seeds of dev/fuzz_seeds.sh, the corpus that is kept here, and what earlier runs found (build/fuzz/corpus). Two builds,
# because AddressSanitizer takes half to three quarters of the time: without it most inputs are found, with it they are judged.
FUZZ = $(BUILD)/fuzz
FUZZ_FAST = $(BUILD)/fuzz-fast
export FUZZ_SECONDS FUZZ_RUNS
FUZZ_COMMAND = $(FUZZ_CXX) $(CPPFLAGS) $(SANITIZED) -O2 -g1 -fno-sanitize-coverage=trace-cmp -Wno-pass-failed \
               -fsanitize-coverage-ignorelist=tests/fuzz/not_counted -fsanitize=fuzzer-no-link,undefined
FUZZ_CHECKED = $(FUZZ_COMMAND) -fsanitize=address -fno-sanitize-recover=undefined
FUZZ_TRAPPED = $(FUZZ_COMMAND) -fsanitize-trap=undefined -D_GLIBCXX_ASSERTIONS
$(eval $(call objects,$(FUZZ),$(FUZZ_CHECKED),$(FUZZ_CHECKED) -x c++))
$(eval $(call objects,$(FUZZ_FAST),$(FUZZ_TRAPPED),$(FUZZ_TRAPPED) -x c++))
$(FUZZ_TARGETS:%=$(FUZZ)/fuzz_%): $(FUZZ)/fuzz_%: $(FUZZ)/tests/fuzz/fuzz_%.o $(call FUZZ_OBJECTS,$(FUZZ))
	$(FUZZ_CXX) -fsanitize=fuzzer,address,undefined $^ $(LDLIBS) -lgomp -o $@
$(FUZZ_TARGETS:%=$(FUZZ_FAST)/fuzz_%): $(FUZZ_FAST)/fuzz_%: $(FUZZ_FAST)/tests/fuzz/fuzz_%.o $(call FUZZ_OBJECTS,$(FUZZ_FAST))
	$(FUZZ_CXX) -fsanitize=fuzzer $^ $(LDLIBS) -lgomp -o $@

# Line by line, without a fuzzer: by the replay below.
COVERAGE = $(BUILD)/fuzz-coverage
COVERAGE_COMMAND = $(FUZZ_CXX) $(CPPFLAGS) $(SANITIZED) -O1 -fprofile-instr-generate -fcoverage-mapping -Wno-pass-failed
$(eval $(call objects,$(COVERAGE),$(COVERAGE_COMMAND),$(COVERAGE_COMMAND) -x c++))
COVERED = $(FUZZ_TARGETS:%=$(COVERAGE)/fuzz_%)
$(COVERED): $(COVERAGE)/fuzz_%: $(COVERAGE)/tests/fuzz/fuzz_%.o $(COVERAGE)/tests/fuzz/replay.o $(call FUZZ_OBJECTS,$(COVERAGE))
	$(FUZZ_CXX) -fprofile-instr-generate $^ $(LDLIBS) -lgomp -o $@

HAVE_FUZZER = $(if $(FUZZ_CXX),$(shell printf '%s\n' '%:include <omp.h>' \
    'extern "C" int LLVMFuzzerTestOneInput(const char*, long) { return omp_get_thread_num(); }' | \
    $(FUZZ_CXX) -x c++ -fsanitize=fuzzer,address - -lgomp -o /dev/null 2>/dev/null && echo 1))
ifneq ($(filter fuzz%,$(MAKECMDGOALS)),)
ifeq ($(HAVE_FUZZER),1)
fuzz: $(PROGRAMS) bpe_train $(FUZZ_TARGETS:%=$(FUZZ)/fuzz_%) $(FUZZ_TARGETS:%=$(FUZZ_FAST)/fuzz_%)
	dev/fuzz.sh $(FUZZ) $(FUZZ_FAST) $(FUZZ_TARGETS)
fuzz-corpus: $(FUZZ_TARGETS:%=$(FUZZ)/fuzz_%)
	dev/fuzz_corpus.sh $(FUZZ) $(FUZZ_TARGETS)
fuzz-coverage: $(PROGRAMS) bpe_train $(COVERED)
	dev/fuzz_coverage.sh $(COVERAGE) $(FUZZ_TARGETS)
else
fuzz fuzz-corpus fuzz-coverage:
	@echo "$@: skipped: no clang with libFuzzer (packages clang, libclang-rt-dev and libomp-dev)"
endif
endif

REPLAY = $(BUILD)/fuzz-replay
RUNS ?= 2000
REPLAY_COMMAND = $(CXX) $(CPPFLAGS) $(SANITIZED) -O0 -fsanitize=address,undefined -fno-sanitize-recover=undefined \
                 -Wno-format-security -Werror
$(eval $(call objects,$(REPLAY),$(REPLAY_COMMAND),$(REPLAY_COMMAND) -x c++))
REPLAYED = $(FUZZ_TARGETS:%=$(REPLAY)/fuzz_%)
$(REPLAYED): $(REPLAY)/fuzz_%: $(REPLAY)/tests/fuzz/fuzz_%.o $(REPLAY)/tests/fuzz/replay.o $(call FUZZ_OBJECTS,$(REPLAY))
	$(CXX) -fsanitize=address,undefined $^ $(LDLIBS) -lgomp -o $@
fuzz-replay-programs: $(TESTED) bpe_train $(REPLAYED)
fuzz-replay: fuzz-replay-programs
	TAPERNORM_BIN=$(BIN) dev/fuzz_seeds.sh $(REPLAY)/seeds
	dev/fuzz_corpus.sh --unpack $(REPLAY)/kept
	@[ -w /dev/shm ] && export TMPDIR=/dev/shm; set -e; for target in $(FUZZ_TARGETS); do \
	    echo "fuzz_$$target: seeds and $(RUNS) changed ones"; \
	    $(REPLAY)/fuzz_$$target $(RUNS) $(REPLAY)/seeds/$$target $(REPLAY)/kept/$$target >/dev/null; done

# Ops, model, training and ranks with several threads, by Clang. They wait for one another by atomics (runtime/team.h), which
# ThreadSanitizer knows; of OpenMP's runtime, which it does not see into, there is a region's begin and end.
TSAN = $(BUILD)/tsan
TSAN_CXX ?= $(FUZZ_CXX)
TSAN_COMMAND = $(TSAN_CXX) $(CPPFLAGS) $(SANITIZED) -O1 -g1 -fopenmp -fsanitize=thread -Wno-pass-failed
$(eval $(call objects,$(TSAN),$(TSAN_COMMAND),$(TSAN_COMMAND) -x c++))
TSAN_TESTS = $(patsubst %,tests/%.cpp,main test_decoder test_matmul test_model test_ops test_panels test_ranks test_tapernorm test_team)
$(TSAN)/run_tests: $(patsubst %.cpp,$(TSAN)/%.o,$(TSAN_TESTS) $(LIBRARY_SOURCES) $(TRAIN_SOURCES)) $(LEAVES:%=$(TSAN)/%)
	$(TSAN_CXX) -fopenmp -fsanitize=thread $^ $(LDLIBS) -o $@
tsan:
ifneq ($(filter tsan,$(MAKECMDGOALS)),)
ifneq ($(if $(TSAN_CXX),$(wildcard $(shell $(TSAN_CXX) -print-resource-dir)/include/omp.h)),)
tsan: $(TSAN)/run_tests
	OMP_WAIT_POLICY=passive TSAN_OPTIONS="ignore_noninstrumented_modules=1 $$TSAN_OPTIONS" $<
else
	@echo "tsan: skipped: no clang with OpenMP (packages clang and libomp-dev)"
endif
endif

# Another architecture: the tests of what has loops of its own there, without what needs its libraries (PCRE2, crypt). Static, so that
# it runs where there is nothing else of that architecture.
ARM = $(BUILD)/arm
ARM_CXX ?= aarch64-linux-gnu-g++
ARM_RUN ?= qemu-aarch64
ARM_COMMAND = $(ARM_CXX) -I. -idirafter /usr/include $(CXXFLAGS)
$(eval $(call objects,$(ARM),$(ARM_COMMAND),$(ARM_COMMAND) -x c++))
ARM_TESTS = $(patsubst %,tests/%.cpp,main test_floating_point test_matmul test_ops test_panels test_tapernorm test_team)
$(ARM)/run_tests: $(patsubst %.cpp,$(ARM)/%.o,$(ARM_TESTS) $(LIBRARY_SOURCES)) $(ARM)/ops/leaf_base.o
	$(ARM_CXX) $(LDFLAGS) -static $^ -o $@
HAVE_ARM = $(and $(shell command -v $(ARM_CXX)),$(shell command -v $(ARM_RUN)))
arm-test:
ifneq ($(filter arm-test,$(MAKECMDGOALS)),)
ifneq ($(HAVE_ARM),)
arm-test: $(ARM)/run_tests
	$(ARM_RUN) $<
else
	@echo "arm-test: skipped: no compiler for 64-bit ARM or no emulator (packages g++-aarch64-linux-gnu and qemu-user)"
endif
endif

# In front of the C library: makes its calls fail.
SHIM = $(BUILD)/torture_shim.so
$(SHIM): tests/torture/shim.c
	@mkdir -p $(@D)
	$(CXX) -x c -O1 -Wall -Wextra -Werror -shared -fPIC $< -o $@
TORTURE ?= 1200
torture: $(TESTED) $(BUILD)/run_tests
	TAPERNORM_BIN=$(BIN) TORTURE=$(TORTURE) $(BUILD)/run_tests -tc="torture*,crash*"
	$(MAKE) fuzz

# Without optimization every function is called as it was compiled last: two types of one name then crash. The inner loops are
# those that are shipped. -flto compares the types and functions of all files.
O0 = $(BUILD)/O0
O0_FLAGS = $(filter-out $(OPT),$(CXXFLAGS)) -O0 -flto
$(eval $(call objects,$(O0),$(CXX) $(CPPFLAGS) $(O0_FLAGS),$(CXX) $(CPPFLAGS) $(O0_FLAGS) -x c++))
$(O0)/train/ranks/mpi_link.o: EXTRA = $(MPI)
$(O0)/run_tests: $(patsubst %.cpp,$(O0)/%.o,$(wildcard tests/*.cpp) $(LIBRARY_SOURCES) $(TRAIN_SOURCES)) $(LEAVES:%=$(BUILD)/%) | $(SHIM)
	$(CXX) $(LDFLAGS) -O0 -flto=auto -Wodr -Wlto-type-mismatch -Werror=odr -Werror=lto-type-mismatch $^ $(LDLIBS) $(MPI_LIBS) -o $@
# Without the files of tests that only start programs.
comma_list = $(subst $(eval) ,$(comma),$(1))
ONLY_PROGRAMS = $(shell grep -L '^.include ".*\.cu' $$(grep -l 'tests/run_program.h' $(TEST_SOURCES)))
o0-test: $(TESTED) $(O0)/run_tests
	TAPERNORM_BIN=$(BIN) OMP_WAIT_POLICY=passive $(O0)/run_tests -sfe="$(call comma_list,$(ONLY_PROGRAMS:%=*%))" -tce="crash*,torture*,mpirun*,sampler*,recipe: -e*,bench_infer*"
