// Streams, events and captures. Inside of the stand-in only.
#pragma once
#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime.h"

namespace emu {

struct Stream;

// A graph that is being recorded from one stream and those that joined it through events.
struct Capture {
    std::vector<std::function<void()>> work;
    std::vector<std::shared_ptr<Stream>> members;  // the first is where the capture began and must end
    cudaStreamCaptureMode mode;
    bool spoiled = false;
};

struct Stream {
    struct Item {
        uint64_t ticket;
        std::function<void()> work;
    };
    bool blocking = false;  // takes part in the default stream's synchronization
    std::deque<Item> queue;
    uint64_t submitted = 0, done = 0;  // tickets
    bool busy = false;                 // a host thread executes the front item

    std::shared_ptr<Capture> capture;
    uint64_t captured = 0,
             joined = 0;  // operations recorded from here, and how many of them an event led back
};

struct Event {
    std::shared_ptr<Stream> stream;  // where it was recorded last; null: never
    uint64_t ticket = 0;
    bool timing = true;
    double milliseconds = 0;
    std::shared_ptr<Capture> capture;  // recorded into a graph
    uint64_t captured = 0;
};

// Guards everything above; not held while work runs.
std::mutex& streams_mutex();

std::shared_ptr<Stream> find_stream(cudaStream_t stream);  // null: not a living stream
std::shared_ptr<Event> find_event(cudaEvent_t event);

// What the clock of events shows beyond the host's time: work that is meant to take long adds to it and does not wait.
std::atomic<double>& pretended_milliseconds();

// Executes what was submitted to the stream up to this ticket.
void run_until(Stream& stream, uint64_t ticket);

}  // namespace emu
