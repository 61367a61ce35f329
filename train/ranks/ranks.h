// The processes that train one model together, and what they tell one another through host memory: sums, whole tensors
// for a checkpoint, and that one of them failed. Buffers in device memory: train/ranks/collectives.cuh.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "runtime/cores.h"
#include "train/ranks/link.h"

namespace tapernorm::train {

// Something that all ranks must have in common: the value of a flag, or what is in a file.
struct Fact {
    std::string name, value;
};

constexpr const char* kStartAlike = "start all ranks with the same program, flags and files";

class Ranks {
  public:
    int rank = 0, size = 1;
    int local_rank = 0, local_size = 1;  // among those of this machine
    std::string launcher;                // "mpirun", "torchrun", "SLURM", "--gpus"; "" for one process

    bool star = false;  // whether rank 0 alone is connected to the others

    Ranks() = default;
    Ranks(int rank_, int size_, std::unique_ptr<Link> link) : rank(rank_), size(size_), link_(std::move(link)) {}

    // Joins the ranks that mpirun, torchrun or srun started, as their environment variables say; one process otherwise.
    void join();
    // Becomes `count` processes, which continue, and one that waits for them and does not return. Before any thread and
    // any call of CUDA.
    void fork_local(size_t count);
    void set_time_limit(double seconds);

    bool first() const { return rank == 0; }  // the one that prints and writes files
    std::string describe() const;             // "rank 1 of 4"

    // Adds every rank's values, in the order of ranks: the same bits on every rank and in every run. Returns the first
    // rank whose values[0] is not finite, or -1. `what`: see Link.
    int sum(std::vector<double>& values, const char* what);
    // Rank 0's bytes to all.
    void broadcast(void* data, size_t bytes, const char* what);
    // Fails on all ranks unless all have the same facts; names the first that differs, both values and the rank.
    void agree(const std::vector<Fact>& facts, const char* hint = kStartAlike);

    // How many ranks of this machine share its cores, and how many have the same ones as this rank: launchers give a rank cores of its
    // own, or do not. All ranks call this.
    CoreSharing shared_cores();

    // An error that every rank has found: rank 0 will say it.
    [[noreturn]] void fail_together(const std::string& text) const {
        if (!first()) throw RankStopped(text);
        throw Error(text);
    }

    // One process has none.
    Link* link() const { return link_.get(); }

    // For main: prints the error, once where all ranks have it (and in each rank's log where they have files for that), ends all
    // ranks, returns the exit status. Rank 0 says which rank has ended the run.
    int fail_all(const char* program, const std::exception& error);

  private:
    // Every rank's text on rank 0, nothing on the others.
    std::vector<std::string> gather(std::string text, const char* what);

    std::unique_ptr<Link> link_;
};

// For a trainer that is alone.
inline Ranks& single_rank() {
    static Ranks ranks;
    return ranks;
}

// Where this process stands by its environment variables; size 1 where nothing started it together with others.
struct Place {
    int rank = 0, size = 1, local_rank = 0, local_size = 1;
    std::string launcher = {};
    bool mpi = false;  // else the ranks meet at address:port
    std::string address = {};
    int port = 0;
};
Place place_from_environment();

// What the user gave the ranks by kSecretVariables, "" for nothing.
std::string secret_from_environment();

// The first host of SLURM's list: "n[003-005,9],m1" -> "n003".
std::string first_host(const std::string& list);

}  // namespace tapernorm::train
