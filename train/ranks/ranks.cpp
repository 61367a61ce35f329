#include "train/ranks/ranks.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <utility>

#include "runtime/exit_status.h"
#include "train/stop.h"

namespace tapernorm::train {

// ---------------------------------------------------------------------------------------------------------------------
// Who started this process

namespace {

bool has(const char* name) { return std::getenv(name) && *std::getenv(name); }

// A whole number from 0 to 65535 in an environment variable.
int number(const char* name, int otherwise = -1) {
    if (!has(name)) {
        if (otherwise >= 0) return otherwise;
        fail("environment variable %s: expected a number, found none; start all ranks with one launcher", name);
    }
    char* end = nullptr;
    const char* text = std::getenv(name);
    const long value = std::strtol(text, &end, 10);
    if (*end || value < 0 || value > 65535)
        fail("environment variable %s: expected a number from 0 to 65535, found %s", name, in_quotes(text).c_str());
    return int(value);
}

void check(const Place& p) {
    if (p.size < 1 || p.rank >= p.size || p.local_size < 1 || p.local_rank >= p.local_size)
        fail(
            "%s: rank %d of %d, %d of %d on this machine: ranks count from 0; check the launcher's environment variables",
            p.launcher.c_str(), p.rank, p.size, p.local_rank, p.local_size);
    if (p.size > 1 && !p.mpi && (p.port < 1 || p.port > 65535))
        fail(
            "MASTER_PORT: expected a port from 1 to 65535 (below that if torchrun itself takes it), found port %d for the ranks",
            p.port);
}

Place torchrun_place() {
    // clang-format off
    Place p{.rank = number("RANK"), .size = number("WORLD_SIZE"), .local_rank = number("LOCAL_RANK", 0),
            .local_size = number("LOCAL_WORLD_SIZE", number("LOCAL_RANK", 0) + 1), .launcher = "torchrun"};
    p.address = has("MASTER_ADDR") ? std::getenv("MASTER_ADDR") : "127.0.0.1";
    // torchrun itself holds MASTER_PORT: its ranks meet at the next one.
    p.port = number("MASTER_PORT", p.size == 1 ? 0 : -1) + (has("TORCHELASTIC_RUN_ID") ? 1 : 0);
    return p;
}

Place slurm_place() {
    Place p{.rank = number("SLURM_PROCID"), .size = number("SLURM_STEP_NUM_TASKS"), .local_rank = number("SLURM_LOCALID"),
            .local_size = 1, .launcher = "SLURM"};
    // clang-format on
    // "2(x3),1": tasks of each node; a rank's own node is not said, and the largest is a safe guess.
    if (const char* tasks = std::getenv("SLURM_STEP_TASKS_PER_NODE"))
        for (const char* at = tasks; *at; at = std::strchr(at, ',') ? std::strchr(at, ',') + 1 : "")
            p.local_size = std::max(p.local_size, std::atoi(at));
    p.local_size = std::max(p.local_size, p.local_rank + 1);
    p.mpi = has("PMIX_RANK");  // srun --mpi=pmix
    const std::string hosts = has("SLURM_STEP_NODELIST") ? std::getenv("SLURM_STEP_NODELIST") : "";
    const bool one_machine = !hosts.empty() && hosts.find_first_of("[,") == std::string::npos;
    p.address = has("MASTER_ADDR") ? std::getenv("MASTER_ADDR") : one_machine ? "127.0.0.1" : first_host(hosts);
    const long step =
        std::atol(has("SLURM_JOB_ID") ? std::getenv("SLURM_JOB_ID") : "0") * 31 + number("SLURM_STEP_ID", 0);
    p.port = number("MASTER_PORT", int(20000 + step % 20000));
    return p;
}

}  // namespace

std::string first_host(const std::string& list) {
    const size_t open = list.find_first_of("[,");
    if (open == std::string::npos || list[open] == ',') return list.substr(0, open);
    const size_t end = list.find_first_of(",-]", open);
    return list.substr(0, open) + list.substr(open + 1, end == std::string::npos ? end : end - open - 1);
}

std::string secret_from_environment() {
    const bool named = has("TAPERNORM_SECRET_FILE");
    std::string secret = has("TAPERNORM_SECRET") ? std::getenv("TAPERNORM_SECRET") : "";
    if (!named && secret.empty()) return "";
    if (named && !secret.empty()) fail("%s: expected one of them, found both", kSecretVariables);
    const std::string name = named ? in_quotes(std::getenv("TAPERNORM_SECRET_FILE")) : "";
    if (named) {
        struct stat status{};
        const char* path = std::getenv("TAPERNORM_SECRET_FILE");
        if (stat(path, &status) == 0 && !S_ISREG(status.st_mode))  // a FIFO would be waited for
            fail("TAPERNORM_SECRET_FILE: %s: expected a regular file, found something else", name.c_str());
        std::ifstream file(path);
        if (!file) fail("TAPERNORM_SECRET_FILE: cannot read %s: %s", name.c_str(), std::strerror(errno));
        std::getline(file, secret);
        secret.erase(secret.find_last_not_of(" \t\r\n\v\f") + 1);  // editors differ in how they end a line
        if (status.st_mode & 077)
            fail("TAPERNORM_SECRET_FILE: other users may read %s; expected a file for you alone: chmod 600 it",
                 name.c_str());
    }
    const std::string variable = named ? "TAPERNORM_SECRET_FILE: " + name : "TAPERNORM_SECRET";
    if (secret.empty() || secret.size() > 400)
        fail("%s: expected a line of 1 to 400 letters, found %zu", variable.c_str(), secret.size());
    if (secret.find('\0') != std::string::npos)
        fail("%s: expected a line of text, found a byte of 0 in it", variable.c_str());
    return secret;
}

Place place_from_environment() {
    Place p;
    if (has("OMPI_COMM_WORLD_SIZE")) {
        // clang-format off
        p = {.rank = number("OMPI_COMM_WORLD_RANK"), .size = number("OMPI_COMM_WORLD_SIZE"),
             .local_rank = number("OMPI_COMM_WORLD_LOCAL_RANK", 0), .local_size = number("OMPI_COMM_WORLD_LOCAL_SIZE", 1),
             .launcher = "mpirun", .mpi = true};
        // clang-format on
    } else if (has("WORLD_SIZE") && has("RANK")) {
        p = torchrun_place();
    } else if (has("SLURM_STEP_NUM_TASKS") && has("SLURM_PROCID") && has("SLURM_LOCALID")) {
        p = slurm_place();  // not in a batch script itself, which has no step
    } else if ((has("MASTER_ADDR") || has("MASTER_PORT")) && !has("SLURM_JOB_ID") &&
               (has("RANK") || number("WORLD_SIZE", 1) > 1)) {
        // A batch script of SLURM has them for the steps that it starts.
        const char *given = has("RANK") ? "RANK" : "WORLD_SIZE", *missing = has("RANK") ? "WORLD_SIZE" : "RANK";
        fail(
            "%s is set beside MASTER_ADDR or MASTER_PORT, as for one of several ranks, and %s is not; start all ranks with one "
            "launcher, or unset %s to run alone",
            given, missing, given);
    } else if (has("PMI_SIZE") && number("PMI_SIZE") > 1) {
        fail(
            "started by the mpirun of MPICH or a relative of it (PMI_SIZE is set), and this program knows Open MPI's; use "
            "that one, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT");
    }
    if (!p.launcher.empty()) check(p);
    return p.size > 1 ? p : Place();
}

// ---------------------------------------------------------------------------------------------------------------------
// Joining

void Ranks::join() {
    const Place p = place_from_environment();
    if (p.size == 1) return;
    rank = p.rank, size = p.size, local_rank = p.local_rank, local_size = p.local_size, launcher = p.launcher;
    star = !p.mpi;
    link_ = p.mpi ? join_mpi(rank, size) : join_tcp(rank, size, {p.address, p.port, 300, secret_from_environment()});
    if (rank > 0 && !std::freopen("/dev/null", "w", stdout)) fail("cannot open /dev/null");
}

namespace {

volatile sig_atomic_t signal_to_pass_on = 0;

// Waits for all; when one fails the others get some seconds to say why and stop.
[[noreturn]] void supervise(const std::vector<pid_t>& children) {
    on_stop_signals([](int s) { signal_to_pass_on = s; });
    std::vector<pid_t> left = children;
    int status = 0, patience = -1;  // turns until the rest is killed; -1: nobody failed
    while (!left.empty()) {
        if (const int s = std::exchange(signal_to_pass_on, 0))
            for (pid_t child : left) kill(child, s);
        int ended = 0;
        const pid_t child = waitpid(-1, &ended, WNOHANG);
        if (child > 0) {
            const long r = std::find(children.begin(), children.end(), child) - children.begin();
            left.erase(std::remove(left.begin(), left.end(), child), left.end());
            if (WIFSIGNALED(ended) && patience < 0)
                std::fprintf(stderr, "error: rank %ld of %zu was ended by signal %d (%s)\n", r, children.size(),
                             WTERMSIG(ended), strsignal(WTERMSIG(ended)));
            const int code = WIFSIGNALED(ended) ? 128 + WTERMSIG(ended) : WEXITSTATUS(ended);
            const bool interrupted = WIFEXITED(ended) && code > 128;  // in order, and so do the others
            if (code && !status) status = code, patience = interrupted ? -1 : 500;
            continue;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
        if (patience > 0 && --patience == 0)
            for (pid_t other : left) kill(other, SIGKILL);
    }
    std::_Exit(status);
}

}  // namespace

void Ranks::fork_local(size_t count) {
    if (size > 1) fail("--gpus: %s has started %d ranks already; leave --gpus out", launcher.c_str(), size);
    std::fflush(stdout), std::fflush(stderr);
    std::vector<int> hub(count, -1), spokes(count, -1);  // rank 0's ends, the others' ends
    for (size_t r = 1; r < count; r++) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
            fail("--gpus: no connection between processes: %s", std::strerror(errno));
        hub[r] = pair[0], spokes[r] = pair[1];
    }
    auto close_all = [](std::vector<int>& sockets, size_t keep) {
        for (size_t r = 0; r < sockets.size(); r++)
            if (r != keep && sockets[r] >= 0) close(std::exchange(sockets[r], -1));
    };
    std::vector<pid_t> children;
    for (size_t r = 0; r < count; r++) {
        const pid_t parent = getpid(), child = fork();
        if (child < 0) {
            const int error = errno;
            for (pid_t other : children) kill(other, SIGKILL);
            fail("--gpus: cannot start process %zu: %s", r, std::strerror(error));
        }
        if (child > 0) {
            children.push_back(child);
            continue;
        }
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        setpgid(0, 0);  // Ctrl-C reaches the parent alone, which passes it on once
        if (getppid() != parent) std::_Exit(1);
        rank = local_rank = int(r), size = local_size = int(count), launcher = "--gpus";
        star = true;
        close_all(spokes, r == 0 ? count : r);
        if (r > 0) close_all(hub, count);
        link_ = link_sockets(rank, r == 0 ? hub : std::vector<int>{spokes[r]});
        if (rank > 0 && !std::freopen("/dev/null", "w", stdout)) fail("cannot open /dev/null");
        return;
    }
    close_all(hub, count), close_all(spokes, count);
    supervise(children);
}

void Ranks::set_time_limit(double seconds) {
    if (link_) link_->time_limit = seconds;
}

std::string Ranks::describe() const { return strprintf("rank %d of %d", rank, size); }

// ---------------------------------------------------------------------------------------------------------------------
// What ranks tell one another: through rank 0

int Ranks::sum(std::vector<double>& values, const char* what) {
    const size_t n = values.size(), bytes = n * sizeof(double);
    double first_bad = std::isfinite(values[0]) ? -1 : 0;
    if (size == 1) return int(first_bad);
    if (!first()) {
        link_->exchange({{0, values.data(), bytes}}, {}, what);
        values.push_back(0);
        link_->exchange({}, {{0, values.data(), bytes + sizeof(double)}}, what);
        first_bad = values.back();
        values.pop_back();
        return int(first_bad);
    }
    std::vector<double> others(n * size_t(size - 1));
    std::vector<Message> messages;
    for (int r = 1; r < size; r++) messages.push_back({r, others.data() + size_t(r - 1) * n, bytes});
    link_->exchange({}, messages, what);
    for (int r = 1; r < size; r++) {
        const double* theirs = others.data() + size_t(r - 1) * n;
        if (first_bad < 0 && !std::isfinite(theirs[0])) first_bad = r;
        for (size_t i = 0; i < n; i++) values[i] += theirs[i];
    }
    values.push_back(first_bad);
    for (Message& m : messages) m.data = values.data(), m.bytes = bytes + sizeof(double);
    link_->exchange(messages, {}, what);
    values.pop_back();
    return int(first_bad);
}

void Ranks::broadcast(void* data, size_t bytes, const char* what) {
    std::vector<Message> messages;
    for (int r = 1; first() && r < size; r++) messages.push_back({r, data, bytes});
    if (size == 1) return;
    if (first())
        link_->exchange(messages, {}, what);
    else
        link_->exchange({}, {{0, data, bytes}}, what);
}

std::vector<std::string> Ranks::gather(std::string text, const char* what) {
    uint64_t length = text.size();
    std::vector<uint64_t> lengths(size_t(size), length);
    std::vector<std::string> texts(first() ? size_t(size) : 0, text);
    std::vector<Message> counts, bodies;
    if (!first()) {
        link_->exchange({{0, &length, sizeof length}}, {}, what);
        link_->exchange({{0, text.data(), text.size()}}, {}, what);
        return texts;
    }
    for (int r = 1; r < size; r++) counts.push_back({r, &lengths[size_t(r)], sizeof length});
    link_->exchange({}, counts, what);
    for (int r = 1; r < size; r++) {
        texts[size_t(r)].resize(lengths[size_t(r)]);
        bodies.push_back({r, texts[size_t(r)].data(), texts[size_t(r)].size()});
    }
    link_->exchange({}, bodies, what);
    return texts;
}

namespace {

std::string packed(const std::vector<Fact>& facts) {
    std::string text;
    for (const Fact& f : facts) text += f.name + '\0' + f.value + '\0';
    return text;
}

// "" where `theirs`, packed, is the same as `ours`.
std::string first_difference(const std::vector<Fact>& ours, const std::string& theirs, int rank) {
    size_t at = 0;
    auto next = [&] {
        const size_t end = std::min(theirs.find('\0', at), theirs.size());
        const std::string part = theirs.substr(std::min(at, end), end - std::min(at, end));
        return at = end + 1, part;
    };
    for (const Fact& fact : ours) {
        const std::string name = next(), value = next();
        if (name != fact.name) return strprintf("rank %d runs another version of this program than rank 0", rank);
        if (value != fact.value)
            return strprintf("%s: expected the same on all ranks, found %s on rank 0 and %s on rank %d", name.c_str(),
                             in_quotes(fact.value).c_str(), in_quotes(value).c_str(), rank);
    }
    return "";
}

}  // namespace

void Ranks::agree(const std::vector<Fact>& facts, const char* hint) {
    if (size == 1) return;
    const char* what = "the start of the run";
    const std::vector<std::string> all = gather(packed(facts), what);
    std::string difference;
    for (size_t r = 1; r < all.size() && difference.empty(); r++) difference = first_difference(facts, all[r], int(r));
    uint64_t length = difference.size();
    broadcast(&length, sizeof length, what);
    difference.resize(length);
    broadcast(difference.data(), length, what);
    if (length) fail_together(difference + "; " + hint);
}

CoreSharing Ranks::shared_cores() {
    if (size == 1) return {};
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    std::vector<double> cores(size_t(size), 0);
    const double mine = cores[size_t(rank)] = double(std::hash<std::string>()(host + affinity_mask()) >> 12);
    sum(cores, "the cores of the ranks");
    return {local_size, int(std::count(cores.begin(), cores.end(), mine))};
}

// Whether what this process says as an error goes to a file, which may be its own (srun -o, torchrun --log-dir).
static bool has_log() {
    struct stat error_output{};
    return fstat(STDERR_FILENO, &error_output) == 0 && S_ISREG(error_output.st_mode);
}

int Ranks::fail_all(const char* program, const std::exception& error) {
    bool said = dynamic_cast<const RankStopped*>(&error) != nullptr;
    if (!first() && link_) said |= link_->stopped_by_first_rank(3);
    if (size == 1)
        print_error(program, error_text(error).c_str());
    else if (!said || first() || has_log())
        print_error(program, (describe() + ": " + error_text(error)).c_str());
    if (link_) link_->stop_all();
    return 1;
}

}  // namespace tapernorm::train
