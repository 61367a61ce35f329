// Ranks as threads of this process, each connected to every other by sockets.
#pragma once
#include <sys/socket.h>

#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "train/ranks/ranks.h"

namespace tapernorm::train {

// Runs f on every rank; returns what each of them threw, "" for nothing. A rank that ends closes its connections.
inline std::vector<std::string> on_ranks(int size, const std::function<void(Ranks&)>& f, double time_limit = 60) {
    std::vector<std::vector<int>> sockets(size_t(size), std::vector<int>(size_t(size), -1));
    for (size_t a = 0; a < size_t(size); a++)
        for (size_t b = 0; b < a; b++) {
            int pair[2];
            if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) throw std::runtime_error("no socket pair");
            sockets[a][b] = pair[0], sockets[b][a] = pair[1];
        }
    std::vector<std::string> errors(size_t(size), "");
    std::vector<std::thread> threads;
    for (int r = 0; r < size; r++)
        threads.emplace_back([&, r] {
            try {
                Ranks ranks(r, size, link_sockets(r, sockets[size_t(r)]));
                ranks.launcher = "a test", ranks.set_time_limit(time_limit);
                f(ranks);
            } catch (const std::exception& error) {
                errors[size_t(r)] = error.what();
            }
        });
    for (std::thread& thread : threads) thread.join();
    return errors;
}

inline bool all_well(const std::vector<std::string>& errors) {
    for (const std::string& error : errors)
        if (!error.empty()) return false;
    return true;
}

}  // namespace tapernorm::train
