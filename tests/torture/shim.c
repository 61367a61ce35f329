// Makes system calls and allocations of a program fail, to see what it does then (tests/test_crash.cpp): loaded in front of the
// C library with LD_PRELOAD.
//
//   TORTURE_CALL    write, fsync, rename, open (to write) or malloc
//   TORTURE_AT      the number of the call that fails, from 1; 0 only counts
//   TORTURE_ERROR   its errno; 0: write takes half of the bytes, as it does where a disk becomes full
//   TORTURE_FOR     how many calls fail from there on
//   TORTURE_COUNT   a file that is given the number of calls when the program ends
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { NONE, WRITE, FSYNC, RENAME, OPEN, MALLOC };
static int failing = NONE, error;
static long first, last;
static atomic_long calls;

static long number(const char* name) {
    const char* text = getenv(name);
    return text ? atol(text) : 0;
}

__attribute__((constructor)) static void start(void) {
    static const char* const kNames[] = {"", "write", "fsync", "rename", "open", "malloc"};
    const char* name = getenv("TORTURE_CALL");
    first = number("TORTURE_AT"), error = (int)number("TORTURE_ERROR");
    last = first + number("TORTURE_FOR") - 1;
    for (int i = WRITE; name && i <= MALLOC; i++)
        if (!strcmp(name, kNames[i])) failing = i;
}

__attribute__((destructor)) static void end(void) {
    const char* path = getenv("TORTURE_COUNT");
    long n = calls;
    failing = NONE;
    if (!path) return;
    char digits[24];
    int at = sizeof digits;
    do digits[--at] = (char)('0' + n % 10);
    while (n /= 10);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    syscall(SYS_write, fd, digits + at, sizeof digits - (size_t)at);
}

static int fails(int call) {
    if (failing != call) return 0;
    const long n = ++calls;
    if (n < first || n > last) return 0;
    errno = error;
    return 1;
}

// Regular files only: what is printed to a pipe is another matter.
ssize_t write(int fd, const void* data, size_t bytes) {
    struct stat info;
    if (failing == WRITE && fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && fails(WRITE)) {
        if (error) return -1;
        bytes = (bytes + 1) / 2;
    }
    return syscall(SYS_write, fd, data, bytes);
}
int fsync(int fd) { return fails(FSYNC) ? -1 : (int)syscall(SYS_fsync, fd); }
int rename(const char* from, const char* to) {
    return fails(RENAME) ? -1 : (int)syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to);
}

static int open_at(int folder, const char* path, int flags, mode_t mode) {
    if ((flags & O_ACCMODE) != O_RDONLY && fails(OPEN)) return -1;
    return (int)syscall(SYS_openat, folder, path, flags, mode);
}
#define MODE(flags)                          \
    mode_t mode = 0;                         \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list more;                        \
        va_start(more, flags);               \
        mode = va_arg(more, mode_t);         \
        va_end(more);                        \
    }
int open(const char* path, int flags, ...) {
    MODE(flags)
    return open_at(AT_FDCWD, path, flags, mode);
}
int open64(const char* path, int flags, ...) {
    MODE(flags)
    return open_at(AT_FDCWD, path, flags, mode);
}
int openat(int folder, const char* path, int flags, ...) {
    MODE(flags)
    return open_at(folder, path, flags, mode);
}

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void* malloc(size_t n) { return fails(MALLOC) ? NULL : __libc_malloc(n); }
void* calloc(size_t n, size_t size) { return fails(MALLOC) ? NULL : __libc_calloc(n, size); }
void* realloc(void* p, size_t n) { return fails(MALLOC) ? NULL : __libc_realloc(p, n); }
void* aligned_alloc(size_t alignment, size_t n) { return fails(MALLOC) ? NULL : __libc_memalign(alignment, n); }
