// The functions of NCCL that the project calls, over shared memory: ranks are processes or threads of this
// machine.
//
// Ranks write to their slots, meet, read what they need, and meet again, chunk by chunk. Sums are taken in
// the order of ranks, in fp32 for bf16 with one rounding, so that every rank gets the same bits. A rank that
// never comes, or calls something else, is an error after a time limit instead of a hang.
#include <fcntl.h>
#include <nccl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime.h"
#include "text.h"

namespace emu {
namespace {

constexpr int max_ranks = 16;
constexpr size_t chunk_bytes = size_t(1) << 20;

struct Call {
    char name[16];
    uint64_t number;  // how many came before
    size_t count;
    int type, op, root;
};

// In the shared file, which starts with zeros.
struct Shared {
    std::atomic<int> ranks, joined, aborted;
    std::atomic<int> present[max_ranks];
    std::atomic<int> arrived;
    std::atomic<unsigned> generation;
    Call calls[max_ranks];
    alignas(64) char slots[max_ranks][chunk_bytes];
};
static_assert(std::atomic<int>::is_always_lock_free);

struct Failure {
    ncclResult_t result;
    std::string reason;
};

struct Comm {
    int rank = 0, ranks = 0, device = 0;
    Shared* shared = nullptr;
    uint64_t calls = 0;
    std::atomic<ncclResult_t> error{ncclSuccess};
    ~Comm() {
        if (shared) munmap(shared, sizeof(Shared));
    }
    void meet();
};

struct Communicators {
    std::mutex mutex;
    std::map<ncclComm_t, std::shared_ptr<Comm>> living;
};
Communicators& communicators() {
    static Communicators* const instance = new Communicators;
    return *instance;
}

std::shared_ptr<Comm> find(ncclComm_t handle) {
    std::lock_guard lock(communicators().mutex);
    const auto found = communicators().living.find(handle);
    return found == communicators().living.end() ? nullptr : found->second;
}

thread_local std::string last_error;
thread_local int group_depth = 0;

struct Grouped {
    std::shared_ptr<Comm> comm;
    cudaStream_t stream;
    std::function<void()> work;
};
thread_local std::vector<Grouped> group;

ncclResult_t refuse(ncclResult_t result, const std::string& reason) {
    last_error = "NCCL: " + reason;
    if (!settings().quiet) std::fprintf(stderr, "emu: %s\n", last_error.c_str());
    return result;
}

std::chrono::milliseconds milliseconds(const char* variable, int otherwise) {
    const char* value = std::getenv(variable);
    return std::chrono::milliseconds(value ? std::atoi(value) : otherwise);
}
std::chrono::milliseconds time_limit() { return milliseconds("EMU_NCCL_TIMEOUT_MS", 20000); }

// Waits until done(), gives way to the ranks that share this processor.
template <class F>
bool wait_for(F&& done) {
    const auto end = std::chrono::steady_clock::now() + time_limit();
    for (int spins = 0; !done(); spins++) {
        if (spins < 100) continue;
        if (spins < 1000)
            std::this_thread::yield();
        else
            std::this_thread::sleep_for(std::chrono::microseconds(100));
        if (std::chrono::steady_clock::now() > end) return false;
    }
    return true;
}

// Every rank, before and after it touches the slots.
void Comm::meet() {
    const unsigned generation = shared->generation.load();
    if (shared->arrived.fetch_add(1) + 1 == ranks) {
        shared->arrived = 0;
        shared->generation = generation + 1;
        return;
    }
    const bool met = wait_for([&] { return shared->generation.load() != generation || shared->aborted.load(); });
    if (shared->aborted.load()) throw Failure{ncclRemoteError, "another rank aborted the communicator"};
    if (!met)
        throw Failure{ncclRemoteError, strprintf("not all %d ranks came in %ld ms", ranks, long(time_limit().count()))};
}

// ---------------------------------------------------------------------------------------------------------------------
// Values

size_t size_of(ncclDataType_t type) {
    switch (type) {
        case ncclInt8:
        case ncclUint8:
            return 1;
        case ncclFloat16:
        case ncclBfloat16:
            return 2;
        case ncclInt32:
        case ncclUint32:
        case ncclFloat32:
            return 4;
        case ncclInt64:
        case ncclUint64:
        case ncclFloat64:
            return 8;
        default:
            return 0;
    }
}

struct Bf16 {
    uint16_t bits;
    operator float() const { return __builtin_bit_cast(float, uint32_t(bits) << 16); }
    Bf16() = default;
    explicit Bf16(float x) {
        const auto u = __builtin_bit_cast(uint32_t, x);
        bits = uint16_t(x == x ? (u + 0x7fff + (u >> 16 & 1)) >> 16 : 0x7fff);
    }
};

// out[i] = op over ranks of their slots' element i; computed in Wide.
template <class T, class Wide>
void reduce_as(const Comm& comm, void* out, size_t count, int op) {
    for (size_t i = 0; i < count; i++) {
        auto element = [&](int rank) { return Wide(reinterpret_cast<const T*>(comm.shared->slots[rank])[i]); };
        Wide total = element(0);
        for (int rank = 1; rank < comm.ranks; rank++) {
            const Wide x = element(rank);
            if (op == ncclSum || op == ncclAvg)
                total = Wide(total + x);
            else if (op == ncclProd)
                total = Wide(total * x);
            else if (op == ncclMax ? total < x : x < total)
                total = x;
        }
        if (op == ncclAvg) total = Wide(total / Wide(comm.ranks));
        static_cast<T*>(out)[i] = T(total);
    }
}

void reduce_slots(const Comm& comm, void* out, size_t count, int type, int op) {
    switch (type) {
        case ncclFloat32:
            return reduce_as<float, float>(comm, out, count, op);
        case ncclFloat64:
            return reduce_as<double, double>(comm, out, count, op);
        case ncclBfloat16:
            return reduce_as<Bf16, float>(comm, out, count, op);
        case ncclInt32:
            return reduce_as<int32_t, int32_t>(comm, out, count, op);
        case ncclInt64:
            return reduce_as<int64_t, int64_t>(comm, out, count, op);
        default:
            throw Failure{ncclInvalidArgument, "a reduction of this type is not supported"};
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Collectives

// Calls step(offset, elements) for the chunks of `count` elements, between meetings: put() before, take()
// after.
template <class Put, class Take>
void exchange(Comm& comm, size_t count, size_t element, Put&& put, Take&& take) {
    const size_t chunk = chunk_bytes / element;
    for (size_t offset = 0; offset < count; offset += chunk) {
        const size_t n = std::min(chunk, count - offset);
        put(offset * element, n);
        comm.meet();
        take(offset * element, n);
        comm.meet();
    }
}

// All ranks must have called the same.
void agree(Comm& comm, const Call& call) {
    comm.shared->calls[comm.rank] = call;
    comm.meet();
    auto text = [](const Call& c) {
        return strprintf("%s #%zu of %zu elements, type %d, op %d, root %d", c.name, size_t(c.number), c.count, c.type,
                         c.op, c.root);
    };
    std::string wrong;
    const std::string first = text(comm.shared->calls[0]);
    for (int rank = 1; rank < comm.ranks && wrong.empty(); rank++)
        if (const std::string other = text(comm.shared->calls[rank]); other != first)
            wrong = strprintf("rank 0 calls %s, rank %d calls %s", first.c_str(), rank, other.c_str());
    comm.meet();
    if (!wrong.empty()) throw Failure{ncclInvalidUsage, wrong};
}

void run_collective(Comm& comm, const Call& call, const char* send, char* receive) {
    const size_t element = size_of(ncclDataType_t(call.type)), block = call.count * element;
    const std::string name = call.name;
    char* mine = comm.shared->slots[comm.rank];
    auto reduce = [&](char* to, size_t n) { reduce_slots(comm, to, n, call.type, call.op); };
    agree(comm, call);
    if (name == "AllReduce" || name == "Reduce") {
        exchange(
            comm, call.count, element, [&](size_t at, size_t n) { std::memcpy(mine, send + at, n * element); },
            [&](size_t at, size_t n) {
                if (name == "AllReduce" || comm.rank == call.root) reduce(receive + at, n);
            });
    } else if (name == "ReduceScatter") {
        for (int to = 0; to < comm.ranks; to++)
            exchange(
                comm, call.count, element,
                [&](size_t at, size_t n) { std::memcpy(mine, send + size_t(to) * block + at, n * element); },
                [&](size_t at, size_t n) {
                    if (to == comm.rank) reduce(receive + at, n);
                });
    } else if (name == "AllGather") {
        exchange(
            comm, call.count, element, [&](size_t at, size_t n) { std::memcpy(mine, send + at, n * element); },
            [&](size_t at, size_t n) {
                for (int from = 0; from < comm.ranks; from++)
                    std::memcpy(receive + size_t(from) * block + at, comm.shared->slots[from], n * element);
            });
    } else {
        exchange(
            comm, call.count, element,
            [&](size_t at, size_t n) {
                if (comm.rank == call.root) std::memcpy(mine, send + at, n * element);
            },
            [&](size_t at, size_t n) { std::memcpy(receive + at, comm.shared->slots[call.root], n * element); });
    }
}

ncclResult_t wrong_buffer(const char* name, const void* p, size_t bytes) {
    const std::string wrong = check_range(p, bytes);
    if (wrong.empty() && memory_kind(p) == MemoryKind::device) return ncclSuccess;
    return refuse(ncclInvalidArgument, strprintf("the %s buffer of %zu bytes reaches %s", name, bytes, wrong.c_str()));
}

// Checks and submits one collective; sends and receives so many elements per rank.
ncclResult_t collective(const char* name, const void* send, void* receive, size_t sent, size_t received, size_t count,
                        ncclDataType_t type, int op, int root, ncclComm_t handle, cudaStream_t stream) {
    const auto comm = find(handle);
    const size_t element = size_of(type);
    if (!comm) return refuse(ncclInvalidArgument, std::string(name) + ": no living communicator");
    if (comm->error != ncclSuccess) return refuse(comm->error, std::string(name) + " after an error");
    if (!element || root < 0 || root >= comm->ranks || op < 0 || op > ncclAvg)
        return refuse(ncclInvalidArgument, std::string(name) + ": type, operation or root");
    if (count == 0) return ncclSuccess;
    const bool sends = std::strcmp(name, "Broadcast") != 0 || comm->rank == root;
    const bool receives = std::strcmp(name, "Reduce") != 0 || comm->rank == root;
    if (sends && wrong_buffer("send", send, sent * element)) return ncclInvalidArgument;
    if (receives && wrong_buffer("receive", receive, received * element)) return ncclInvalidArgument;

    Call call{};
    std::snprintf(call.name, sizeof call.name, "%s", name);
    call.count = count, call.type = type, call.op = op, call.root = root;
    auto work = [comm, call, send, receive]() mutable {
        if (comm->error != ncclSuccess) return;
        call.number = comm->calls++;
        try {
            run_collective(*comm, call, static_cast<const char*>(send), static_cast<char*>(receive));
        } catch (const Failure& failure) {
            comm->error = failure.result;
            last_error = strprintf("NCCL: %s on rank %d: %s", call.name, comm->rank, failure.reason.c_str());
            report(cudaErrorLaunchFailure, last_error);
        }
    };
    group.push_back({comm, stream, work});
    return group_depth ? ncclSuccess : (group_depth++, ncclGroupEnd());
}

}  // namespace
}  // namespace emu

// ---------------------------------------------------------------------------------------------------------------------
// NCCL

using namespace emu;

ncclResult_t ncclGetVersion(int* version) {
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
    switch (result) {
        case ncclSuccess:
            return "no error";
        case ncclInvalidArgument:
            return "invalid argument";
        case ncclInvalidUsage:
            return "invalid usage";
        case ncclRemoteError:
            return "remote process exited or there was a network error";
        case ncclSystemError:
            return "unhandled system error";
        default:
            return "internal error";
    }
}

const char* ncclGetLastError(ncclComm_t) { return last_error.c_str(); }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    static std::atomic<int> count{0};
    const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
    *id = {};
    std::snprintf(id->internal, sizeof id->internal, "/nccl-stand-in-%d-%d-%lx", int(getpid()), count++,
                  static_cast<unsigned long>(now));
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* handle, int ranks, ncclUniqueId id, int rank) {
    *handle = nullptr;
    if (ranks < 1 || ranks > max_ranks || rank < 0 || rank >= ranks)
        return refuse(ncclInvalidArgument, strprintf("rank %d of %d", rank, ranks));
    const int file = shm_open(id.internal, O_CREAT | O_RDWR, 0600);
    if (file < 0 || ftruncate(file, sizeof(Shared)) != 0)
        return refuse(ncclSystemError, std::string("shared memory ") + id.internal + ": " + std::strerror(errno));
    void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED) return refuse(ncclSystemError, "no address space");
    auto comm = std::make_shared<Comm>();
    comm->rank = rank, comm->ranks = ranks, comm->shared = static_cast<Shared*>(memory);
    cudaGetDevice(&comm->device);
    int none = 0;
    if (!comm->shared->ranks.compare_exchange_strong(none, ranks) && none != ranks)
        return refuse(ncclInvalidUsage, strprintf("one rank says there are %d ranks, another %d", ranks, none));
    if (comm->shared->present[rank].exchange(1))
        return refuse(ncclInvalidUsage, strprintf("rank %d exists twice", rank));
    if (rank > 0) std::this_thread::sleep_for(milliseconds("EMU_NCCL_INIT_DELAY_MS", 0));
    comm->shared->joined++;
    const bool all = wait_for([&] { return comm->shared->joined.load() == ranks; });
    shm_unlink(id.internal);  // by everyone: the first one succeeds, and no file stays behind
    if (!all)
        return refuse(ncclRemoteError, strprintf("%d of %d ranks came in %ld ms", comm->shared->joined.load(), ranks,
                                                 long(time_limit().count())));
    *handle = reinterpret_cast<ncclComm_t>(comm.get());
    std::lock_guard lock(communicators().mutex);
    communicators().living[*handle] = comm;
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t handle) { return find(handle) ? ncclSuccess : ncclInvalidArgument; }

ncclResult_t ncclCommDestroy(ncclComm_t handle) {
    std::lock_guard lock(communicators().mutex);
    return communicators().living.erase(handle) ? ncclSuccess : ncclInvalidArgument;
}

// Ends what other ranks, or other threads of this one, are waiting for.
ncclResult_t ncclCommAbort(ncclComm_t handle) {
    const auto comm = find(handle);
    if (!comm) return ncclInvalidArgument;
    comm->shared->aborted = 1;
    return ncclCommDestroy(handle);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t* error) {
    const auto comm = find(handle);
    if (!comm) return ncclInvalidArgument;
    *error = comm->error;
    return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t handle, int* count) {
    const auto comm = find(handle);
    if (!comm) return ncclInvalidArgument;
    *count = comm->ranks;
    return ncclSuccess;
}

ncclResult_t ncclCommUserRank(const ncclComm_t handle, int* rank) {
    const auto comm = find(handle);
    if (!comm) return ncclInvalidArgument;
    *rank = comm->rank;
    return ncclSuccess;
}

ncclResult_t ncclCommCuDevice(const ncclComm_t handle, int* device) {
    const auto comm = find(handle);
    if (!comm) return ncclInvalidArgument;
    *device = comm->device;
    return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
    group_depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
    if (group_depth == 0) return refuse(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    if (--group_depth) return ncclSuccess;
    const std::vector<Grouped> calls = std::exchange(group, {});
    for (const Grouped& call : calls)
        if (call.comm != calls.front().comm)
            return refuse(ncclInvalidUsage, "one thread drives several ranks, which the stand-in cannot do");
    for (const Grouped& call : calls)
        if (submit(call.stream, call.work) != cudaSuccess) return refuse(ncclInvalidArgument, "no living stream");
    return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
    return collective("AllReduce", send, receive, count, count, count, type, op, 0, comm, stream);
}

ncclResult_t ncclReduce(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,
                        ncclComm_t comm, cudaStream_t stream) {
    return collective("Reduce", send, receive, count, count, count, type, op, root, comm, stream);
}

ncclResult_t ncclReduceScatter(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t handle, cudaStream_t stream) {
    const auto comm = find(handle);
    const size_t all = comm ? count * size_t(comm->ranks) : 0;
    return collective("ReduceScatter", send, receive, all, count, count, type, op, 0, handle, stream);
}

ncclResult_t ncclAllGather(const void* send, void* receive, size_t count, ncclDataType_t type, ncclComm_t handle,
                           cudaStream_t stream) {
    const auto comm = find(handle);
    const size_t all = comm ? count * size_t(comm->ranks) : 0;
    return collective("AllGather", send, receive, count, all, count, type, 0, 0, handle, stream);
}

ncclResult_t ncclBroadcast(const void* send, void* receive, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
    return collective("Broadcast", send, receive, count, count, count, type, 0, root, comm, stream);
}
