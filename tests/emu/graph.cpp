// CUDA graphs: a capture keeps what would have been submitted, a launch submits all of it as one piece of
// work.
#include <algorithm>

#include "stream.h"

namespace emu {
namespace {

// The capture that this host thread began, if it still runs: calls that would wait or allocate spoil it.
thread_local std::weak_ptr<Capture> begun_here;

using Work = std::vector<std::function<void()>>;

Work* work_of(cudaGraph_t graph) { return reinterpret_cast<Work*>(graph); }
Work* work_of(cudaGraphExec_t graph) { return reinterpret_cast<Work*>(graph); }

}  // namespace

bool spoils_capture(const char* call) {
    const auto capture = begun_here.lock();
    if (!capture || capture->mode == cudaStreamCaptureModeRelaxed) return false;
    capture->spoiled = true;
    refuse(cudaErrorStreamCaptureUnsupported, std::string(call) + " while a graph is being captured");
    return true;
}

}  // namespace emu

using namespace emu;

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    const auto stream = find_stream(handle);
    if (!stream) return refuse(cudaErrorInvalidResourceHandle);
    if (!handle) return refuse(cudaErrorStreamCaptureUnsupported, "the default stream cannot be captured");
    if (stream->capture) return refuse(cudaErrorIllegalState);
    stream->capture = std::make_shared<Capture>();
    stream->capture->mode = mode;
    stream->capture->members.push_back(stream);
    stream->captured = stream->joined = 0;
    begun_here = stream->capture;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
    *graph = nullptr;
    const auto stream = find_stream(handle);
    if (!stream) return refuse(cudaErrorInvalidResourceHandle);
    const auto capture = stream->capture;
    if (!capture || capture->members.front() != stream) return refuse(cudaErrorStreamCaptureUnmatched);
    bool joined = true;
    for (const auto& member : capture->members) {
        if (member != stream && member->joined < member->captured) joined = false;
        member->capture = nullptr;
    }
    capture->members.clear();
    begun_here.reset();
    if (capture->spoiled) return refuse(cudaErrorStreamCaptureInvalidated);
    if (!joined) return refuse(cudaErrorStreamCaptureUnjoined);
    *graph = reinterpret_cast<cudaGraph_t>(new Work(std::move(capture->work)));
    return pending_error();
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
    const auto stream = find_stream(handle);
    if (!stream) return refuse(cudaErrorInvalidResourceHandle);
    *status = !stream->capture           ? cudaStreamCaptureStatusNone
              : stream->capture->spoiled ? cudaStreamCaptureStatusInvalidated
                                         : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
    if (!graph || nodes)
        return refuse(cudaErrorInvalidValue, "cudaGraphGetNodes: only the number of nodes is known here");
    *count = work_of(graph)->size();
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
    if (!graph) return refuse(cudaErrorInvalidValue);
    *executable = reinterpret_cast<cudaGraphExec_t>(new Work(*work_of(graph)));
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete work_of(graph);
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    delete work_of(graph);
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    if (!graph) return refuse(cudaErrorInvalidValue);
    // A copy: the graph may be destroyed before a lazy stream gets here.
    return submit(stream, [work = *work_of(graph)] {
        for (const auto& item : work) item();
    });
}
