// The link of ranks that mpirun started. MPI carries messages only: sums are taken by the ranks themselves, in the order
// of ranks, because MPI_Allreduce promises no order.
#include "train/ranks/link.h"
#ifdef HAVE_MPI
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include <algorithm>
#endif

namespace tapernorm::train {

#ifdef HAVE_MPI
namespace {

class MpiLink : public Link {
  public:
    MpiLink(int rank, int size) : rank_(rank) {
        int provided = 0, mpi_rank = 0, mpi_size = 0;
        MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
        MPI_Comm_rank(MPI_COMM_WORLD, &mpi_rank), MPI_Comm_size(MPI_COMM_WORLD, &mpi_size);
        if (mpi_rank != rank || mpi_size != size)
            fail(
                "MPI: expected rank %d of %d as the environment says, found %d of %d; use the mpirun of the Open MPI that "
                "this program was built with (under SLURM: srun --mpi=pmix)",
                rank, size, mpi_rank, mpi_size);
        if (provided < MPI_THREAD_SERIALIZED)
            fail("MPI: this library cannot be called from a thread; expected MPI_THREAD_SERIALIZED");
    }
    // After an error nobody may wait for ranks that are gone.
    ~MpiLink() override {
        if (finalize_) MPI_Finalize();
    }

    void exchange(const std::vector<Message>& send, const std::vector<Message>& receive, const char* what) override {
        finalize_ = false;  // until it went well
        std::vector<MPI_Request> requests;
        std::vector<int> from;
        auto post = [&](const Message& m, bool out) {
            constexpr size_t kLargest = size_t(1) << 30;  // MPI counts in int
            for (size_t at = 0; at < m.bytes; at += kLargest) {
                char* data = static_cast<char*>(m.data) + at;
                const int bytes = int(std::min(kLargest, m.bytes - at));
                MPI_Request& request = requests.emplace_back();
                if (out)
                    MPI_Isend(data, bytes, MPI_BYTE, m.rank, 0, MPI_COMM_WORLD, &request);
                else
                    MPI_Irecv(data, bytes, MPI_BYTE, m.rank, 0, MPI_COMM_WORLD, &request);
                from.push_back(m.rank);
            }
        };
        for (const Message& m : receive) post(m, false);
        for (const Message& m : send) post(m, true);
        Waiting waiting(*this, rank_ != 0);
        for (;;) {
            int done = 0;
            MPI_Testall(int(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE);
            if (done) break;
            if (waiting.pause()) continue;
            std::set<int> late;
            for (size_t i = 0; i < requests.size(); i++) {
                MPI_Test(&requests[i], &done, MPI_STATUS_IGNORE);
                if (!done) late.insert(from[i]);
            }
            if (late.empty()) break;
            too_late(late, what);
        }
        finalize_ = true;
    }

    void stop_all() override { MPI_Abort(MPI_COMM_WORLD, 1); }

    bool stopped_by_first_rank(double seconds) override {
        finalize_ = false;
        std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
        return false;  // otherwise its MPI_Abort would have ended this process
    }

  private:
    int rank_;
    bool finalize_ = true;
};

}  // namespace

std::unique_ptr<Link> join_mpi(int rank, int size) { return std::make_unique<MpiLink>(rank, size); }

#else
std::unique_ptr<Link> join_mpi(int, int) {
    fail("mpirun: this program was built without MPI; make deps MPI=1 installs it (libopenmpi-dev), then make again");
}
#endif

}  // namespace tapernorm::train
