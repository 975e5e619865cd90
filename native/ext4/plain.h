/* Plain files of an archive that lie in memory as a whole. */
#ifndef HYBRID_EXT4_PLAIN_H
#define HYBRID_EXT4_PLAIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct plain_file {
    const char *name;
    size_t name_length;
    unsigned int mode, uid, gid, nanoseconds;
    long long seconds;
    const uint8_t *data;
    size_t size;
    size_t stored; /* bytes of the archive, headers and padding among them */
    char joined[256]; /* where name is if it stands in two parts */
};

/* What begins at data; false if that is anything else, or is not there as a whole. */
bool read_plain_file(const uint8_t *data, size_t length, struct plain_file *file);

#endif
