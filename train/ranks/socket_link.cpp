// The link of ranks without MPI: sockets, by default a star around rank 0.
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "train/ranks/link.h"

namespace tapernorm::train {

namespace {

struct Header {
    uint32_t kind, unused;
    uint64_t bytes;  // behind the header
};
constexpr uint32_t kData = 0x4e544431, kStop = 0x4e545353;

class SocketLink : public Link {
  public:
    SocketLink(int rank, std::vector<int> sockets) : rank_(rank), sockets_(std::move(sockets)) {}
    ~SocketLink() override {
        for (int s : sockets_)
            if (s >= 0) close(s);
    }

    void exchange(const std::vector<Message>& send, const std::vector<Message>& receive, const char* what) override {
        std::vector<Flow> flows;
        for (const Message& m : receive) flows.push_back({m, false, {}});
        for (const Message& m : send) flows.push_back({m, true, {kData, 0, m.bytes}});
        for (const Flow& f : flows)
            if (size_t(f.message.rank) >= sockets_.size() || sockets_[size_t(f.message.rank)] < 0)
                fail("rank %d has no connection to rank %d: ranks on CPUs speak through MPI; start them with mpirun",
                     rank_, f.message.rank);
        Waiting waiting(*this, rank_ != 0);
        for (;;) {
            bool moved = false;
            for (Flow& f : flows) moved |= advance(f, what);
            std::set<int> open;
            for (const Flow& f : flows)
                if (!f.complete()) open.insert(f.message.rank);
            if (open.empty()) return;
            if (!moved && !waiting.pause()) too_late(open, what);
        }
    }

    void stop_all() override {
        const Header stop{kStop, 0, 0};
        for (int s : sockets_)
            if (s >= 0) (void)!::send(s, &stop, sizeof stop, MSG_DONTWAIT | MSG_NOSIGNAL);
    }

    bool stopped_by_first_rank(double seconds) override {
        struct pollfd wait{rank_ == 0 ? -1 : sockets_[0], POLLIN, 0};
        const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
        const Header stop{kStop, 0, 0};
        std::string heard;  // what was under way, then the stop: a rank that was killed has not sent one
        while (std::chrono::steady_clock::now() < end) {
            if (poll(&wait, 1, 20) != 1) continue;
            char bytes[4096];
            const ssize_t n = recv(sockets_[0], bytes, sizeof bytes, MSG_DONTWAIT);
            if (n <= 0) return false;
            heard.append(bytes, size_t(n));
            heard.erase(0, heard.size() - std::min(heard.size(), sizeof stop));
            if (heard.size() == sizeof stop && std::memcmp(heard.data(), &stop, sizeof stop) == 0) return true;
        }
        return false;
    }

  private:
    struct Flow {
        Message message;
        bool out;
        Header header;
        size_t moved = 0;  // bytes, the header's included
        bool complete() const { return moved == sizeof header + message.bytes; }
    };

    // Moves what the socket takes or gives now; whether that was anything.
    bool advance(Flow& f, const char* what) {
        bool any = false;
        while (!f.complete()) {
            const bool in_header = f.moved < sizeof f.header;
            char* at = in_header ? reinterpret_cast<char*>(&f.header) + f.moved
                                 : static_cast<char*>(f.message.data) + (f.moved - sizeof f.header);
            const size_t left = (in_header ? sizeof f.header : sizeof f.header + f.message.bytes) - f.moved;
            const int s = sockets_[size_t(f.message.rank)];
            const ssize_t n =
                f.out ? ::send(s, at, left, MSG_DONTWAIT | MSG_NOSIGNAL) : recv(s, at, left, MSG_DONTWAIT);
            if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return any;
            if (n == 0 || (n < 0 && !f.out)) gone(f.message.rank, what);
            // A rank that stops sends that and closes: what it sent may still be read.
            if (n < 0) throw_if_stopped(f.message.rank), gone(f.message.rank, what);
            f.moved += size_t(n), any = true;
            if (!f.out && f.moved == sizeof f.header) check_header(f);
        }
        return any;
    }

    void check_header(const Flow& f) const {
        if (f.header.kind == kStop) throw RankStopped(stopped_by(f.message.rank));
        if (f.header.kind != kData || f.header.bytes != f.message.bytes)
            fail("rank %d sent %llu bytes where %zu were expected: the ranks run different programs or flags",
                 f.message.rank, static_cast<unsigned long long>(f.header.bytes), f.message.bytes);
    }

    void throw_if_stopped(int rank) const {
        Header header{};
        while (recv(sockets_[size_t(rank)], &header, sizeof header, MSG_DONTWAIT) == ssize_t(sizeof header))
            if (header.kind == kStop) throw RankStopped(stopped_by(rank));
    }

    static std::string stopped_by(int rank) { return strprintf("rank %d ended the run; it says why itself", rank); }

    [[noreturn]] static void gone(int rank, const char* what) {
        fail("rank %d is gone: its connection closed before %s, and it did not say why; was it killed?", rank, what);
    }

    int rank_;
    std::vector<int> sockets_;
};

}  // namespace

std::unique_ptr<Link> link_sockets(int rank, const std::vector<int>& sockets) {
    return std::make_unique<SocketLink>(rank, sockets);
}

}  // namespace tapernorm::train
