/* Makes the calls of one process fail as a broken disk does, for files below $METERD_FAULTS_DIR, while a file of the fault's name lies in
 * $METERD_FAULTS: "eio" for a flush, "erofs", "enospc" and "eio_write" for a write, "eio_read" for a read. A fault whose file is not empty
 * concerns only the files in whose path that text occurs. Loaded by LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static int fails(int fd, const char *fault) {
    const char *faults = getenv("METERD_FAULTS"), *dir = getenv("METERD_FAULTS_DIR");
    char path[4096], link[64], part[128];
    int saved = errno, result = 0, at;
    if (!faults || !dir) return 0;
    snprintf(path, sizeof path, "%s/%s", faults, fault);
    if ((at = open(path, O_RDONLY | O_CLOEXEC)) >= 0) {
        ssize_t said = syscall(SYS_read, at, part, sizeof part - 1);
        part[said < 0 ? 0 : said] = 0;
        close(at);
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, path, sizeof path - 1);
        path[length < 0 ? 0 : length] = 0;
        result = strncmp(path, dir, strlen(dir)) == 0 && strstr(path, part);
    }
    errno = saved;
    return result;
}

#define FAIL(fd, fault, error) \
    if (fails(fd, fault)) { errno = error; return -1; }
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int fd) { FAIL(fd, "eio", EIO) return REAL(fsync)(fd); }
int fdatasync(int fd) { FAIL(fd, "eio", EIO) return REAL(fdatasync)(fd); }
#define FAIL_WRITE(fd) FAIL(fd, "erofs", EROFS) FAIL(fd, "enospc", ENOSPC) FAIL(fd, "eio_write", EIO)
ssize_t write(int fd, const void *bytes, size_t count) { FAIL_WRITE(fd) return REAL(write)(fd, bytes, count); }
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) { FAIL_WRITE(fd) return REAL(pwrite)(fd, bytes, count, at); }
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) { FAIL_WRITE(fd) return REAL(pwrite64)(fd, bytes, count, at); }
int ftruncate(int fd, off_t length) { FAIL(fd, "erofs", EROFS) return REAL(ftruncate)(fd, length); }
int ftruncate64(int fd, off64_t length) { FAIL(fd, "erofs", EROFS) return REAL(ftruncate64)(fd, length); }
ssize_t read(int fd, void *bytes, size_t count) { FAIL(fd, "eio_read", EIO) return REAL(read)(fd, bytes, count); }
ssize_t pread(int fd, void *bytes, size_t count, off_t at) { FAIL(fd, "eio_read", EIO) return REAL(pread)(fd, bytes, count, at); }
ssize_t pread64(int fd, void *bytes, size_t count, off64_t at) { FAIL(fd, "eio_read", EIO) return REAL(pread64)(fd, bytes, count, at); }
