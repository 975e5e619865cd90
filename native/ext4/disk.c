#include "disk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SLOTS 4096u /* 16 MiB of metadata */
#define BUCKETS 8192u
#define JOIN 256u /* 1 MiB of data in one write */
#define AHEAD 64u

static bool is_written(const struct disk *disk, uint64_t block)
{
    return disk->written[block >> 3] >> (block & 7) & 1;
}

static void mark_written(struct disk *disk, uint64_t block, uint32_t count)
{
    for (uint64_t b = block; b < block + count; b++)
        disk->written[b >> 3] |= (uint8_t)(1u << (b & 7));
}

errcode_t disk_init(struct disk *disk, PyObject *read, int fd, uint64_t blocks)
{
    memset(disk, 0, sizeof *disk);
    disk->read = read;
    Py_XINCREF(read);
    disk->fd = fd;
    disk->blocks = blocks;
    disk->last_miss = UINT64_MAX - 1;
    disk->written = calloc(blocks / 8 + 1, 1);
    disk->slots = calloc(SLOTS, sizeof *disk->slots);
    disk->cached = malloc((size_t)SLOTS * BLOCK);
    disk->buckets = malloc(BUCKETS * sizeof *disk->buckets);
    disk->joined = malloc((size_t)JOIN * BLOCK);
    disk->ahead = malloc((size_t)AHEAD * BLOCK);
    if (!disk->written || !disk->slots || !disk->cached || !disk->buckets || !disk->joined ||
        !disk->ahead)
        return ENOMEM;
    memset(disk->buckets, 0xff, BUCKETS * sizeof *disk->buckets);
    return 0;
}

void disk_free(struct disk *disk)
{
    Py_CLEAR(disk->read);
    free(disk->written);
    free(disk->slots);
    free(disk->cached);
    free(disk->buckets);
    free(disk->joined);
    free(disk->ahead);
    memset(disk, 0, sizeof *disk);
    disk->fd = -1;
}

static errcode_t write_scratch(struct disk *disk, uint64_t block, uint32_t count,
                               const uint8_t *from)
{
    size_t done = 0, length = (size_t)count * BLOCK;
    while (done < length) {
        ssize_t n = pwrite(disk->fd, from + done, length - done,
                           (off_t)(block * BLOCK + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno;
        done += (size_t)n;
    }
    mark_written(disk, block, count);
    return 0;
}

static errcode_t read_scratch(struct disk *disk, uint64_t block, uint8_t *to)
{
    size_t done = 0;
    while (done < BLOCK) {
        ssize_t n = pread(disk->fd, to + done, BLOCK - done, (off_t)(block * BLOCK + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno;
        if (n == 0)
            return EIO; /* it was written, so somebody cut the file */
        done += (size_t)n;
    }
    return 0;
}

static errcode_t call_below(struct disk *disk, uint64_t block, uint32_t count, uint8_t *to)
{
    size_t length = (size_t)count * BLOCK;
    errcode_t result = EXT2_ET_CANCEL_REQUESTED;
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *answer = PyErr_Occurred() ? NULL
                                        : PyObject_CallFunction(disk->read, "KK",
                                                                (unsigned long long)block * BLOCK,
                                                                (unsigned long long)length);
    Py_buffer view;
    if (answer && PyObject_GetBuffer(answer, &view, PyBUF_SIMPLE) == 0) {
        if ((size_t)view.len == length) {
            memcpy(to, view.buf, length);
            result = 0;
        } else {
            PyErr_Format(PyExc_ValueError, "a read of %zu bytes gave %zd", length, view.len);
        }
        PyBuffer_Release(&view);
    }
    Py_XDECREF(answer);
    PyGILState_Release(gil);
    return result;
}

/* One block from below. A reader that goes forward (the bitmaps at opening) is read ahead for. */
static errcode_t read_below(struct disk *disk, uint64_t block, uint8_t *to)
{
    if (!disk->read) {
        memset(to, 0, BLOCK);
        return 0;
    }
    if (block - disk->ahead_start >= disk->ahead_count) {
        uint32_t count = block == disk->last_miss + 1 ? AHEAD : 1;
        if (count > disk->blocks - block)
            count = (uint32_t)(disk->blocks - block);
        disk->ahead_count = 0;
        errcode_t error = call_below(disk, block, count, disk->ahead);
        if (error)
            return error;
        disk->ahead_start = block;
        disk->ahead_count = count;
    }
    memcpy(to, disk->ahead + (block - disk->ahead_start) * BLOCK, BLOCK);
    disk->last_miss = block;
    return 0;
}

static errcode_t flush_joined(struct disk *disk)
{
    uint32_t count = disk->joined_count;
    disk->joined_count = 0;
    return count ? write_scratch(disk, disk->joined_start, count, disk->joined) : 0;
}

static bool is_joined(const struct disk *disk, uint64_t block)
{
    return block - disk->joined_start < disk->joined_count;
}

/* --- The cache of metadata */

static uint32_t bucket_of(uint64_t block)
{
    return (uint32_t)((block * 0x9E3779B97F4A7C15u) >> 51) % BUCKETS;
}

static int32_t find_slot(const struct disk *disk, uint64_t block)
{
    int32_t at = disk->buckets[bucket_of(block)];
    while (at >= 0 && disk->slots[at].block != block)
        at = disk->slots[at].next;
    return at;
}

static void unlink_slot(struct disk *disk, int32_t slot)
{
    int32_t *link = &disk->buckets[bucket_of(disk->slots[slot].block)];
    while (*link != slot)
        link = &disk->slots[*link].next;
    *link = disk->slots[slot].next;
    disk->slots[slot].used = false;
}

static errcode_t clean_slot(struct disk *disk, int32_t slot)
{
    struct slot *s = &disk->slots[slot];
    if (!s->dirty)
        return 0;
    /* Older data of this block may still wait to be written: it must not come after ours. */
    errcode_t error = is_joined(disk, s->block) ? flush_joined(disk) : 0;
    if (!error)
        error = write_scratch(disk, s->block, 1, disk->cached + (size_t)slot * BLOCK);
    if (!error)
        s->dirty = false;
    return error;
}

static errcode_t new_slot(struct disk *disk, uint64_t block, int32_t *slot)
{
    uint32_t at;
    if (disk->in_use < SLOTS) {
        at = disk->in_use++;
    } else {
        while (disk->slots[disk->hand].used && disk->slots[disk->hand].recent) {
            disk->slots[disk->hand].recent = false;
            disk->hand = (disk->hand + 1) % SLOTS;
        }
        at = disk->hand;
        disk->hand = (disk->hand + 1) % SLOTS;
        if (disk->slots[at].used) {
            errcode_t error = clean_slot(disk, (int32_t)at);
            if (error)
                return error;
            unlink_slot(disk, (int32_t)at);
        }
    }
    struct slot *s = &disk->slots[at];
    int32_t *bucket = &disk->buckets[bucket_of(block)];
    *s = (struct slot){.block = block, .next = *bucket, .used = true};
    *bucket = *slot = (int32_t)at;
    return 0;
}

static errcode_t fill_slot(struct disk *disk, uint64_t block, int32_t *slot)
{
    errcode_t error = is_joined(disk, block) ? flush_joined(disk) : 0;
    if (!error)
        error = new_slot(disk, block, slot);
    if (error)
        return error;
    uint8_t *to = disk->cached + (size_t)*slot * BLOCK;
    error = is_written(disk, block) ? read_scratch(disk, block, to) : read_below(disk, block, to);
    if (error)
        unlink_slot(disk, *slot);
    return error;
}

errcode_t disk_read(struct disk *disk, uint64_t offset, size_t length, void *to)
{
    uint8_t *out = to;
    while (length) {
        uint64_t block = offset / BLOCK;
        size_t from = offset % BLOCK, n = BLOCK - from < length ? BLOCK - from : length;
        if (block >= disk->blocks)
            return EXT2_ET_SHORT_READ;
        int32_t slot = find_slot(disk, block);
        if (slot < 0) {
            errcode_t error = fill_slot(disk, block, &slot);
            if (error)
                return error;
        }
        disk->slots[slot].recent = true;
        memcpy(out, disk->cached + (size_t)slot * BLOCK + from, n);
        out += n, offset += n, length -= n;
    }
    return 0;
}

errcode_t disk_write(struct disk *disk, uint64_t offset, size_t length, const void *from)
{
    const uint8_t *in = from;
    while (length) {
        uint64_t block = offset / BLOCK;
        size_t at = offset % BLOCK, n = BLOCK - at < length ? BLOCK - at : length;
        if (block >= disk->blocks)
            return EXT2_ET_SHORT_WRITE;
        int32_t slot = find_slot(disk, block);
        bool fresh = slot < 0 && n == BLOCK;
        if (slot < 0) {
            errcode_t error = fresh ? new_slot(disk, block, &slot) : fill_slot(disk, block, &slot);
            if (error)
                return error;
        }
        uint8_t *to = disk->cached + (size_t)slot * BLOCK + at;
        disk->slots[slot].recent = true;
        /* libext2fs writes all bitmaps whatever has changed: what is equal stays clean. */
        if (fresh || memcmp(to, in, n) != 0) {
            memcpy(to, in, n);
            disk->slots[slot].dirty = true;
        }
        in += n, offset += n, length -= n;
    }
    return 0;
}

errcode_t disk_write_data(struct disk *disk, uint64_t block, uint32_t count, const uint8_t *from)
{
    if (block + count > disk->blocks)
        return EXT2_ET_SHORT_WRITE;
    for (uint32_t i = 0; i < count; i++) {
        int32_t slot = find_slot(disk, block + i);
        if (slot >= 0) {
            disk->slots[slot].dirty = disk->slots[slot].recent = false;
            unlink_slot(disk, slot);
        }
    }
    while (count) {
        if (block != disk->joined_start + disk->joined_count || disk->joined_count == JOIN) {
            errcode_t error = flush_joined(disk);
            if (error)
                return error;
            if (from && count >= JOIN)
                return write_scratch(disk, block, count, from);
            disk->joined_start = block;
        }
        uint32_t n = JOIN - disk->joined_count < count ? JOIN - disk->joined_count : count;
        uint8_t *to = disk->joined + (size_t)disk->joined_count * BLOCK;
        if (from) {
            memcpy(to, from, (size_t)n * BLOCK);
            from += (size_t)n * BLOCK;
        } else {
            memset(to, 0, (size_t)n * BLOCK);
        }
        disk->joined_count += n;
        block += n, count -= n;
    }
    return 0;
}

errcode_t disk_flush(struct disk *disk)
{
    errcode_t error = flush_joined(disk);
    for (uint32_t i = 0; i < disk->in_use && !error; i++)
        if (disk->slots[i].used)
            error = clean_slot(disk, (int32_t)i);
    return error;
}

/* --- The same as an io_manager of libext2fs */

void disk_name(const struct disk *disk, char *name)
{
    snprintf(name, 32, "%p", (const void *)disk);
}

static errcode_t io_open(const char *name, int flags, io_channel *channel)
{
    (void)flags;
    void *disk;
    if (sscanf(name, "%p", &disk) != 1)
        return EXT2_ET_BAD_DEVICE_NAME;
    io_channel io = calloc(1, sizeof *io);
    char *copy = strdup(name);
    if (!io || !copy) {
        free(io);
        free(copy);
        return ENOMEM;
    }
    io->magic = EXT2_ET_MAGIC_IO_CHANNEL;
    io->manager = &disk_io_manager;
    io->name = copy;
    io->block_size = 1024;
    io->refcount = 1;
    io->private_data = disk;
    *channel = io;
    return 0;
}

static errcode_t io_close(io_channel io)
{
    if (--io->refcount > 0)
        return 0;
    free(io->name);
    free(io);
    return 0;
}

static errcode_t io_blksize(io_channel io, int size)
{
    io->block_size = size;
    return 0;
}

/* A negative count is a number of bytes. */
static size_t io_length(io_channel io, int count)
{
    return count < 0 ? (size_t)-count : (size_t)count * (size_t)io->block_size;
}

static errcode_t io_read64(io_channel io, unsigned long long block, int count, void *to)
{
    return disk_read(io->private_data, block * (uint64_t)io->block_size, io_length(io, count), to);
}

static errcode_t io_write64(io_channel io, unsigned long long block, int count, const void *from)
{
    return disk_write(io->private_data, block * (uint64_t)io->block_size, io_length(io, count),
                      from);
}

static errcode_t io_read(io_channel io, unsigned long block, int count, void *to)
{
    return io_read64(io, block, count, to);
}

static errcode_t io_write(io_channel io, unsigned long block, int count, const void *from)
{
    return io_write64(io, block, count, from);
}

static errcode_t io_write_byte(io_channel io, unsigned long offset, int count, const void *from)
{
    return disk_write(io->private_data, offset, (size_t)count, from);
}

static errcode_t io_flush(io_channel io)
{
    (void)io;
    return 0; /* disk_flush is called once, at the end */
}

struct struct_io_manager disk_io_manager = {
    .magic = EXT2_ET_MAGIC_IO_MANAGER,
    .name = "hybrid layer",
    .open = io_open,
    .close = io_close,
    .set_blksize = io_blksize,
    .read_blk = io_read,
    .write_blk = io_write,
    .flush = io_flush,
    .write_byte = io_write_byte,
    .read_blk64 = io_read64,
    .write_blk64 = io_write64,
};
