// Streams and events. Eager: work runs when it is submitted. Lazy: when somebody waits for it, so that a
// missing wait shows as stale data.
#include "stream.h"

#include <chrono>
#include <condition_variable>
#include <map>

namespace emu {
namespace {

struct Streams {
    std::mutex mutex;
    std::condition_variable finished;
    std::map<const void*, std::shared_ptr<Stream>> streams;
    std::map<const void*, std::shared_ptr<Event>> events;
    Streams() {
        streams[nullptr] = std::make_shared<Stream>();  // the default stream
        streams[nullptr]->blocking = true;
    }
};

Streams& all() {
    static Streams* const instance = new Streams;  // never destroyed: other destructors may still use streams
    return *instance;
}

std::vector<std::shared_ptr<Stream>> living_streams(bool only_blocking) {
    std::lock_guard lock(all().mutex);
    std::vector<std::shared_ptr<Stream>> result;
    for (auto& [handle, stream] : all().streams)
        if (stream->blocking || !only_blocking) result.push_back(stream);
    return result;
}

uint64_t last_ticket(Stream& stream) {
    std::lock_guard lock(all().mutex);
    return stream.submitted;
}

void synchronize(bool only_blocking) {
    for (auto& stream : living_streams(only_blocking)) run_until(*stream, last_ticket(*stream));
}

// Executes the front item unless another host thread does. The lock is held on entry and exit.
void run_one(Stream& stream, std::unique_lock<std::mutex>& lock) {
    if (stream.busy) {
        all().finished.wait(lock);
        return;
    }
    stream.busy = true;
    Stream::Item item = std::move(stream.queue.front());
    stream.queue.pop_front();
    lock.unlock();
    item.work();
    item.work = nullptr;
    lock.lock();
    stream.busy = false;
    stream.done = item.ticket;
    all().finished.notify_all();
}

// Whether the work has run; makes a little progress if not, so that polling ends.
cudaError_t poll(Stream& stream, uint64_t ticket) {
    {
        std::unique_lock lock(all().mutex);
        if (stream.done < ticket) {
            run_one(stream, lock);
            return cudaErrorNotReady;
        }
    }
    return pending_error();
}

template <class Handle, class T>
Handle handle_of(T& object) {
    return reinterpret_cast<Handle>(&object);
}

}  // namespace

std::atomic<double>& pretended_milliseconds() {
    static std::atomic<double> sum;
    return sum;
}

std::mutex& streams_mutex() { return all().mutex; }

std::shared_ptr<Stream> find_stream(cudaStream_t stream) {
    std::lock_guard lock(all().mutex);
    const auto found = all().streams.find(stream);
    return found == all().streams.end() ? nullptr : found->second;
}

std::shared_ptr<Event> find_event(cudaEvent_t event) {
    std::lock_guard lock(all().mutex);
    const auto found = all().events.find(event);
    return found == all().events.end() ? nullptr : found->second;
}

void run_until(Stream& stream, uint64_t ticket) {
    std::unique_lock lock(all().mutex);
    while (stream.done < ticket) run_one(stream, lock);
}

void synchronize_all() { synchronize(false); }

cudaError_t submit(cudaStream_t handle, std::function<void()> work) {
    const auto stream = find_stream(handle);
    if (!stream) return refuse(cudaErrorInvalidResourceHandle);
    if (handle == nullptr) synchronize(true);
    uint64_t ticket;
    {
        std::lock_guard lock(all().mutex);
        if (stream->capture) {
            stream->capture->work.push_back(std::move(work));
            stream->captured++;
            return cudaSuccess;
        }
        ticket = ++stream->submitted;
        stream->queue.push_back({ticket, std::move(work)});
    }
    if (!settings().lazy || handle == nullptr) run_until(*stream, ticket);
    return cudaSuccess;
}

}  // namespace emu

// ---------------------------------------------------------------------------------------------------------------------
// CUDA runtime: streams

using namespace emu;

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned flags) {
    auto stream = std::make_shared<Stream>();
    stream->blocking = !(flags & cudaStreamNonBlocking);
    *handle = handle_of<cudaStream_t>(*stream);
    std::lock_guard lock(all().mutex);
    all().streams[*handle] = std::move(stream);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* handle) { return cudaStreamCreateWithFlags(handle, cudaStreamDefault); }

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned flags, int) {
    return cudaStreamCreateWithFlags(handle, flags);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0, *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    const auto stream = find_stream(handle);
    if (!handle || !stream) return refuse(cudaErrorInvalidResourceHandle);
    run_until(*stream, last_ticket(*stream));
    std::lock_guard lock(all().mutex);
    all().streams.erase(handle);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    const auto stream = find_stream(handle);
    if (!stream) return refuse(cudaErrorInvalidResourceHandle);
    if (stream->capture) {
        stream->capture->spoiled = true;
        return refuse(cudaErrorStreamCaptureUnsupported, "cudaStreamSynchronize on a stream that is being captured");
    }
    if (!handle) synchronize(true);
    run_until(*stream, last_ticket(*stream));
    return pending_error();
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
    const auto stream = find_stream(handle);
    if (!stream) return refuse(cudaErrorInvalidResourceHandle);
    return poll(*stream, last_ticket(*stream));
}

cudaError_t cudaDeviceSynchronize() {
    if (spoils_capture("cudaDeviceSynchronize")) return refuse(cudaErrorStreamCaptureUnsupported);
    synchronize_all();
    return pending_error();
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
    return submit(stream, [function, data] { function(data); });
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA runtime: events

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* handle, unsigned flags) {
    auto event = std::make_shared<Event>();
    event->timing = !(flags & cudaEventDisableTiming);
    *handle = handle_of<cudaEvent_t>(*event);
    std::lock_guard lock(all().mutex);
    all().events[*handle] = std::move(event);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* handle) { return cudaEventCreateWithFlags(handle, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
    std::lock_guard lock(all().mutex);
    return all().events.erase(handle) ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle) {
    const auto event = find_event(handle);
    const auto stream = find_stream(stream_handle);
    if (!event || !stream) return refuse(cudaErrorInvalidResourceHandle);
    const bool captured = stream->capture != nullptr;
    if (captured) {
        event->stream = stream;
        event->capture = stream->capture;
        event->captured = stream->captured;
        return cudaSuccess;
    }
    event->capture = nullptr;
    const cudaError_t error = submit(stream_handle, [event] {
        const auto now = std::chrono::steady_clock::now().time_since_epoch();
        event->milliseconds = std::chrono::duration<double, std::milli>(now).count() + pretended_milliseconds();
    });
    std::lock_guard lock(all().mutex);
    event->stream = stream;
    event->ticket = stream->submitted;
    return error;
}

// In a capture the waiting stream joins the event's capture, or leads its work back there.
static cudaError_t wait_in_capture(const std::shared_ptr<Stream>& stream, const Event& event) {
    if (!event.capture || (stream->capture && stream->capture != event.capture))
        return refuse(cudaErrorStreamCaptureIsolation);
    if (!stream->capture) {
        stream->capture = event.capture;
        stream->captured = stream->joined = 0;
        stream->capture->members.push_back(stream);
    }
    event.stream->joined = std::max(event.stream->joined, event.captured);
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream_handle, cudaEvent_t handle, unsigned) {
    const auto event = find_event(handle);
    const auto stream = find_stream(stream_handle);
    if (!event || !stream) return refuse(cudaErrorInvalidResourceHandle);
    if (stream->capture || event->capture) return wait_in_capture(stream, *event);
    if (!event->stream) return cudaSuccess;  // never recorded: nothing to wait for
    return submit(stream_handle, [source = event->stream, ticket = event->ticket] { run_until(*source, ticket); });
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    const auto event = find_event(handle);
    if (!event) return refuse(cudaErrorInvalidResourceHandle);
    if (event->capture) return refuse(cudaErrorCapturedEvent);
    if (event->stream) run_until(*event->stream, event->ticket);
    return pending_error();
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
    const auto event = find_event(handle);
    if (!event) return refuse(cudaErrorInvalidResourceHandle);
    if (event->capture) return refuse(cudaErrorCapturedEvent);
    return event->stream ? poll(*event->stream, event->ticket) : cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    const auto a = find_event(begin), b = find_event(end);
    if (!a || !b || !a->timing || !b->timing || !a->stream || !b->stream) return refuse(cudaErrorInvalidResourceHandle);
    for (const auto& event : {a, b}) {
        std::lock_guard lock(all().mutex);
        if (event->stream->done < event->ticket) return refuse(cudaErrorNotReady);
    }
    *milliseconds = float(b->milliseconds - a->milliseconds);
    return pending_error();
}
