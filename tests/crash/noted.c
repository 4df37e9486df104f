/* Preloaded: notes, in order and over all processes, what is done to files below $NOTED_FOLDER, in $NOTED_LOG.

   A note is a header and then two paths and some data:
   O open that may make a file, W written, T has another size, A at least that size, R rename, L link, U unlink,
   S sync of a file or folder, M mkdir. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

struct header {
    int64_t op, inode, offset, length0, length1, length2;
};

static int below(const char *path) {
    const char *folder = getenv("NOTED_FOLDER");
    return path && folder && strncmp(path, folder, strlen(folder)) == 0;
}

/* The file that a descriptor is open on, if it is one of those to note. */
static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, 4095);
    path[length < 0 ? 0 : length] = 0;
    return below(path);
}

/* One operation at a time, in whatever process. */
static int begin(void) {
    int log = REAL(open)(getenv("NOTED_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0666);
    flock(log, LOCK_EX);
    return log;
}

static void end(int log, char op, int fd, int64_t offset, const char *a, const char *b, const void *data, size_t n) {
    int saved = errno;
    struct stat there = {0};
    if (fd >= 0) fstat(fd, &there);
    struct header header = {op, there.st_ino, offset, a ? strlen(a) : 0, b ? strlen(b) : 0, n};
    struct iovec parts[] = {{&header, sizeof header},
                            {(void *)a, header.length0},
                            {(void *)b, header.length1},
                            {(void *)data, n}};
    if (op && writev(log, parts, 4) < 0) abort();
    REAL(close)(log);
    errno = saved;
}

static int opened(const char *name, int at, const char *path, int flags, mode_t mode) {
    int (*real)(int, const char *, int, ...) = dlsym(RTLD_NEXT, "openat");
    (void)name;
    if (!below(path) || !(flags & (O_CREAT | O_TRUNC))) return real(at, path, flags, mode);
    int log = begin();
    int fd = real(at, path, flags, mode);
    end(log, fd < 0 ? 0 : 'O', fd, flags & O_TRUNC ? 1 : 0, path, NULL, NULL, 0);
    return fd;
}

#define MODE                                        \
    va_list rest;                                   \
    va_start(rest, flags);                          \
    mode_t mode = va_arg(rest, int);                \
    va_end(rest);

int open(const char *path, int flags, ...) { MODE return opened("open", AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return opened("open64", AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int at, const char *path, int flags, ...) { MODE return opened("openat", at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE return opened("openat64", at, path, flags, mode); }

#define ON_FILE(type, call, failed, op, offset, data, size)      \
    char path[4096];                                             \
    if (!path_of(fd, path)) return call;                         \
    int log = begin();                                           \
    type result = call;                                          \
    end(log, failed ? 0 : op, fd, offset, path, NULL, data, size); \
    return result;

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t offset) {
    ON_FILE(ssize_t, REAL(pwrite64)(fd, data, n, offset), result < 0, 'W', offset, data, result)
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t offset) { return pwrite64(fd, data, n, offset); }

ssize_t write(int fd, const void *data, size_t n) {
    ON_FILE(ssize_t, REAL(write)(fd, data, n), result < 0, 'W', lseek(fd, 0, SEEK_CUR) - result, data, result)
}

int ftruncate64(int fd, off64_t size) {
    ON_FILE(int, REAL(ftruncate64)(fd, size), result < 0, 'T', size, NULL, 0)
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int posix_fallocate64(int fd, off64_t offset, off64_t n) {
    ON_FILE(int, REAL(posix_fallocate64)(fd, offset, n), result != 0, 'A', offset + n, NULL, 0)
}
int posix_fallocate(int fd, off_t offset, off_t n) { return posix_fallocate64(fd, offset, n); }

int fsync(int fd) { ON_FILE(int, REAL(fsync)(fd), result < 0, 'S', 0, NULL, 0) }
int fdatasync(int fd) { ON_FILE(int, REAL(fdatasync)(fd), result < 0, 'S', 0, NULL, 0) }

/* What the kernel would copy is read and written, so that it is noted. */
ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t n, unsigned flags) {
    (void)from, (void)from_at, (void)to, (void)to_at, (void)n, (void)flags;
    errno = EPERM;
    return -1;
}

#define ON_NAMES(call, op, a, b)                      \
    if (!below(a) && !below(b)) return call;          \
    int log = begin();                                \
    int result = call;                                \
    end(log, result < 0 ? 0 : op, -1, 0, a, b, NULL, 0); \
    return result;

int rename(const char *a, const char *b) { ON_NAMES(REAL(rename)(a, b), 'R', a, b) }
int link(const char *a, const char *b) { ON_NAMES(REAL(link)(a, b), 'L', a, b) }
int unlink(const char *a) { ON_NAMES(REAL(unlink)(a), 'U', a, NULL) }
int mkdir(const char *a, mode_t mode) { ON_NAMES(REAL(mkdir)(a, mode), 'M', a, NULL) }
