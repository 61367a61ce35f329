#include "io/mapped_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>

#include "io/checksum.h"
#include "io/claims.h"
#include "runtime/error.h"

namespace tapernorm {

// The handler of SIGBUS walks over these at any moment: they are never freed, only used again.
struct MappedFile::Place {
    std::atomic<unsigned char*> begin{nullptr};  // null: free
    size_t size = 0;
    std::string path;
    struct stat info = {};
    uint64_t sum = 0;  // of what was mapped
    Place* next = nullptr;

    static std::atomic<Place*> first;
    static std::atomic<const Place*> lost;  // one whose pages were gone; it is not used again
    static std::mutex mutex;                // for all but the handler and check()
    static std::mutex check_mutex;          // for info, once it is there
    static struct sigaction handler_before;

    static Place* add(const std::string& path, const struct stat& info, unsigned char* begin);
    static void replace_lost_pages(int signal, siginfo_t* fault, void*);
    uint64_t checksum() const;
    void check();
};

std::atomic<MappedFile::Place*> MappedFile::Place::first{nullptr};
std::atomic<const MappedFile::Place*> MappedFile::Place::lost{nullptr};
std::mutex MappedFile::Place::mutex, MappedFile::Place::check_mutex;
struct sigaction MappedFile::Place::handler_before;

MappedFile::Place* MappedFile::Place::add(const std::string& path, const struct stat& info, unsigned char* begin) {
    const std::lock_guard lock(mutex);
    if (!first) {
        struct sigaction action{};
        action.sa_sigaction = replace_lost_pages;
        action.sa_flags = SA_SIGINFO;
        sigaction(SIGBUS, &action, &handler_before);
    }
    Place* place = first;
    while (place && (place->begin || place == lost)) place = place->next;
    const bool fresh = !place;
    if (fresh) place = new Place, place->next = first;
    place->path = path, place->info = info, place->size = size_t(info.st_size);
    place->begin = begin;
    if (fresh) first = place;
    return place;
}

void MappedFile::Place::replace_lost_pages(int signal, siginfo_t* fault, void*) {
    const int error = errno;
    auto* address = static_cast<unsigned char*>(fault->si_addr);
    for (const Place* p = first; p && fault->si_code > 0; p = p->next) {
        unsigned char* begin = p->begin;
        if (!begin || address < begin || address >= begin + p->size) continue;
        const size_t page = size_t(sysconf(_SC_PAGESIZE)), at = size_t(address - begin) / page * page;
        // To the end: one fault stands for all.
        if (mmap(begin + at, p->size - at, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
            break;
        lost = p;
        errno = error;
        return;
    }
    sigaction(signal, &handler_before, nullptr);
    raise(signal);
}

// Of all bytes or, of a large file, of samples at fixed places: reading it twice would cost too much.
uint64_t MappedFile::Place::checksum() const {
    constexpr size_t kWhole = 4 << 20, kSamples = 64, kBytes = 4096;
    const unsigned char* data = begin;
    Checksum sum;
    if (size <= kWhole) sum.add(data, size);
    for (size_t i = 0; size > kWhole && i < kSamples; i++)  // evenly, from the first bytes to the last
        sum.add(data + (size - kBytes) * i / (kSamples - 1), kBytes);
    return sum.value();
}

[[noreturn]] static void fail_changed(const std::string& path, const char* how) {
    throw FileChanged(in_quotes(path) + how + "; restore it, and do not change files that are in use");
}

void MappedFile::Place::check() {
    if (const Place* gone = lost)
        fail_changed(gone->path, " has become shorter while it was in use, or its disk cannot be read");
    // Whatever has the name now, if it is another file, what is mapped is still what was opened.
    struct stat now;
    if (stat(path.c_str(), &now) != 0 || now.st_ino != info.st_ino || now.st_dev != info.st_dev) return;
    const std::lock_guard lock(check_mutex);  // readers of a corpus check it on threads of their own
    const auto same_time = [&] {
        return now.st_mtim.tv_sec == info.st_mtim.tv_sec && now.st_mtim.tv_nsec == info.st_mtim.tv_nsec;
    };
    if (now.st_size == info.st_size && (same_time() || checksum() == sum))
        info.st_mtim = now.st_mtim;  // another time alone (touch, a backup) is no change
    else
        fail_changed(path, " has been changed while it was in use");
}

MappedFile::MappedFile(const std::string& path, FileUse use) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        fail("cannot read %s: %s%s", in_quotes(path).c_str(), std::strerror(errno),
             errno == ENOENT
                 ? (access((path + ".bin").c_str(), F_OK) == 0 ? "; did you mean the one with .bin at its end?"
                                                               : "; check the path")
                 : "");
    struct stat info;
    const int error = fstat(fd, &info) == 0 ? 0 : errno;
    if (error || !S_ISREG(info.st_mode)) {
        close(fd);
        if (error) fail("cannot read %s: %s", in_quotes(path).c_str(), std::strerror(error));
        fail("cannot read %s: it is %s; name a file", in_quotes(path).c_str(),
             S_ISDIR(info.st_mode) ? "a directory" : "not a regular file");
    }
    try {
        if (use == FileUse::input) claim_input(path, fd);
    } catch (const Error&) {
        close(fd);
        throw;
    }
    size_ = size_t(info.st_size);
    void* p = size_ ? mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0) : nullptr;
    const int map_error = errno;
    close(fd);
    if (p == MAP_FAILED)
        fail("cannot map %s (%zu bytes) into memory: %s", in_quotes(path).c_str(), size_, std::strerror(map_error));
    data_ = static_cast<unsigned char*>(p);
    if (data_) place_ = Place::add(path, info, data_), place_->sum = place_->checksum();
}

MappedFile::~MappedFile() {
    if (!data_) return;
    place_->begin = nullptr;
    munmap(data_, size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(place_, other.place_);
    return *this;
}

void MappedFile::check() const {
    if (place_) place_->check();
}

void MappedFile::check_all() {
    const std::lock_guard lock(Place::mutex);
    for (Place* p = Place::first; p; p = p->next)
        if (p->begin || p == Place::lost) p->check();
}

}  // namespace tapernorm
