// Device and pinned memory: every allocation ends at a page that nobody may touch and is filled with NaN;
// freed memory stays out of bounds. Invalid accesses by kernels are caught and explained.
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <map>
#include <mutex>

#include "block.h"
#include "runtime.h"
#include "sanitizer.h"
#include "text.h"

namespace emu {
namespace {

constexpr size_t page = 4096;
constexpr size_t kept_after_free = 1024;  // allocations whose addresses are not used again

struct Allocation {
    size_t number, bytes;
    MemoryKind kind;
    bool freed;
    char *begin, *mapping;
    size_t mapping_bytes;  // a guard page, the data, a guard page
};

struct Registry {
    std::mutex mutex;
    std::map<uintptr_t, Allocation> by_mapping;
    std::deque<uintptr_t> freed;
    size_t count = 0, living = 0, device_bytes = 0;
};

Registry& registry() {
    static Registry* const instance = new Registry;  // never destroyed: other destructors may free device memory
    return *instance;
}

// The allocation whose mapping, guard pages included, holds p.
Allocation* find(Registry& r, const void* p) {
    const auto address = reinterpret_cast<uintptr_t>(p);
    auto next = r.by_mapping.upper_bound(address);
    if (next == r.by_mapping.begin()) return nullptr;
    Allocation& a = std::prev(next)->second;
    return address < std::prev(next)->first + a.mapping_bytes ? &a : nullptr;
}

const char* kind_name(MemoryKind kind) { return kind == MemoryKind::pinned ? "pinned" : "device"; }

std::string name_of(const Allocation& a) {
    return strprintf("%s%s allocation #%zu of %zu bytes", a.freed ? "freed " : "", kind_name(a.kind), a.number,
                     a.bytes);
}

std::string describe(const Allocation& a, const void* p) {
    const char* address = static_cast<const char*>(p);
    if (address < a.begin) return strprintf("%zu bytes before ", size_t(a.begin - address)) + name_of(a);
    const size_t offset = size_t(address - a.begin);
    if (offset >= a.bytes) return strprintf("%zu bytes past the end of ", offset - a.bytes) + name_of(a);
    return strprintf("byte %zu of ", offset) + name_of(a);
}

// Makes [begin, begin + bytes) accessible and fills it with 0xff, NaN in every floating-point type. A long
// range maps copies of one filled file over and over: a page takes memory and time when it is first written.
bool map_filled(char* begin, size_t bytes) {
    constexpr size_t piece = size_t(4) << 20;
    static const int file = [] {
        const int fd = memfd_create("nan", MFD_CLOEXEC);
        const std::string filling(piece, char(0xff));
        return fd >= 0 && write(fd, filling.data(), piece) == ssize_t(piece) ? fd : -1;
    }();
    const size_t mapped = file >= 0 ? bytes / piece * piece : 0;
    for (size_t offset = 0; offset < mapped; offset += piece)
        if (mmap(begin + offset, piece, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, 0) == MAP_FAILED)
            return false;
    if (mapped == bytes) return true;
    if (mprotect(begin + mapped, bytes - mapped, PROT_READ | PROT_WRITE) != 0) return false;
    std::memset(begin + mapped, 0xff, bytes - mapped);
    return true;
}

cudaError_t allocate(void** result, size_t bytes, MemoryKind kind) {
    *result = nullptr;
    if (spoils_capture(kind == MemoryKind::device ? "cudaMalloc" : "cudaMallocHost"))
        return refuse(cudaErrorStreamCaptureUnsupported);
    if (bytes == 0) return pending_error();
    Registry& r = registry();
    std::lock_guard lock(r.mutex);
    if (kind == MemoryKind::device && r.device_bytes + bytes > settings().memory)
        return refuse(cudaErrorMemoryAllocation);
    // The end is aligned to 16 bytes as vector accesses need; the gap of up to 15 bytes is checked by
    // cudaFree.
    const size_t padded = (bytes + 15) / 16 * 16, inner = (padded + page - 1) / page * page;
    char* mapping = static_cast<char*>(
        mmap(nullptr, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (mapping == MAP_FAILED || !map_filled(mapping + page, inner)) return refuse(cudaErrorMemoryAllocation);
    char* begin = mapping + page + inner - padded;
    forbid_access(mapping, size_t(begin - mapping));
    forbid_access(begin + bytes, size_t(mapping + inner + 2 * page - (begin + bytes)));
    r.by_mapping[reinterpret_cast<uintptr_t>(mapping)] = {++r.count, bytes,           kind, false, begin,
                                                          mapping,   inner + 2 * page};
    r.living++;
    if (kind == MemoryKind::device) r.device_bytes += bytes;
    *result = begin;
    return pending_error();
}

// Bytes behind the end that share a 16-byte unit with it.
bool gap_is_intact(const Allocation& a) {
    allow_access(a.begin + a.bytes, 16);
    for (size_t i = a.bytes; i % 16; i++)
        if (static_cast<unsigned char>(a.begin[i]) != 0xff) return false;
    return true;
}

cudaError_t release(void* p, MemoryKind kind) {
    if (!p) return cudaSuccess;
    if (spoils_capture("cudaFree")) return refuse(cudaErrorStreamCaptureUnsupported);
    synchronize_all();
    Registry& r = registry();
    std::lock_guard lock(r.mutex);
    Allocation* a = find(r, p);
    if (!a || a->begin != p || a->kind != kind || a->freed)
        return refuse(cudaErrorInvalidValue, std::string("freeing what is not the start of a living allocation: ") +
                                                 (a ? describe(*a, p) : std::string("host memory")));
    const bool intact = gap_is_intact(*a);
    a->freed = true;
    r.living--;
    if (kind == MemoryKind::device) r.device_bytes -= a->bytes;
    mmap(a->mapping, a->mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    forbid_access(a->mapping, a->mapping_bytes);
    if (!intact) report(cudaErrorIllegalAddress, "somebody wrote behind the end of " + name_of(*a));
    r.freed.push_back(reinterpret_cast<uintptr_t>(a->mapping));
    if (r.freed.size() > kept_after_free) {
        auto oldest = r.by_mapping.find(r.freed.front());
        allow_access(oldest->second.mapping, oldest->second.mapping_bytes);
        munmap(oldest->second.mapping, oldest->second.mapping_bytes);
        r.by_mapping.erase(oldest);
        r.freed.pop_front();
    }
    return cudaSuccess;
}

// ---------------------------------------------------------------------------------------------------------------------
// Invalid accesses

struct sigaction previous_action[2];

void on_fault(int signal, siginfo_t* info, void* context) {
    Engine& engine = Engine::of_this_host_thread();
    if (!engine.current()) {  // host code: not for us
        sigaction(signal, &previous_action[signal == SIGBUS], nullptr);
        return;
    }
    bool writes = false;
#if defined(__x86_64__)
    constexpr long long is_write = 2;  // a bit of the page fault's error code
    writes = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & is_write;
#endif
    // What the processor refuses without saying the address: it is misaligned for a vector instruction, or no
    // address.
    const bool known = info->si_code != SI_KERNEL;
    // The kernel's stack, and this handler's, are abandoned, and with them what would restore the signal
    // mask.
    pthread_sigmask(SIG_SETMASK, &static_cast<ucontext_t*>(context)->uc_sigmask, nullptr);
    engine.fault(known ? info->si_addr : Engine::unknown_address, writes);
}

}  // namespace

void install_fault_handler() {
    static std::mutex mutex;
    std::lock_guard lock(mutex);
    stack_t stack{};
    if (sigaltstack(nullptr, &stack) == 0 && stack.ss_flags & SS_DISABLE) {
        static thread_local std::vector<char> alternate(64 << 10);  // a full stack cannot hold the handler's frame
        stack = {};
        stack.ss_sp = alternate.data();
        stack.ss_size = alternate.size();
        sigaltstack(&stack, nullptr);
    }
    for (int signal : {SIGSEGV, SIGBUS}) {
        struct sigaction current;
        sigaction(signal, nullptr, &current);
        if (current.sa_flags & SA_SIGINFO && current.sa_sigaction == on_fault) continue;
        previous_action[signal == SIGBUS] = current;
        struct sigaction action{};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(signal, &action, nullptr);
    }
}

MemoryKind memory_kind(const void* p) {
    Registry& r = registry();
    std::lock_guard lock(r.mutex);
    const Allocation* a = find(r, p);
    return a ? a->kind : MemoryKind::host;
}

std::string check_range(const void* p, size_t bytes) {
    Registry& r = registry();
    std::lock_guard lock(r.mutex);
    const Allocation* a = find(r, p);
    if (!a) return "host memory";
    const char* begin = static_cast<const char*>(p);
    if (a->freed || begin < a->begin) return describe(*a, p);
    if (begin + bytes > a->begin + a->bytes) return describe(*a, begin + bytes - 1);
    return "";
}

std::string describe_address(const void* p) {
    Registry& r = registry();
    std::lock_guard lock(r.mutex);
    const Allocation* a = find(r, p);
    return a ? describe(*a, p) : "";
}

size_t live_allocations() {
    Registry& r = registry();
    std::lock_guard lock(r.mutex);
    return r.living;
}

// Whether p is memory of this process that the stand-in did not hand out: a pointer that only the host can
// follow.
static bool is_host_pointer(const void* p) {
    // What the sanitizers keep for themselves lies below all other memory; two neighbouring ints look like an address in it.
#if defined(EMU_TSAN)
    constexpr uintptr_t lowest = uintptr_t(5) << 44;
#elif defined(EMU_ASAN)
    constexpr uintptr_t lowest = uintptr_t(1) << 44;
#else
    constexpr uintptr_t lowest = page;
#endif
    const auto address = reinterpret_cast<uintptr_t>(p);
    if (address < lowest || address >> 47) return false;
    if (memory_kind(p) != MemoryKind::host) return false;
    return msync(reinterpret_cast<void*>(address & ~(page - 1)), 1, MS_ASYNC) == 0;  // fails where nothing is mapped
}

void check_argument(const Launch& launch, size_t index, const void* bytes, size_t size, bool is_struct) {
    for (size_t offset = 0; offset + sizeof(void*) <= size; offset += sizeof(void*)) {
        const void* p;
        std::memcpy(&p, static_cast<const char*>(bytes) + offset, sizeof p);
        if (!is_host_pointer(p)) continue;
        const std::string where = is_struct ? strprintf(" (a struct, at offset %zu)", offset) : "";
        report(cudaErrorIllegalAddress,
               strprintf("kernel %s launched at %s:%d: argument %zu%s points to host memory", launch.kernel.c_str(),
                         launch.site.file, launch.site.line, index + 1, where.c_str()));
        return;
    }
}

}  // namespace emu

// ---------------------------------------------------------------------------------------------------------------------
// CUDA runtime

using namespace emu;

cudaError_t cudaMalloc(void** p, size_t bytes) { return allocate(p, bytes, MemoryKind::device); }
cudaError_t cudaMallocHost(void** p, size_t bytes) { return allocate(p, bytes, MemoryKind::pinned); }
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) { return allocate(p, bytes, MemoryKind::pinned); }
cudaError_t cudaFree(void* p) { return release(p, MemoryKind::device); }
cudaError_t cudaFreeHost(void* p) { return release(p, MemoryKind::pinned); }

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    Registry& r = registry();
    std::lock_guard lock(r.mutex);
    *total = settings().memory;
    *free = *total - std::min(*total, r.device_bytes);
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
    *attributes = {};
    const MemoryKind kind = memory_kind(p);
    attributes->type = kind == MemoryKind::device   ? cudaMemoryTypeDevice
                       : kind == MemoryKind::pinned ? cudaMemoryTypeHost
                                                    : cudaMemoryTypeUnregistered;
    if (kind != MemoryKind::host) attributes->devicePointer = const_cast<void*>(p);
    if (kind != MemoryKind::device) attributes->hostPointer = const_cast<void*>(p);
    return cudaSuccess;
}
