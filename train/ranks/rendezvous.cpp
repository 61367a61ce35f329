// How ranks without MPI find one another: each connects to rank 0 over TCP, and both sides prove that they know the run's
// secret, which itself is never sent.
//
//     rank 0 -> rank r   Challenge: a nonce
//     rank r -> rank 0   Hello: who it is, a nonce of its own, its proof
//     rank 0 -> rank r   Answer: welcome and rank 0's proof, or why not
//
// A proof is crypt(3)'s SHA-512 of the secret, of who speaks and of both nonces. It keeps strangers from a rank's place, and
// ranks from a stranger's port; what is sent afterwards is neither signed nor hidden (SECURITY.md). Whoever else connects is
// dropped and counted: nothing that a stranger sends, or does not send, ends the run or holds up the ranks.
#include <crypt.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <list>
#include <map>
#include <utility>

#include "train/ranks/link.h"

namespace tapernorm::train {

namespace {

using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;

Time after(double seconds) {
    return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// ---------------------------------------------------------------------------------------------------------------------
// What is said

struct Magic {
    char text[8] = {'T', 'N', 'r', 'a', 'n', 'k', 's', '2'};
    bool right() const { return std::memcmp(text, Magic().text, sizeof text) == 0; }
};
struct Nonce {
    char text[16];
    std::string string() const { return {text, sizeof text}; }
};
struct Proof {
    char text[88];  // 86 of crypt's letters
};
struct Challenge {
    Magic magic;
    Nonce nonce;
};
struct Hello {
    Magic magic;
    int32_t rank = 0, size = 0;
    Nonce nonce;
    Proof proof;
};
enum Verdict : int32_t { kWelcome, kOtherSecret, kOtherSize, kPlaceTaken };
struct Answer {
    Magic magic;
    Verdict verdict;
    Proof proof;
};

constexpr char kLetters[] = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";  // of crypt's salts

Nonce new_nonce() {
    Nonce nonce;
    if (getrandom(nonce.text, sizeof nonce.text, 0) != ssize_t(sizeof nonce.text))
        fail("the system gives no random numbers: %s", std::strerror(errno));
    for (char& c : nonce.text) c = kLetters[c & 63];
    return nonce;
}

// Anything else in a salt is an order to crypt, such as "rounds=999999999".
bool is_nonce(const Nonce& nonce) {
    return std::ranges::all_of(nonce.text, [](char c) { return c && std::strchr(kLetters, c); });
}

// What the one that received `challenge` says to prove that it is `speaker` and knows the secret.
Proof prove(const std::string& secret, const std::string& speaker, const Nonce& own, const Nonce& challenge) {
    const std::string key = secret + "|" + speaker + "|" + own.string(), salt = "$6$rounds=1000$" + challenge.string();
    auto work = std::make_unique<struct crypt_data>();
    const char* text = crypt_r(key.c_str(), salt.c_str(), work.get());
    Proof proof{};
    if (!text || std::strlen(text) < salt.size() + 87)
        fail("crypt(3) of this system cannot make SHA-512: %s", std::strerror(errno));
    std::memcpy(proof.text, text + std::strlen(text) - 86, 86);
    return proof;
}

// In a time that does not tell where they differ.
bool same(const Proof& a, const Proof& b) {
    volatile char difference = 0;
    for (size_t i = 0; i < sizeof a.text; i++) difference = char(difference | (a.text[i] ^ b.text[i]));
    return difference == 0;
}

std::string speaker(int rank, int size) { return strprintf("rank %d of %d", rank, size); }
std::string host_of(int rank, int size) { return strprintf("rank 0 to rank %d of %d", rank, size); }

// ---------------------------------------------------------------------------------------------------------------------
// Sockets

struct Socket {
    int fd = -1;
    explicit Socket(int fd_) : fd(fd_) {}
    Socket(Socket&& other) noexcept : fd(std::exchange(other.fd, -1)) {}
    Socket& operator=(Socket&& other) noexcept { return std::swap(fd, other.fd), *this; }
    ~Socket() {
        if (fd >= 0) close(fd);
    }
};

template <class Part>
bool send_now(int s, const Part& message) {  // it fits the socket's buffer
    return send(s, &message, sizeof message, MSG_DONTWAIT | MSG_NOSIGNAL) == ssize_t(sizeof message);
}

bool wait_for(int s, short events, Time until) {
    for (;;) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
        struct pollfd wait{s, events, 0};
        if (poll(&wait, 1, int(std::clamp<long>(left, 0, 1000))) == 1) return true;
        if (left <= 0) return false;
    }
}

// The addresses that a name stands for, each once.
struct Addresses {
    std::vector<std::pair<struct sockaddr_storage, socklen_t>> list;
    std::string problem;

    Addresses(const std::string& name, int port) {
        struct addrinfo hints{}, *found = nullptr;
        hints.ai_socktype = SOCK_STREAM;
        const int error = getaddrinfo(name.c_str(), std::to_string(port).c_str(), &hints, &found);
        if (error) problem = gai_strerror(error);
        for (const struct addrinfo* a = found; a; a = a->ai_next) {
            struct sockaddr_storage address{};
            std::memcpy(&address, a->ai_addr, a->ai_addrlen);
            const auto equal = [&](const auto& b) { return std::memcmp(&b.first, &address, sizeof address) == 0; };
            if (std::ranges::none_of(list, equal)) list.push_back({address, a->ai_addrlen});
        }
        if (found) freeaddrinfo(found);
    }

    // Whether nobody but this machine reaches them.
    bool loopback() const {
        return std::ranges::all_of(list, [](const auto& a) {
            const auto* v6 = reinterpret_cast<const struct sockaddr_in6*>(&a.first);
            const auto* v4 = reinterpret_cast<const struct sockaddr_in*>(&a.first);
            return a.first.ss_family == AF_INET6 ? IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr)
                                                 : ntohl(v4->sin_addr.s_addr) >> 24 == 127;
        });
    }
};

const struct sockaddr* of(const struct sockaddr_storage& address) {
    return reinterpret_cast<const struct sockaddr*>(&address);
}

Socket new_socket(const struct sockaddr_storage& address) {
    return Socket(socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

// Listens at all of these addresses; those that this machine does not have may be left out, but not all.
std::vector<Socket> listen_at(const std::string& name, int port, const Addresses& addresses) {
    if (addresses.list.empty())
        fail("MASTER_ADDR: rank 0 cannot find %s: %s; give an address of its machine", in_quotes(name).c_str(),
             addresses.problem.c_str());
    const int on = 1;
    int error = 0;
    std::vector<Socket> listening;
    for (const auto& [address, length] : addresses.list) {
        Socket s = new_socket(address);
        setsockopt(s.fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (address.ss_family == AF_INET6) setsockopt(s.fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
        if (s.fd >= 0 && bind(s.fd, of(address), length) == 0 && listen(s.fd, 1024) == 0) {
            listening.push_back(std::move(s));
            continue;
        }
        error = errno;
        if (error == EADDRINUSE || error == EACCES)
            fail("MASTER_PORT: cannot listen at %s, port %d: %s; choose another port", name.c_str(), port,
                 std::strerror(error));
    }
    if (listening.empty())
        fail(
            "MASTER_ADDR: rank 0 cannot listen at %s, port %d: %s; give an address of the machine that rank 0 runs on (or "
            "to rank 0 alone 0.0.0.0, which is all of them)",
            name.c_str(), port, std::strerror(error));
    return listening;
}

// Says once what a rank waits for, before its user takes it for one that hangs.
class SlowStart {
  public:
    explicit SlowStart(const Meeting& meeting) : meeting_(meeting), when_(after(std::min(5.0, meeting.seconds / 10))) {}
    void say(const std::string& missing, const std::string& problem = "") {
        if (said_ || Clock::now() < when_) return;
        said_ = true;
        std::fprintf(stderr, "waiting up to %g s for %s at %s, port %d%s%s\n", meeting_.seconds, missing.c_str(),
                     meeting_.address.c_str(), meeting_.port, problem.empty() ? "" : ": ", problem.c_str());
    }

  private:
    const Meeting& meeting_;
    Time when_;
    bool said_ = false;
};

// ---------------------------------------------------------------------------------------------------------------------
// Rank 0

class Reception {
  public:
    Reception(int size, const Meeting& meeting)
        : size_(size), meeting_(meeting), addresses_(meeting.address, meeting.port),
          listening_(listen_at(meeting.address, meeting.port, addresses_)) {
        if (meeting.secret.empty() && !addresses_.loopback())
            std::fprintf(
                stderr,
                "warning: the ranks meet at %s, port %d, without a secret: whoever reaches that port can join this "
                "run; give all ranks the same %s\n",
                meeting.address.c_str(), meeting.port, kSecretVariables);
        for (int r = 1; r < size; r++) ranks_.push_back(Socket(-1));
    }

    // ranks()[r - 1]: rank r's connection.
    std::vector<Socket> ranks() {
        const Time end = after(meeting_.seconds);
        SlowStart slow(meeting_);
        for (missing_ = size_ - 1; missing_ > 0;) {
            if (Clock::now() > end) too_late();
            slow.say(strprintf("%s of %d", absent().c_str(), size_));
            turn();
        }
        if (!dropped_.empty())
            std::fprintf(stderr, "warning: port %d: turned away %s\n", meeting_.port, dropped_text().c_str());
        return std::move(ranks_);
    }

  private:
    // A connection that may become a rank.
    struct Guest {
        Socket socket;
        Time deadline;
        Challenge challenge;
        Hello hello = {};
        size_t received = 0;
    };
    static constexpr size_t kMostGuests = 64;  // at a time; the oldest goes first, and comes again if it is a rank
    // Seconds for a Hello.
    double patience() const { return std::min(10.0, meeting_.seconds / 4); }

    // Waits for a moment, lets new ones in, hears the others.
    void turn() {
        std::vector<struct pollfd> wait;
        for (const Socket& s : listening_) wait.push_back({s.fd, POLLIN, 0});
        for (const Guest& g : guests_) wait.push_back({g.socket.fd, POLLIN, 0});
        poll(wait.data(), wait.size(), 100);
        auto ready = wait.begin() + ptrdiff_t(listening_.size());
        for (auto g = guests_.begin(); g != guests_.end();) {
            const bool silent = !(ready++)->revents, finished = silent ? late(*g) : heard(*g);
            g = finished ? guests_.erase(g) : std::next(g);
        }
        for (size_t i = 0; i < listening_.size(); i++)
            if (wait[i].revents) let_in(listening_[i]);
    }

    void let_in(const Socket& door) {
        Guest guest{Socket(accept4(door.fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)), after(patience()), {}};
        if (guest.socket.fd < 0 && errno != EMFILE && errno != ENFILE) return;  // it has gone already
        if (guests_.size() == kMostGuests || guest.socket.fd < 0) {
            if (!guests_.empty()) guests_.pop_front();
            drop("that said nothing");
        }
        if (guest.socket.fd < 0) return;
        guest.challenge.nonce = new_nonce();
        if (send_now(guest.socket.fd, guest.challenge)) guests_.push_back(std::move(guest));
    }

    bool late(const Guest& g) { return Clock::now() > g.deadline && drop("that said nothing"); }

    // Reads what there is. Whether this guest is a rank now, or dropped.
    bool heard(Guest& g) {
        char* at = reinterpret_cast<char*>(&g.hello) + g.received;
        const ssize_t n = recv(g.socket.fd, at, sizeof g.hello - g.received, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
        if (n <= 0) return drop("that went away");
        g.received += size_t(n);
        if (g.received >= sizeof(Magic) && !g.hello.magic.right())
            return drop("that were no ranks of this program's version");
        if (g.received < sizeof g.hello) return false;
        return judge(g);
    }

    bool judge(Guest& g) {
        const Hello& h = g.hello;
        Answer answer{{}, kWelcome, {}};
        const char* reason = nullptr;
        if (!is_nonce(h.nonce)) return drop("that were no ranks of this program's version");
        if (!same(h.proof, prove(meeting_.secret, speaker(h.rank, h.size), h.nonce, g.challenge.nonce)))
            answer.verdict = kOtherSecret, reason = "with another secret";
        else if (h.size != size_ || h.rank < 1 || h.rank >= size_)
            answer.verdict = kOtherSize, reason = "of a run with another number of ranks";
        else if (ranks_[size_t(h.rank) - 1].fd >= 0)
            answer.verdict = kPlaceTaken, reason = "of a rank that was there already";
        else
            answer.proof = prove(meeting_.secret, host_of(h.rank, h.size), g.challenge.nonce, h.nonce);
        const bool told = send_now(g.socket.fd, answer);
        if (reason && !dropped_.contains(reason))  // once: strangers may come often
            std::fprintf(stderr, "warning: port %d: turned away a connection %s; still waiting for %s of %d\n",
                         meeting_.port, reason, absent().c_str(), size_);
        if (reason) return drop(reason);
        if (!told) return drop("that went away");
        ranks_[size_t(h.rank) - 1] = std::move(g.socket), missing_--;
        return true;
    }

    bool drop(const std::string& why) { return dropped_[why]++, true; }

    std::string dropped_text() const {
        std::string text;
        for (const auto& [why, times] : dropped_)
            text += (text.empty() ? "" : ", ") + counted(times, "connection") + " " + why;
        return text;
    }

    // "ranks 1, 3"
    std::string absent() const {
        std::string list;
        for (int r = 1; r < size_; r++)
            if (ranks_[size_t(r) - 1].fd < 0) list += (list.empty() ? "" : ", ") + std::to_string(r);
        return (missing_ > 1 ? "ranks " : "rank ") + list;
    }

    [[noreturn]] void too_late() const {
        fail("%s of %d did not connect to %s, port %d, within %g s%s%s; check that they run and that %s",
             absent().c_str(), size_, meeting_.address.c_str(), meeting_.port, meeting_.seconds,
             dropped_.empty() ? "" : "; turned away: ", dropped_text().c_str(),
             addresses_.loopback() ? "they are on this machine, which alone reaches that address" : "the port is open");
    }

    int size_, missing_ = 0;
    const Meeting& meeting_;
    Addresses addresses_;
    std::vector<Socket> listening_, ranks_;
    std::list<Guest> guests_;                // the oldest first
    std::map<std::string, size_t> dropped_;  // why: how many
};

// ---------------------------------------------------------------------------------------------------------------------
// The others

class Visit {
  public:
    Visit(int rank, int size, const Meeting& meeting)
        : rank_(rank), size_(size), meeting_(meeting), end_(after(meeting.seconds)) {}

    // Tries again until rank 0 is there and has time.
    Socket to_rank_0() {
        SlowStart slow(meeting_);
        do {
            const Addresses addresses(meeting_.address, meeting_.port);
            if (!addresses.problem.empty()) problem_ = addresses.problem;
            for (const auto& [address, length] : addresses.list) {
                Socket s = new_socket(address);
                if (connects(s, address, length) && welcome(s)) return s;
            }
            slow.say("rank 0", problem_);
            std::this_thread::sleep_for(std::chrono::milliseconds(100));
        } while (Clock::now() < end_);
        fail("cannot reach rank 0 at %s, port %d, within %g s: %s; check MASTER_ADDR and MASTER_PORT",
             meeting_.address.c_str(), meeting_.port, meeting_.seconds, problem_.c_str());
    }

  private:
    Time soon() const { return std::min(end_, after(10)); }

    bool connects(const Socket& s, const struct sockaddr_storage& address, socklen_t length) {
        int error = s.fd >= 0 && connect(s.fd, of(address), length) == 0 ? 0 : errno;
        if (error == EINPROGRESS) {
            socklen_t bytes = sizeof error;
            if (!wait_for(s.fd, POLLOUT, soon()))
                error = ETIMEDOUT;
            else if (getsockopt(s.fd, SOL_SOCKET, SO_ERROR, &error, &bytes) != 0)
                error = errno;
        }
        if (error) problem_ = std::strerror(error);
        return error == 0;
    }

    // Reads a message; false: rank 0 had no time, or it is another program.
    template <class Part>
    bool hear(const Socket& s, Part& message) {
        char* bytes = reinterpret_cast<char*>(&message);
        const Time until = soon();
        for (size_t received = 0; received < sizeof message;) {
            if (!wait_for(s.fd, POLLIN, until)) return problem_ = "it says nothing", false;
            const ssize_t n = recv(s.fd, bytes + received, sizeof message - received, 0);
            if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
            if (n <= 0) return problem_ = "it closed the connection", false;
            received += size_t(n);
            if (received >= sizeof(Magic) && !message.magic.right())
                refused("is another program, or another version of this one; choose another MASTER_PORT");
        }
        return true;
    }

    bool welcome(const Socket& s) {
        Challenge challenge;
        if (!hear(s, challenge)) return false;
        if (!is_nonce(challenge.nonce)) refused("is another program; choose another MASTER_PORT");
        Hello hello{{}, rank_, size_, new_nonce(), {}};
        hello.proof = prove(meeting_.secret, speaker(rank_, size_), hello.nonce, challenge.nonce);
        Answer answer;
        if (!send_now(s.fd, hello)) return problem_ = "it closed the connection", false;
        if (!hear(s, answer)) return false;
        const std::string another =
            strprintf("has another secret than rank %d; give all ranks the same %s", rank_, kSecretVariables);
        if (answer.verdict == kOtherSize)
            refused(
                strprintf("belongs to a run that has no rank %d of %d; start all ranks by one launcher, or choose "
                          "another MASTER_PORT",
                          rank_, size_));
        if (answer.verdict == kPlaceTaken)
            refused(strprintf("has a rank %d already; start every rank once, by one launcher", rank_));
        const Proof expected = prove(meeting_.secret, host_of(rank_, size_), challenge.nonce, hello.nonce);
        if (answer.verdict != kWelcome || !same(answer.proof, expected)) refused(another);
        return true;
    }

    [[noreturn]] void refused(const std::string& why) const {
        fail("what listens at %s, port %d, %s", meeting_.address.c_str(), meeting_.port, why.c_str());
    }

    int rank_, size_;
    const Meeting& meeting_;
    Time end_;
    std::string problem_;
};

void prepare(int s) {
    const int on = 1;
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(s, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
}

}  // namespace

std::unique_ptr<Link> join_tcp(int rank, int size, const Meeting& meeting) {
    std::vector<Socket> connected;
    if (rank == 0)
        connected = Reception(size, meeting).ranks();
    else
        connected.push_back(Visit(rank, size, meeting).to_rank_0());
    std::vector<int> sockets(rank == 0 ? 1 : 0, -1);
    for (Socket& s : connected) prepare(s.fd), sockets.push_back(std::exchange(s.fd, -1));
    sockets.resize(size_t(size), -1);
    return link_sockets(rank, sockets);
}

}  // namespace tapernorm::train
