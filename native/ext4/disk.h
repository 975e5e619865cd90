/* The disk that libext2fs works on: what lies below, read through a Python callable, and above it
 * the blocks of this layer in a sparse scratch file. Blocks are 4096 bytes throughout.
 *
 * Metadata goes through a small write-back cache; file data goes straight to the scratch file,
 * joined to long writes. Nothing here is thread-safe: module.c admits one caller at a time.
 */
#ifndef HYBRID_EXT4_DISK_H
#define HYBRID_EXT4_DISK_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <ext2fs/ext2fs.h>
#include <stdbool.h>
#include <stdint.h>

#define BLOCK 4096u

struct slot {
    uint64_t block;
    int32_t next; /* the next slot of the same bucket, -1: none */
    bool used, dirty, recent;
};

struct disk {
    PyObject *read; /* read(offset, length) of what lies below; NULL: nothing but zeros */
    int fd;         /* the scratch file, owned by the caller */
    uint64_t blocks;
    uint8_t *written; /* one bit a block: its content is in the scratch file */

    struct slot *slots;
    uint8_t *cached; /* the content of the slots */
    int32_t *buckets;
    uint32_t in_use, hand;

    uint8_t *joined; /* data on its way to the scratch file, one run of blocks */
    uint64_t joined_start;
    uint32_t joined_count;

    uint8_t *ahead; /* blocks from below, read ahead of a sequential reader */
    uint64_t ahead_start, last_miss;
    uint32_t ahead_count;
};

/* All of these return 0 or an errcode_t; with EXT2_ET_CANCEL_REQUESTED a Python exception is set. */
errcode_t disk_init(struct disk *disk, PyObject *read, int fd, uint64_t blocks);
void disk_free(struct disk *disk);
errcode_t disk_read(struct disk *disk, uint64_t offset, size_t length, void *to);
errcode_t disk_write(struct disk *disk, uint64_t offset, size_t length, const void *from);
/* Whole blocks of file data, around the cache. from == NULL: zeros. */
errcode_t disk_write_data(struct disk *disk, uint64_t block, uint32_t count, const uint8_t *from);
/* Bring everything to the scratch file. */
errcode_t disk_flush(struct disk *disk);

extern struct struct_io_manager disk_io_manager;
/* The name under which disk_io_manager opens this disk: at least 32 bytes. */
void disk_name(const struct disk *disk, char *name);

#endif
