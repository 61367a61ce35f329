// Messages between the ranks of a run, through host memory. Implementations: MPI (mpi_link.cpp), sockets
// (socket_link.cpp).
#pragma once
#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "runtime/error.h"

namespace tapernorm::train {

struct Message {
    int rank;  // to or from
    void* data;
    size_t bytes;
};

// The run ends, and another rank says why.
struct RankStopped : Error {
    using Error::Error;
};

class Link {
  public:
    virtual ~Link() = default;

    // Sends and receives all of these side by side, at most one message per rank and direction. Messages between two ranks
    // keep their order. A rank that ended, or is not done within time_limit, is an Error that names it and `what` it was
    // waited for.
    virtual void exchange(const std::vector<Message>& send, const std::vector<Message>& receive, const char* what) = 0;

    // Ends every rank, this one's caller excepted where it can return; the reason has been printed.
    virtual void stop_all() = 0;

    // For a rank that failed, before it prints why: rank 0 may have had the same error and stop this rank first. Whether
    // it has.
    virtual bool stopped_by_first_rank(double seconds) = 0;

    // From another thread: the exchange under way throws.
    void cancel() { cancelled_ = true; }

    double time_limit = 600;  // seconds

  protected:
    // For loops that wait: gives way at first, then sleeps, so that ranks which share a core get on.
    class Waiting {
      public:
        Waiting(const Link& link, bool patient) : link_(link), limit_(link.time_limit + (patient ? kGrace : 0)) {}
        // Whether time is left.
        bool pause() {
            if (link_.cancelled_) fail("cancelled");
            if (turns_++ < 200)
                std::this_thread::yield();
            else
                std::this_thread::sleep_for(std::chrono::microseconds(50));
            return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count() < limit_;
        }

      private:
        const Link& link_;
        double limit_;
        int turns_ = 0;
        std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
    };
    // Rank 0 speaks first: the others wait this much longer.
    static constexpr double kGrace = 5;

    // Several are missing where one hangs and others wait for it too.
    [[noreturn]] void too_late(const std::set<int>& ranks, const char* what) const {
        std::string list;
        for (int rank : ranks) list += (list.empty() ? "" : ", ") + std::to_string(rank);
        fail(
            "rank %s did not come to %s within %g s: %s hangs or its machine is out of reach; a longer limit: "
            "--rank-timeout",
            list.c_str(), what, time_limit, ranks.size() == 1 ? "it" : "one of them");
    }

  private:
    std::atomic<bool> cancelled_{false};
};

// The ranks that mpirun started. Fails where this program was built without MPI.
std::unique_ptr<Link> join_mpi(int rank, int size);

// sockets[r]: connected to rank r, or -1; they belong to the link from now on.
std::unique_ptr<Link> link_sockets(int rank, const std::vector<int>& sockets);

// Where ranks without MPI meet: rank 0 listens there, all of them come within `seconds` and know the same secret, which is
// empty where the user gave none.
struct Meeting {
    std::string address;
    int port;
    double seconds;
    std::string secret;
};
constexpr const char* kSecretVariables = "TAPERNORM_SECRET or TAPERNORM_SECRET_FILE";
std::unique_ptr<Link> join_tcp(int rank, int size, const Meeting& meeting);

}  // namespace tapernorm::train
