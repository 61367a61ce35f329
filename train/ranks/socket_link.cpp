// The link of ranks without MPI: sockets, by default a star around rank 0.
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
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
            for (Flow& f : flows) moved |= advance(f);
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
        while (std::chrono::steady_clock::now() < end) {
            if (poll(&wait, 1, 20) != 1) continue;
            Header header{};
            const ssize_t n = recv(sockets_[0], &header, sizeof header, MSG_DONTWAIT);
            if (n <= 0 || (n == ssize_t(sizeof header) && header.kind == kStop)) return true;
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
    bool advance(Flow& f) {
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
            if (n == 0 || (n < 0 && !f.out)) gone(f.message.rank);
            // A rank that stops sends that and closes: what it sent may still be read.
            if (n < 0) throw_if_stopped(f.message.rank), gone(f.message.rank);
            f.moved += size_t(n), any = true;
            if (!f.out && f.moved == sizeof f.header) check_header(f);
        }
        return any;
    }

    void check_header(const Flow& f) const {
        if (f.header.kind == kStop) throw RankStopped(strprintf("rank %d stopped the run", f.message.rank));
        if (f.header.kind != kData || f.header.bytes != f.message.bytes)
            fail("rank %d sent %llu bytes where %zu were expected: the ranks run different programs or flags",
                 f.message.rank, static_cast<unsigned long long>(f.header.bytes), f.message.bytes);
    }

    void throw_if_stopped(int rank) const {
        Header header{};
        while (recv(sockets_[size_t(rank)], &header, sizeof header, MSG_DONTWAIT) == ssize_t(sizeof header))
            if (header.kind == kStop) throw RankStopped(strprintf("rank %d stopped the run", rank));
    }

    [[noreturn]] static void gone(int rank) { fail("rank %d is gone: its connection closed", rank); }

    int rank_;
    std::vector<int> sockets_;
};

// ---------------------------------------------------------------------------------------------------------------------
// TCP

struct Hello {
    char magic[8] = {'T', 'N', 'r', 'a', 'n', 'k', 's', '1'};
    int32_t rank = 0, size = 0;
};

using Clock = std::chrono::steady_clock;

// Reads a Hello within a second or so; a stranger's bytes are none.
bool read_hello(int s, Hello& hello) {
    const struct timeval limit{1, 0};
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return recv(s, &hello, sizeof hello, MSG_WAITALL) == ssize_t(sizeof hello) &&
           std::memcmp(hello.magic, Hello().magic, sizeof hello.magic) == 0;
}

void prepare_socket(int s) {
    const int on = 1;
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(s, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
}

int listen_at(int port) {
    const int s = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1, off = 0;
    struct sockaddr_in6 any{};
    any.sin6_family = AF_INET6, any.sin6_port = htons(uint16_t(port)), any.sin6_addr = in6addr_any;
    struct sockaddr_in any4{};
    any4.sin_family = AF_INET, any4.sin_port = htons(uint16_t(port));
    auto bound = [&](int fd, auto& address) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        return fd >= 0 && bind(fd, reinterpret_cast<struct sockaddr*>(&address), sizeof address) == 0 &&
               listen(fd, 1024) == 0;
    };
    if (s >= 0) setsockopt(s, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bound(s, any)) return s;
    if (s >= 0) close(s);
    const int s4 = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);  // a machine without IPv6
    if (bound(s4, any4)) return s4;
    fail("MASTER_PORT: cannot listen at port %d: %s; choose another one", port, std::strerror(errno));
}

// Closes them all, unless they are taken: ranks that came must not wait for a run that failed.
struct Sockets {
    std::vector<int> list;
    ~Sockets() {
        for (int s : list)
            if (s >= 0) close(s);
    }
    std::vector<int> take() { return std::exchange(list, {}); }
};

std::vector<int> accept_all(int size, int port, double seconds) {
    const Sockets listening{{listen_at(port)}};
    const int listener = listening.list[0];
    Sockets accepted{std::vector<int>(size_t(size), -1)};
    std::vector<int>& sockets = accepted.list;
    const auto end = Clock::now() + std::chrono::duration<double>(seconds);
    for (int missing = size - 1; missing > 0;) {
        struct pollfd wait{listener, POLLIN, 0};
        if (poll(&wait, 1, 100) == 1) {
            const int s = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
            Hello hello;
            if (s < 0) continue;
            if (!read_hello(s, hello)) {
                close(s);
                continue;
            }
            if (hello.size != size || hello.rank < 1 || hello.rank >= size || sockets[size_t(hello.rank)] >= 0)
                fail(
                    "rank %d of %d came to a run of %d ranks%s; check that every rank is started once, by one launcher",
                    hello.rank, hello.size, size, hello.size == size ? " for the second time" : "");
            sockets[size_t(hello.rank)] = s, missing--;
        } else if (Clock::now() > end) {
            std::string absent;
            for (int r = 1; r < size; r++)
                if (sockets[size_t(r)] < 0) absent += (absent.empty() ? "" : ", ") + std::to_string(r);
            fail(
                "rank %s of %d did not connect to port %d of this machine within %g s; check that they run and that the "
                "port is open",
                absent.c_str(), size, port, seconds);
        }
    }
    return accepted.take();
}

int connect_to(const std::string& address, int port, double seconds) {
    const auto end = Clock::now() + std::chrono::duration<double>(seconds);
    std::string problem;
    do {
        struct addrinfo hints{}, *list = nullptr;
        hints.ai_socktype = SOCK_STREAM;
        const int unknown = getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &list);
        if (unknown) problem = gai_strerror(unknown);
        for (const struct addrinfo* a = list; a; a = a->ai_next) {
            const int s = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
            if (s >= 0 && connect(s, a->ai_addr, a->ai_addrlen) == 0) {
                freeaddrinfo(list);
                return s;
            }
            problem = std::strerror(errno);
            if (s >= 0) close(s);
        }
        if (list) freeaddrinfo(list);
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
    } while (Clock::now() < end);
    fail("cannot reach rank 0 at %s, port %d, within %g s: %s; check MASTER_ADDR and MASTER_PORT", address.c_str(),
         port, seconds, problem.c_str());
}

}  // namespace

std::unique_ptr<Link> link_sockets(int rank, const std::vector<int>& sockets) {
    return std::make_unique<SocketLink>(rank, sockets);
}

std::unique_ptr<Link> join_tcp(int rank, int size, const std::string& address, int port, double seconds) {
    std::vector<int> sockets(size_t(size), -1);
    if (rank == 0) {
        sockets = accept_all(size, port, seconds);
    } else {
        sockets[0] = connect_to(address, port, seconds);
        Hello hello;
        hello.rank = rank, hello.size = size;
        if (send(sockets[0], &hello, sizeof hello, MSG_NOSIGNAL) != ssize_t(sizeof hello))
            fail("rank 0 at %s closed the connection", address.c_str());
    }
    for (int s : sockets)
        if (s >= 0) prepare_socket(s);
    return link_sockets(rank, sockets);
}

}  // namespace tapernorm::train
