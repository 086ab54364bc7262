/* Preloaded into a process: fsync and fdatasync fail with EIO once the file named by FSYNC_FAILS exists.
 * Each call is told to stderr, so that a test sees whether one was made after the first that failed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int failing(void) {
    const char *flag = getenv("FSYNC_FAILS");
    return flag != NULL && access(flag, F_OK) == 0;
}

static int tell(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    if (failing()) {
        (void)!write(2, "sync failed\n", 12);
        errno = EIO;
        return -1;
    }
    (void)!write(2, "sync\n", 5);
    return real(fd);
}

int fsync(int fd) { return tell("fsync", fd); }
int fdatasync(int fd) { return tell("fdatasync", fd); }
