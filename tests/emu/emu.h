// How tests steer the stand-in and learn what it found.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace emu {

// In which order blocks, and threads of a block, start and continue. Any order is legal CUDA, so results must
// not depend on it.
enum class Order { forward, backward, random };

// Start values come from the environment: EMU_ORDER=forward|backward|<seed>, EMU_LAZY=1, EMU_ABORT=1,
// EMU_SM=80, EMU_MEMORY_MIB=8192, EMU_DEVICES=1, EMU_FASTEST=0|2|4.
struct Settings {
    Order order = Order::forward;
    uint64_t seed = 0;
    bool lazy = false;   // streams run as late as synchronization permits, instead of at once
    bool abort = false;  // wrong use ends the process (for a debugger) instead of the kernel
    bool quiet = false;  // do not print what was found; the error text still has it
    int sm = 80;
    size_t memory = size_t(8192) << 20;
    int devices = 1;
    bool no_epilogues = false;   // cuBLASLt's heuristics know plain products only
    bool late_refusals = false;  // its products refuse the epilogues that its heuristics promise
    // The algorithm of its products (0, 2 or 4) that is fastest on device 0, the next one on device 1: all others take a second
    // longer by the clock of events. -1: none.
    int fastest = -1;
    // Products of warpgroups take their left rows in the wrong order, or are reported as misuse; none: as where the code that was
    // loaded is another architecture's.
    enum class Warpgroups { right, wrong, misused, none } warpgroups = Warpgroups::right;
    std::string warpgroups_of = "";  // only in kernels whose names contain it
    bool lasting_errors = false;     // all calls return a kernel's error from then on, as a GPU's do after most
};
Settings& settings();

// The last wrong use that was found on this host thread, or "" when there was none; forgets it and its error
// code.
std::string take_diagnosis();

// Device and pinned allocations that live.
size_t live_allocations();

// Kernels that ran, and grid barriers that all blocks passed, since the program started, on this host thread.
uint64_t launches();
uint64_t grid_barriers();

// Switches between CUDA threads since the program started, on this host thread.
uint64_t switches();

}  // namespace emu
