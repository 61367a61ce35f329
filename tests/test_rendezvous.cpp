// How ranks meet over TCP, among strangers; and that they train together only if all of them would compute the same.
#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <netinet/in.h>
#include <sys/stat.h>

#include <atomic>
#include <optional>
#include <set>
#include <thread>

#include "io/options.h"
#include "tests/environment.h"
#include "tests/errors.h"
#include "tests/run_program.h"
#include "tests/thread_ranks.h"
#include "train/agreement.h"

namespace tapernorm::train {

namespace {

// A socket of a test, closed with it.
struct Peer {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    Peer() = default;
    explicit Peer(int fd_) : fd(fd_) {}
    Peer(Peer&& other) noexcept : fd(std::exchange(other.fd, -1)) {}
    ~Peer() {
        if (fd >= 0) close(fd);
    }
    static struct sockaddr_in address(int port) {
        struct sockaddr_in at{};
        at.sin_family = AF_INET, at.sin_port = htons(uint16_t(port)), at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        return at;
    }
    bool connects(int port) const {
        const auto at = address(port);
        return connect(fd, reinterpret_cast<const struct sockaddr*>(&at), sizeof at) == 0;
    }
    // Listens at a free port, which is returned.
    int listens() const {
        auto at = address(0);
        socklen_t length = sizeof at;
        const bool well = bind(fd, reinterpret_cast<struct sockaddr*>(&at), length) == 0 && listen(fd, 8) == 0 &&
                          getsockname(fd, reinterpret_cast<struct sockaddr*>(&at), &length) == 0;
        return well ? ntohs(at.sin_port) : throw std::runtime_error("no port");
    }
    void says(const std::string& bytes) const { (void)!send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL); }
    // Until there are so many bytes, or no more.
    std::string hears(size_t count = 1 << 20) const {
        std::string all;
        char bytes[4096];
        for (ssize_t n; all.size() < count; all.append(bytes, size_t(n)))
            if ((n = recv(fd, bytes, std::min(sizeof bytes, count - all.size()), 0)) <= 0) break;
        return all;
    }
};

int free_port() { return Peer().listens(); }

// The first part of a conversation with a rank 0 that may not listen yet.
Peer stranger(int port) {
    for (;;) {
        Peer peer;
        if (peer.connects(port)) return peer;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
}

// Standard error goes to a file.
struct StandardError {
    int before = dup(2);
    explicit StandardError(const std::string& path) { (void)!std::freopen(path.c_str(), "w", stderr); }
    ~StandardError() { std::fflush(stderr), dup2(before, 2), close(before); }
};

std::vector<std::string> meet(int port, int size, int present, double seconds) {
    std::vector<std::string> errors(static_cast<size_t>(present));
    std::vector<std::thread> threads;
    for (int r = 0; r < present; r++)
        threads.emplace_back([&, r] {
            try {
                Ranks ranks(r, size, join_tcp(r, size, {"127.0.0.1", port, seconds, "secret"}));
                std::vector<double> values = {double(r)};
                ranks.sum(values, "the test");
                if (values[0] != size * (size - 1) / 2) throw std::runtime_error("wrong sum");
            } catch (const std::exception& error) {
                errors[size_t(r)] = error.what();
            }
        });
    for (std::thread& thread : threads) thread.join();
    return errors;
}

// One of two ranks of a small run, started as torchrun does it.
using Variables = std::map<std::string, std::string>;
struct Rank {
    Variables variables;
    std::optional<Program> program;
    Rank(const Workplace& w, int rank, int port, const std::string& flags, const Variables& more = {},
         const std::string& command = "")
        : variables(more) {
        variables.insert({{"RANK", std::to_string(rank)},
                          {"WORLD_SIZE", "2"},
                          {"LOCAL_RANK", std::to_string(rank)},
                          {"MASTER_PORT", std::to_string(port)}});
        const Environment environment(variables);
        program.emplace(w.path, command.empty()
                                    ? Workplace::command(kTiny + " -o r" + std::to_string(rank) + ".bin " + flags)
                                    : words(command));
    }
    Outcome finish() { return program->finish(); }
};

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// What a second rank with `flags` of its own makes of a run.
std::string said_of(const Workplace& w, const std::string& both, const std::string& second,
                    const Variables& more = {}) {
    const int port = free_port();
    Rank rank0(w, 0, port, both), rank1(w, 1, port, both + " " + second, more);
    const Outcome zero = rank0.finish(), one = rank1.finish();  // rank 0 prints
    CHECK(zero.status != 0);
    CHECK(one.status != 0);
    CHECK(!std::filesystem::exists(w.at("r0.bin")));
    CHECK(std::ranges::count(zero.err, '\n') == 1);  // the reason, or who has it
    CHECK(std::ranges::count(one.err, '\n') == (has(zero.err, "rank 1 ended the run") ? 1 : 0));
    return one.err.empty() ? zero.err : one.err;
}

}  // namespace

// ---- meeting

TEST_CASE("rendezvous: ranks meet, or say who is missing") {
    for (const std::string& error : meet(free_port(), 3, 3, 20)) CHECK(error == "");
    const int port = free_port();
    const auto errors = meet(port, 4, 2, 0.3);
    const std::string missing = " 3 of 4 did not connect to 127.0.0.1, port " + std::to_string(port);
    CHECK_MESSAGE(has(errors[0], missing), errors[0]);
    CHECK(errors[1] != "");
    CHECK_THROWS_WITH_AS(join_tcp(1, 2, {"127.0.0.1", free_port(), 0.2, ""}),
                         doctest::Contains("cannot reach rank 0 at 127.0.0.1"), Error);
}

TEST_CASE("rendezvous: strangers are dropped and counted, and a run starts among them") {
    const Workplace w;
    const int port = free_port();
    Rank rank0(w, 0, port, "");
    const Peer old = stranger(port), web = stranger(port), spy = stranger(port), copy = stranger(port);
    old.says(std::string("TNranks1\1\0\0\0\2\0\0\0", 16));  // rank 1 of 2, as a stranger would say it
    CHECK(old.hears().size() == 24);                        // the challenge, and no more
    web.says("GET / HTTP/1.1\r\n\r\n");
    CHECK(web.hears().size() == 24);
    spy.says(spy.hears(24).substr(0, 8) + std::string(112, 'x'));  // of this version, with no proof
    spy.hears();
    copy.says(copy.hears(24).substr(0, 8) + std::string("\1\0\0\0\2\0\0\0rounds=999999999", 8 + 16).append(88, 'x'));
    CHECK(copy.hears() == "");
    std::vector<Peer> silent;
    for (int i = 0; i < 200; i++) silent.push_back(stranger(port));
    const Outcome one = Rank(w, 1, port, "").finish(), zero = rank0.finish();
    CHECK(one.status == 0);
    CHECK(one.err == "");
    CHECK(zero.status == 0);
    CHECK(has(zero.out, "6/6"));
    for (const std::string part : {"turned away ", " that said nothing",
                                   " that were no ranks of this program's version", "1 connection with another secret"})
        CHECK_MESSAGE(has(zero.err, part), zero.err);
    CHECK(std::filesystem::exists(w.at("r0.bin")));
}

TEST_CASE("rendezvous: the time limit comes while strangers knock, and they are in the error") {
    const int port = free_port();
    std::atomic<bool> over = false;
    std::thread knocking([&] {
        const Peer silent = stranger(port);
        while (!over)
            if (const Peer peer; peer.connects(port)) peer.says("TNranks1");
    });
    const TemporaryFolder folder;
    std::string error;
    {
        const StandardError standard_error(folder / "stderr");
        error = error_of([&] { join_tcp(0, 2, {"127.0.0.1", port, 0.8, ""}); });
        std::fflush(stderr);
    }
    over = true;
    knocking.join();
    CHECK(has(read_file(folder / "stderr"),
              strprintf("waiting up to 0.8 s for rank 1 of 2 at 127.0.0.1, port %d\n", port)));
    CHECK_MESSAGE(has(error, "rank 1 of 2 did not connect to 127.0.0.1"), error);
    CHECK_MESSAGE(has(error, "1 connection that said nothing"), error);
}

TEST_CASE("rendezvous: a rank without the secret, of another run, or there already does not end the run") {
    const Workplace w;
    const int port = free_port();
    const Variables secret = {{"TAPERNORM_SECRET", "swordfish"}};
    Variables other_run = secret;
    other_run["WORLD_SIZE"] = "3";
    Rank rank0(w, 0, port, "", secret);
    for (const Variables& wrong : {Variables{{"TAPERNORM_SECRET", "swordfisH"}}, Variables{}}) {
        const Outcome out = Rank(w, 1, port, "", wrong).finish();
        CHECK(out.status == 1);
        CHECK_MESSAGE(has(out.err, "has another secret than rank 1; give all ranks the same TAPERNORM_SECRET"),
                      out.err);
    }
    const Outcome out = Rank(w, 1, port, "", other_run).finish();
    CHECK(out.status == 1);
    CHECK_MESSAGE(has(out.err, "belongs to a run that has no rank 1 of 3"), out.err);
    CHECK_MESSAGE(out.err.starts_with("train_gpt: error: rank 1 of 3: what listens at "), out.err);
    const Outcome one = Rank(w, 1, port, "", secret).finish(), zero = rank0.finish();
    CHECK(one.status + zero.status == 0);
    for (const std::string kind : {"with another secret", "of a run with another number of ranks"}) {
        const std::string at_once = "turned away a connection " + kind + "; still waiting for rank 1 of 2\n";
        CHECK_MESSAGE(has(zero.err, at_once), zero.err);
        CHECK(zero.err.find(at_once) == zero.err.rfind(at_once));
    }
    CHECK_MESSAGE(has(zero.err,
                      "1 connection of a run with another number of ranks, 2 connections with another secret"),
                  zero.err);

    // Two of one number: one of them is rank 1.
    const int port2 = free_port();
    const StandardError standard_error(w.at("stderr"));
    std::vector<std::string> errors(3);
    auto come = [&](size_t i, int rank) {
        return std::thread(
            [&, i, rank] { errors[i] = error_of([&] { join_tcp(rank, 3, {"127.0.0.1", port2, 60, "s"}); }); });
    };
    std::thread first = come(0, 0), second = come(1, 1), twin = come(2, 1);
    second.join(), twin.join();
    CHECK(has(errors[1] + errors[2], "has a rank 1 already"));
    CHECK(error_of([&] { join_tcp(2, 3, {"127.0.0.1", port2, 60, "s"}); }) == "");
    first.join();
    CHECK(errors[0] == "");
    std::fflush(stderr);
    const std::string said = read_file(w.at("stderr"));
    CHECK_MESSAGE(has(said, "turned away a connection of a rank that was there already; still waiting for rank 2 of 3"),
                  said);
    CHECK(has(said, "turned away 1 connection of a rank that was there already"));
}

TEST_CASE("rendezvous: a rank does not trust whoever listens") {
    // It answers the challenge and never gets the secret; a listener without it cannot answer.
    const Peer door;
    const int port = door.listens();
    std::string hello;
    std::thread impostor([&] {
        const Peer guest(accept(door.fd, nullptr, nullptr));
        guest.says("TNranks2" + std::string(16, 'n'));
        hello = guest.hears(120);
        guest.says("TNranks2" + std::string(4, '\0') + hello.substr(32));  // welcome, and the rank's own proof
        guest.hears();
    });
    CHECK_THROWS_WITH_AS(join_tcp(1, 2, {"127.0.0.1", port, 20, "swordfish"}), doctest::Contains("has another secret"),
                         Error);
    impostor.join();
    CHECK(hello.size() == 120);
    CHECK(!has(hello, "swordfish"));
    std::thread other([&] { Peer(accept(door.fd, nullptr, nullptr)).says("SSH-2.0-OpenSSH_9.2\r\n"); });
    CHECK_THROWS_WITH_AS(join_tcp(1, 2, {"127.0.0.1", port, 20, ""}), doctest::Contains("is another program"), Error);
    other.join();
}

TEST_CASE("rendezvous: rank 0 listens at MASTER_ADDR alone; without a secret it warns where others may reach that") {
    const Workplace w;
    auto listening = [](int port) {  // local addresses, in hex
        std::set<std::string> list;
        for (const char* table : {"/proc/net/tcp", "/proc/net/tcp6"}) {
            std::ifstream in(table);
            std::string line, number, local, remote, state;
            std::getline(in, line);
            while (in >> number >> local >> remote >> state && std::getline(in, line))
                if (state == "0A" && local.ends_with(strprintf(":%04X", port)))
                    list.insert(local.substr(0, local.size() - 5));
        }
        return list;
    };
    for (const std::string address : {"127.0.0.1", "0.0.0.0"})
        for (const std::string secret : {"", "swordfish"}) {
            const int port = free_port();
            Variables variables = {{"MASTER_ADDR", address}};
            if (!secret.empty()) variables["TAPERNORM_SECRET"] = secret;
            Rank rank0(w, 0, port, "", variables);
            const Peer peer = stranger(port);
            CHECK(listening(port) == std::set<std::string>{address == "0.0.0.0" ? "00000000" : "0100007F"});
            rank0.program->send(SIGKILL);
            CHECK(has(rank0.finish().err, "without a secret") == (address == "0.0.0.0" && secret.empty()));
        }
}

TEST_CASE("rendezvous: what a launcher may get wrong is said in one line") {
    const Workplace w;
    const Peer door;
    const int port = door.listens();
    auto error = [&](const Variables& more) {
        const Outcome out = Rank(w, 0, port, "", more).finish();
        CHECK(out.status == 1);
        CHECK(std::ranges::count(out.err, '\n') == 1);
        return out.err;
    };
    CHECK_MESSAGE(has(error({}), "MASTER_PORT: cannot listen at 127.0.0.1, port " + std::to_string(port)), error({}));
    const std::string absent = error({{"MASTER_ADDR", "192.0.2.1"}});  // an address for documents
    CHECK_MESSAGE(has(absent, "MASTER_ADDR: rank 0 cannot listen at 192.0.2.1"), absent);
    CHECK(has(error({{"MASTER_ADDR", "no.such.host.invalid"}}),
              "MASTER_ADDR: rank 0 cannot find 'no.such.host.invalid'"));
}

TEST_CASE("rendezvous: three ranks on CPUs without MPI do not start, and rank 0 says why") {
    const Workplace w;
    const int port = free_port();
    const Variables three = {{"WORLD_SIZE", "3"}};
    Rank rank0(w, 0, port, "", three), rank1(w, 1, port, "", three), rank2(w, 2, port, "", three);
    const Outcome two = rank2.finish(), one = rank1.finish(), zero = rank0.finish();
    CHECK((zero.status == 1 && one.status == 1 && two.status == 1));
    CHECK_MESSAGE(zero.err.starts_with("train_gpt: error: rank 0 of 3: 3 ranks on CPUs need MPI, because torchrun "),
                  zero.err);
    CHECK(std::ranges::count(zero.err + one.err + two.err, '\n') == 1);
    CHECK(!std::filesystem::exists(w.at("r0.bin")));
    std::string help;
    for (const std::string& word : words(w.ok("train_gpt --help"))) help += word + " ";
    CHECK(has(help, "torchrun and plain srun start at most 2 ranks there"));
}

TEST_CASE("rendezvous: the secret comes from a variable or from a file that nobody else may read") {
    const TemporaryFolder dir;
    const std::string path = dir.path + "/secret";
    auto secret = [](const Variables& variables) {
        const Environment environment(variables);
        return secret_from_environment();
    };
    CHECK(secret({}) == "");
    CHECK(secret({{"TAPERNORM_SECRET", "a b"}}) == "a b");
    const Variables file = {{"TAPERNORM_SECRET_FILE", path}};
    auto error = [&](const Variables& variables) { return error_of([&] { secret(variables); }); };
    CHECK(has(error(file), "TAPERNORM_SECRET_FILE: cannot read '" + path + "': No such file"));
    write_file(path, "swordfish\nnot this\n");
    chmod(path.c_str(), 0644);
    CHECK(has(error(file), "chmod 600"));
    chmod(path.c_str(), 0600);
    CHECK(secret(file) == "swordfish");
    CHECK(has(error({{"TAPERNORM_SECRET_FILE", path}, {"TAPERNORM_SECRET", "a"}}), "found both"));
    write_file(path, "sword fish \t\r\n");
    CHECK(secret(file) == "sword fish");
    write_file(path, "\n");
    CHECK(has(error(file), "expected a line of 1 to 400 letters, found 0"));
    write_file(path, std::string("a\0b\n", 4));
    CHECK(has(error(file), "a byte of 0"));
    write_file(path, "");
    CHECK(has(error(file), "expected a line of 1 to 400 letters, found 0"));
    CHECK(has(error({{"TAPERNORM_SECRET", std::string(401, 'a')}}), "found 401"));
    REQUIRE(mkfifo((path + ".fifo").c_str(), 0600) == 0);
    CHECK(has(error({{"TAPERNORM_SECRET_FILE", path + ".fifo"}}), "expected a regular file"));
}

// ---- loss of a rank

TEST_CASE("rendezvous: a rank whose other is killed says what it lost") {
    for (int killed : {0, 1}) {
        const Workplace w;
        const int port = free_port();
        Rank rank0(w, 0, port, "-x 1000000 -v 0"), rank1(w, 1, port, "-x 1000000 -v 0");
        REQUIRE(rank0.program->wait_until([](const std::string& text) { return has(text, "\nstep "); }));
        (killed ? rank1 : rank0).program->send(SIGKILL);
        const Outcome out = (killed ? rank0 : rank1).finish();
        CHECK(out.status == 1);
        CHECK_MESSAGE(has(out.err, strprintf("rank %d of 2: rank %d is gone: its connection closed before the ",
                                             1 - killed, killed)),
                      out.err);
        CHECK(std::ranges::count(out.err, '\n') == 1);
    }
}

TEST_CASE("rendezvous: a rank that ends by its own will before the training says so to the others") {
    const Workplace w;
    for (const std::string flag : {"--help", "--version"}) {
        const std::string error = said_of(w, "", flag);
        CHECK_MESSAGE(
            error ==
                "train_gpt: error: rank 0 of 2: the command: expected the same on all ranks, found 'training' on "
                "rank 0 and '--help or --version' on rank 1; start all ranks with the same program, flags and files\n",
            error);
    }
    CHECK(has(said_of(w, "", "--nonsense"), "rank 1 of 2: unknown flag '--nonsense'"));
    // Where each rank has a log, each log has the reason or says who has it.
    for (const std::string second : {"--nonsense", "-l 0.5"}) {
        const int port = free_port();
        std::vector<std::string> command = Workplace::command(kTiny + " -o r1.bin " + second);
        command[0] = program_path("train_gpt");
        std::string script = "exec";
        for (const std::string& word : command) script += " " + word;
        write_file(w.at("rank1.sh"), script + " 2> rank1.log");
        Rank rank0(w, 0, port, ""), rank1(w, 1, port, "", {}, "/bin/sh rank1.sh");
        const Outcome zero = rank0.finish(), one = rank1.finish();
        CHECK((zero.status == 1 && one.status == 1));
        const std::string log = read_file(w.at("rank1.log"));
        CHECK_MESSAGE(has(log, second == "-l 0.5" ? "expected the same on all ranks" : "unknown flag"), log);
        CHECK_MESSAGE(has(zero.err, second == "-l 0.5" ? "expected the same on all ranks" : "rank 1 ended the run"),
                      zero.err);
    }
    {
        const int port = free_port();
        Rank rank0(w, 0, port, "--help"), rank1(w, 1, port, "--help");
        const Outcome zero = rank0.finish(), one = rank1.finish();  // rank 0 prints
        CHECK((zero.status == 0 && one.status == 0));
        CHECK(zero.err + one.err + one.out == "");
        CHECK(zero.out == w.ok("train_gpt --help"));
    }
    // Rank 0 alone exports.
    w.ok(kTiny);
    const int port = free_port();
    Rank rank0(w, 0, port, "", {}, "train_gpt export model.bin folder"), rank1(w, 1, port, "", {}, "train_gpt export");
    const Outcome zero = rank0.finish(), one = rank1.finish();  // rank 0 prints
    CHECK((zero.status == 0 && one.status == 0));
    CHECK(zero.err + one.err == "");
    CHECK(std::filesystem::exists(w.at("folder/model.safetensors")));
}

// ---- agreement

TEST_CASE("agreement: every flag enters the comparison but those that are each rank's own") {
    const std::set<std::string> own = {"--train (-i)",  "--val (-j)",
                                       "--tokenizer",   "--overwrite",
                                       "--out (-o)",    "--init",
                                       "--keep",        "--model (-e)",
                                       "--hellaswag",   "--sample-every (-s)",
                                       "--tensorboard", "--device",
                                       "--threads",     "--rank-timeout"};
    Settings s;
    std::set<std::string> common;
    for (const auto& [name, value] : make_options(s).common()) common.insert(name);
    const std::string help = make_options(s).help();
    size_t flags = 0;
    for (size_t at = help.find(" --"); at != std::string::npos; at = help.find(" --", at + 1)) {
        const size_t line = help.rfind('\n', at) + 1;
        if (help.find_first_not_of(' ', line) + 6 < at - line + 1 || at - line > 6) continue;
        const std::string name = help.substr(at + 1, help.find_first_of(" \n", at + 1) - at - 1);
        if (name == "--help" || name == "--version" || name == "--config") continue;
        const std::string letter = help.substr(line + 2, 2);
        const std::string label = letter[0] == '-' ? name + " (" + letter + ")" : name;
        CAPTURE(label);
        CHECK(common.contains(label) != own.contains(label));
        flags++;
    }
    CHECK(flags == common.size() + own.size());
}

TEST_CASE("agreement: ranks that would compute different updates do not start, and the flag is named") {
    const Workplace w;
    const std::vector<std::pair<std::string, std::string>> cases = {
        {"-l 0.02", "--lr (-l): expected the same on all ranks, found '0.01' on rank 0 and '0.02' on rank 1"},
        {"--clip 2", "--clip: expected the same on all ranks, found '1' on rank 0 and '2' on rank 1"},
        {"-k linear", "--lr-schedule (-k): expected the same on all ranks, found 'cosine' on rank 0 and 'linear' on"},
        {"--scale-loss 0.2", "--scale-loss: expected the same on all ranks, found '0.1' on rank 0 and '0.2' on rank 1"},
        {"--no-shuffle", "--no-shuffle: expected the same on all ranks, found 'no' on rank 0 and 'yes' on rank 1"},
    };
    for (const auto& [flags, error] : cases) {
        const std::string said = said_of(w, "", flags);
        CHECK_MESSAGE(has(said, "train_gpt: error: rank 0 of 2: " + error), said);
    }
    const std::string isa = said_of(w, "", "", {{"TAPERNORM_ISA", "base"}});
    CHECK_MESSAGE((has(isa, "instruction set (TAPERNORM_ISA)") || std::string(isa_name(best_isa())) == "baseline"),
                  isa);
}

TEST_CASE("agreement: corpora of one size that differ are noticed; what is each rank's own may differ") {
    const Workplace w;
    std::string text = read_file(w.at("corpus.txt"));
    text[text.size() / 2] ^= 1;
    write_file(w.at("other.txt"), text);
    std::string said = said_of(w, "", "-i other.txt");
    CHECK_MESSAGE(has(said, "--train (-i), its tokens: expected the same on all ranks"), said);
    said = said_of(w, "-j corpus.txt", "-j other.txt");
    CHECK_MESSAGE(has(said, "--val (-j), its tokens: expected the same on all ranks"), said);

    said = said_of(w, "", "-j other.txt");
    CHECK_MESSAGE(has(said, "--val (-j): expected the same on all ranks, found 'none' on rank 0"), said);

    std::filesystem::copy_file(w.at("corpus.txt"), w.at("copy.txt"));
    const int port = free_port();
    Rank rank0(w, 0, port, ""), rank1(w, 1, port, "-i copy.txt --threads 2 --keep 3 --rank-timeout 60");
    const Outcome zero = rank0.finish(), one = rank1.finish();  // rank 0 prints
    CHECK(one.err + zero.err == "");
    CHECK(one.status + zero.status == 0);
    // The same update as by one process, with the state that each rank finds under a name of its own.
    std::filesystem::copy_file(w.at("r0.state.bin"), w.at("r1.state.bin"));
    Rank again0(w, 0, port, "-y -x 8"), again1(w, 1, port, "-y -x 8");
    CHECK(again1.finish().status + again0.finish().status == 0);
}

TEST_CASE("agreement: ranks that begin from different files are noticed") {
    const Workplace w;
    std::string text = read_file(w.at("corpus.txt"));
    std::ranges::reverse(text);
    write_file(w.at("other.txt"), text);
    w.ok(kTiny + " -g norm -d 64 -x 2 -o r0.bin"), w.ok(kTiny + " -g norm -d 64 -x 2 -i other.txt -o r1.bin");
    const auto refused = [&](const std::string& both, const std::string& second, const std::string& error) {
        const int port = free_port();
        Rank rank0(w, 0, port, both), rank1(w, 1, port, both + " " + second);
        const Outcome zero = rank0.finish(), one = rank1.finish();  // rank 0 prints
        CHECK(one.status + zero.status == 2);
        CHECK_MESSAGE(has(zero.err, "train_gpt: error: rank 0 of 2: " + error), zero.err);
        CHECK(one.err == "");
    };
    for (const std::string i : {"0", "1"}) std::filesystem::copy_file(w.at("r" + i + ".bin"), w.at("i" + i + ".bin"));
    const auto before = w.contents();
    refused("-g norm -d 64 -y -x 4", "", "the checksum of the state to resume: expected the same on all ranks");
    refused("-g norm -d 64 --init i0.bin -x 4 -l 0.01", "--init i1.bin",
            "a checksum of the parameters after update 0: ");
    CHECK(w.contents() == before);
}

}  // namespace tapernorm::train
