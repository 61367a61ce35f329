// The CUDA device: streams, library handle, properties, memory, graphs. Ops are overloaded on it by their first argument.
#pragma once
#ifdef TN_CUDA
#include <string>

#include "runtime/launch.cuh"
#include "runtime/matmul_plans.cuh"

namespace tapernorm {

// ---------------------------------------------------------------------------------------------------------------------
// Is there a GPU?

struct CudaProbe {
    int devices = 0;          // usable or not
    bool usable = false;      // this device can run the program
    std::string description;  // the GPU, as in "NVIDIA H200 (sm_90, 139.8 GiB)", or why there is none
};

// The oldest architecture with bf16 arithmetic, mma and cp.async.
constexpr int kMinimumSm = 80;

// Looks for a GPU. Never fails: a machine without one, or without a driver, is a normal answer.
inline CudaProbe probe_cuda(int device = 0) {
    CudaProbe probe;
    cudaDeviceProp properties;
    cudaError_t error = cudaGetDeviceCount(&probe.devices);
    if (error == cudaSuccess && probe.devices > device) error = cudaGetDeviceProperties(&properties, device);
    if (error != cudaSuccess) {
        cudaGetLastError();  // the error has been answered: later calls must not see it
        probe.devices = 0;
        const bool none = error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver;
        probe.description = none ? "no GPU found" : strprintf("no usable GPU: %s", cudaGetErrorString(error));
        return probe;
    }
    if (probe.devices <= device) {
        probe.description = strprintf("GPU %d was asked for and %d found", device, probe.devices);
        return probe;
    }
    const int sm = 10 * properties.major + properties.minor;
    probe.usable = sm >= kMinimumSm;
    probe.description =
        strprintf("%s (sm_%d, %.1f GiB)", properties.name, sm, double(properties.totalGlobalMem) / double(1 << 30));
    if (!probe.usable) probe.description += strprintf(": too old, sm_%d or newer is needed", kMinimumSm);
    return probe;
}

// ---------------------------------------------------------------------------------------------------------------------
// The device

struct Cuda;
inline void* device_allocate(Cuda& dev, size_t bytes, const char* what);

struct Cuda {
    // The vocabulary is rounded up to a multiple of it in memory, so that rows of logits start at multiples of 16 bytes and more.
    static constexpr size_t kVocabularyGrain = 128;

    int device;
    cudaStream_t stream = nullptr;       // every op runs here
    cudaStream_t copy_stream = nullptr;  // transfers that overlap with ops; order the two with events
    cublasLtHandle_t cublaslt = nullptr;
    MatmulPlans plans;
    void* workspace = nullptr;  // cuBLASLt's, for products on `stream`
    size_t workspace_bytes = size_t(32) << 20;
    // Whether attention multiplies by warpgroups, for head sizes 64 and 128: see ops/attention/choice.cuh.
    enum class Wgmma { unasked, no, yes } wgmma[2] = {};
    const char* memory_hint;  // what this program's user can do about too little memory, for the error
    cudaDeviceProp properties;

    explicit Cuda(int device_ = 0, const char* memory_hint_ = "") : device(device_), memory_hint(memory_hint_) {
        const CudaProbe probe = probe_cuda(device);
        if (!probe.usable) fail("GPU %d cannot be used: %s; run on the CPU", device, probe.description.c_str());
        CUDA_CHECK(cudaSetDevice(device));
        CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
        workspace = device_allocate(*this, workspace_bytes, "workspace of matrix products");  // first: it may fail
        CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        CUDA_CHECK(cudaStreamCreateWithFlags(&copy_stream, cudaStreamNonBlocking));
        CUBLAS_CHECK(cublasLtCreate(&cublaslt));
    }
    Cuda(const Cuda&) = delete;
    Cuda& operator=(const Cuda&) = delete;

    // Errors are ignored here: whoever needs the results has synchronized and checked before.
    ~Cuda() {
        cudaFree(scratch_);
        cudaFree(workspace);
        cublasLtDestroy(cublaslt);
        cudaStreamDestroy(copy_stream);
        cudaStreamDestroy(stream);
    }

    // Scratch memory of at least `bytes` for one op on `stream`, valid until the next call. It grows to the largest need and
    // stays. An op with scratch cannot be part of a graph, which would go on using what has been freed since.
    void* scratch(size_t bytes) {
        if (capturing(stream))
            fail(
                "scratch of the kernels: expected no graph to be recorded, found one (an op that needs memory of its own)");
        if (scratch_bytes_ < bytes) {
            CUDA_CHECK(cudaFree(scratch_));
            scratch_ = nullptr, scratch_bytes_ = 0;
            scratch_ = device_allocate(*this, bytes, "scratch of the kernels");
            scratch_bytes_ = bytes;
        }
        return scratch_;
    }

    void synchronize() { CUDA_CHECK(cudaStreamSynchronize(stream)); }

    int multiprocessors() const { return properties.multiProcessorCount; }
    int sm() const { return 10 * properties.major + properties.minor; }

  private:
    void* scratch_ = nullptr;
    size_t scratch_bytes_ = 0;
};

// ---------------------------------------------------------------------------------------------------------------------
// Memory

inline void* device_allocate(Cuda& dev, size_t bytes, const char* what) {
    void* p = nullptr;
    if (bytes == 0) return p;
    const cudaError_t error = cudaMalloc(&p, bytes);
    if (error == cudaErrorMemoryAllocation) {
        size_t free = 0, total = 0;
        cudaGetLastError();
        CUDA_CHECK(cudaMemGetInfo(&free, &total));
        fail("out of memory on GPU %d: %.1f MiB needed for %s, %.1f of %.1f MiB free%s", dev.device,
             double(bytes) / 1048576, what, double(free) / 1048576, double(total) / 1048576,
             memory_hint_text(dev.memory_hint).c_str());
    }
    CUDA_CHECK(error);
    return p;
}

// Often called by a destructor, so errors are left to the next checked call.
inline void device_free(Cuda&, void* p) { cudaFree(p); }

inline void device_zero(Cuda& dev, void* p, size_t bytes) {
    if (bytes) CUDA_CHECK(cudaMemsetAsync(p, 0, bytes, dev.stream));
}

// Copies between host and device, in order with the ops on dev.stream, finished on return.
inline void device_copy_in(Cuda& dev, void* to, const void* from, size_t bytes) {
    if (bytes == 0) return;
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, dev.stream));
    dev.synchronize();
}
inline void device_copy_out(Cuda& dev, void* to, const void* from, size_t bytes) {
    if (bytes == 0) return;
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, dev.stream));
    dev.synchronize();
}

// Device to device; asynchronous, like an op.
inline void device_copy(Cuda& dev, void* to, const void* from, size_t bytes) {
    if (bytes) CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, dev.stream));
}

// Page-locked host memory, which a copy needs in order to run while the host continues. It may be refilled only once an event
// recorded after the copy has passed.
template <class T>
class Pinned {
  public:
    explicit Pinned(size_t count) {
        if (count) CUDA_CHECK(cudaMallocHost(reinterpret_cast<void**>(&data_), count * sizeof(T)));
    }
    Pinned(const Pinned&) = delete;
    Pinned& operator=(const Pinned&) = delete;
    ~Pinned() { cudaFreeHost(data_); }
    T* data() const { return data_; }
    T& operator[](size_t i) const { return data_[i]; }

  private:
    T* data_ = nullptr;
};

// ---------------------------------------------------------------------------------------------------------------------
// Order between streams, graphs

// A point in a stream that another stream or the host can wait for.
class CudaEvent {
  public:
    CudaEvent() { CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
    CudaEvent(const CudaEvent&) = delete;
    CudaEvent& operator=(const CudaEvent&) = delete;
    ~CudaEvent() { cudaEventDestroy(event_); }
    void record(cudaStream_t stream) { CUDA_CHECK(cudaEventRecord(event_, stream)); }
    // Whatever is issued on the stream from now on waits for the event.
    void block(cudaStream_t stream) { CUDA_CHECK(cudaStreamWaitEvent(stream, event_, 0)); }
    // The host waits for the event.
    void synchronize() { CUDA_CHECK(cudaEventSynchronize(event_)); }
    // Whether the event has passed; does not wait.
    bool passed() {
        const cudaError_t error = cudaEventQuery(event_);
        if (error == cudaErrorNotReady) {
            cudaGetLastError();  // that is an answer: later calls must not see it
            return false;
        }
        CUDA_CHECK(error);
        return true;
    }

  private:
    cudaEvent_t event_ = nullptr;
};

// How long the work between two points of a stream took.
class CudaTimer {
  public:
    CudaTimer() {
        CUDA_CHECK(cudaEventCreate(&begin_));
        CUDA_CHECK(cudaEventCreate(&end_));
    }
    CudaTimer(const CudaTimer&) = delete;
    CudaTimer& operator=(const CudaTimer&) = delete;
    ~CudaTimer() { cudaEventDestroy(begin_), cudaEventDestroy(end_); }
    void begin(cudaStream_t stream) { CUDA_CHECK(cudaEventRecord(begin_, stream)); }
    void end(cudaStream_t stream) { CUDA_CHECK(cudaEventRecord(end_, stream)); }
    // Waits for the second point.
    double milliseconds() {
        float ms = 0;
        CUDA_CHECK(cudaEventSynchronize(end_));
        CUDA_CHECK(cudaEventElapsedTime(&ms, begin_, end_));
        return double(ms);
    }

  private:
    cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

// A recorded sequence of ops, launched as one. What changes between launches (a position, a token) must be read from device
// memory: the arguments of kernels are frozen when recorded.
class CudaGraph {
  public:
    CudaGraph() = default;
    CudaGraph(const CudaGraph&) = delete;
    CudaGraph& operator=(const CudaGraph&) = delete;
    ~CudaGraph() {
        if (graph_) cudaGraphExecDestroy(graph_);
    }
    explicit operator bool() const { return graph_ != nullptr; }

    // Records what ops() issues on dev.stream; nothing is executed.
    template <class Ops>
    void record(Cuda& dev, Ops&& ops) {
        cudaGraph_t graph = nullptr;
        CUDA_CHECK(cudaStreamBeginCapture(dev.stream, cudaStreamCaptureModeThreadLocal));
        try {
            ops();
        } catch (...) {
            cudaStreamEndCapture(dev.stream, &graph);
            if (graph) cudaGraphDestroy(graph);
            cudaGetLastError();  // what ops() threw says more
            throw;
        }
        CUDA_CHECK(cudaStreamEndCapture(dev.stream, &graph));
        if (graph_) cudaGraphExecDestroy(graph_);
        graph_ = nullptr;
        CUDA_CHECK(cudaGraphGetNodes(graph, nullptr, &nodes_));
        const cudaError_t error = cudaGraphInstantiate(&graph_, graph, 0);
        cudaGraphDestroy(graph);
        CUDA_CHECK(error);
    }

    void launch(Cuda& dev) { CUDA_CHECK(cudaGraphLaunch(graph_, dev.stream)); }
    size_t nodes() const { return nodes_; }  // kernels, copies, products

  private:
    cudaGraphExec_t graph_ = nullptr;
    size_t nodes_ = 0;
};

}  // namespace tapernorm
#endif  // TN_CUDA
