/* A disk that fails on demand, for one process: preloaded, it stands between the process and libc.
 *
 * The first byte of the file named by FAULTY_DISK says how it fails, from one call to the next:
 *   0  it does not
 *   1  fsync and fdatasync fail with EIO
 *   2  fsync and fdatasync do not return
 *   3  the file system reports 1 MiB free
 *   4  the same, and writes to regular files fail with ENOSPC
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FINE, SYNC_FAILS, SYNC_HANGS, ALMOST_FULL, FULL };

static volatile unsigned char fine = FINE;
static volatile unsigned char *mode = &fine;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("FAULTY_DISK");
    int descriptor = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (descriptor < 0)
        abort(); /* a bench whose faults do not strike would prove nothing */
    void *page = mmap(NULL, 1, PROT_READ, MAP_SHARED, descriptor, 0);
    if (page == MAP_FAILED)
        abort();
    close(descriptor);
    mode = page;
}

static int is_full(int descriptor)
{
    struct stat found;
    return *mode == FULL && descriptor > STDERR_FILENO && !fstat(descriptor, &found)
        && S_ISREG(found.st_mode);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define FAILING_SYNC(name)                     \
    int name(int descriptor)                   \
    {                                          \
        while (*mode == SYNC_HANGS)            \
            usleep(10000);                     \
        if (*mode == SYNC_FAILS) {             \
            errno = EIO;                       \
            return -1;                         \
        }                                      \
        return REAL(name)(descriptor);         \
    }

FAILING_SYNC(fsync)
FAILING_SYNC(fdatasync)

#define FULL_DISK(type, name, parameters, arguments) \
    type name parameters                             \
    {                                                \
        if (is_full(descriptor)) {                   \
            errno = ENOSPC;                          \
            return -1;                               \
        }                                            \
        return REAL(name) arguments;                 \
    }

FULL_DISK(ssize_t, write, (int descriptor, const void *data, size_t size), (descriptor, data, size))
FULL_DISK(ssize_t, pwrite, (int descriptor, const void *data, size_t size, off_t at),
          (descriptor, data, size, at))
FULL_DISK(ssize_t, pwrite64, (int descriptor, const void *data, size_t size, off64_t at),
          (descriptor, data, size, at))
FULL_DISK(ssize_t, writev, (int descriptor, const struct iovec *parts, int count),
          (descriptor, parts, count))

int posix_fallocate64(int descriptor, off64_t at, off64_t size)
{
    return *mode >= ALMOST_FULL ? ENOSPC : REAL(posix_fallocate64)(descriptor, at, size);
}

int posix_fallocate(int descriptor, off_t at, off_t size)
{
    return *mode >= ALMOST_FULL ? ENOSPC : REAL(posix_fallocate)(descriptor, at, size);
}

#define SMALL_DISK(name, result)                          \
    int name(const char *path, struct result *found)      \
    {                                                     \
        int failed = REAL(name)(path, found);             \
        if (!failed && *mode >= ALMOST_FULL)              \
            found->f_bavail = (1 << 20) / found->f_frsize; \
        return failed;                                    \
    }

SMALL_DISK(statvfs, statvfs)
SMALL_DISK(statvfs64, statvfs64)
