/* Reading the beginnings of many files ahead, for the kernel of the same name: all of it without a lock of Python's. */
#ifndef ACTORMQ_AHEAD_H
#define ACTORMQ_AHEAD_H

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static inline long amq_read_ahead(int folder, const char *paths, size_t paths_bytes, long long file_bytes) {
    long there = 0;
    for (const char *path = paths; path < paths + paths_bytes; path += strlen(path) + 1) {
        int fd = openat(folder, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (fd < 0)
            continue;
        there++;
#ifdef POSIX_FADV_WILLNEED
        posix_fadvise(fd, 0, (off_t)file_bytes, POSIX_FADV_WILLNEED);
#else
        char block[4096];
        for (long long at = 0; at < file_bytes && pread(fd, block, sizeof block, (off_t)at) > 0;)
            at += sizeof block;
#endif
        close(fd);
    }
    return there;
}

#endif
