/* The content of regular files, in order, from the tar stream to blocks. */
#include "filesystem.h"

#include <stdlib.h>

#define HOLE_MIN 16u /* zero blocks in a row that become a hole: 64 KiB */

static bool is_zero(const uint8_t *block)
{
    /* Equal to itself moved by eight bytes, and the first eight are zero. */
    uint64_t first;
    memcpy(&first, block, sizeof first);
    return first == 0 && memcmp(block, block + 8, BLOCK - 8) == 0;
}

int begin_content(FileSystem *self, ext2_ino_t ino, const union inode *inode, uint64_t size)
{
    struct writer *w = &self->writer;
    if (size > (uint64_t)(UINT32_MAX - 1) * BLOCK)
        return fail("limit", "%llu bytes are more than a file of ext4 can have (16 TiB)",
                    (unsigned long long)size);
    w->open = true;
    w->ino = ino;
    w->inode = *inode;
    w->size = size;
    w->position = 0;
    w->extents.count = 0;
    w->next_block = w->zero_blocks = w->partial = 0;
    return 0;
}

/* Writes blocks that hold something (or NULL: zeros too few for a hole) at next_block. */
static int put_blocks(FileSystem *self, const uint8_t *from, uint32_t count)
{
    struct writer *w = &self->writer;
    while (count) {
        blk64_t start;
        uint64_t got, left = (w->size + BLOCK - 1) / BLOCK - w->next_block;
        if (allocate(self, left < count ? count : left, count, &start, &got))
            return -1;
        if (add_extent(&w->extents, w->next_block, start, got))
            return -1;
        errcode_t error = disk_write_data(&self->disk, start, (uint32_t)got, from);
        if (error)
            return fail_code(error, "writing to the scratch file");
        if (from)
            from += got * BLOCK;
        w->next_block += (uint32_t)got;
        count -= (uint32_t)got;
    }
    return 0;
}

static int settle_zeros(FileSystem *self)
{
    struct writer *w = &self->writer;
    uint32_t zeros = w->zero_blocks;
    w->zero_blocks = 0;
    if (zeros < HOLE_MIN)
        return put_blocks(self, NULL, zeros);
    w->next_block += zeros;
    return 0;
}

static int write_blocks(FileSystem *self, const uint8_t *from, uint64_t count)
{
    struct writer *w = &self->writer;
    uint64_t at = 0;
    while (at < count) {
        uint64_t end = at;
        while (end < count && is_zero(from + end * BLOCK))
            end++;
        w->zero_blocks += (uint32_t)(end - at);
        for (at = end; end < count && !is_zero(from + end * BLOCK);)
            end++;
        if (end > at) {
            if (settle_zeros(self) ||
                put_blocks(self, from + at * BLOCK, (uint32_t)(end - at)))
                return -1;
            at = end;
        }
    }
    return 0;
}

int write_content(FileSystem *self, const uint8_t *from, uint64_t length)
{
    struct writer *w = &self->writer;
    if (!w->open || length > w->size - w->position)
        return misuse("more content than the file was begun with");
    w->position += length;
    if (w->partial) {
        uint32_t n = BLOCK - w->partial;
        if (n > length)
            n = (uint32_t)length;
        if (from) {
            memcpy(w->tail + w->partial, from, n);
            from += n;
        } else {
            memset(w->tail + w->partial, 0, n);
        }
        w->partial += n;
        length -= n;
        if (w->partial < BLOCK)
            return 0;
        w->partial = 0;
        if (write_blocks(self, w->tail, 1))
            return -1;
    }
    uint64_t blocks = length / BLOCK;
    w->partial = (uint32_t)(length % BLOCK);
    if (!from) {
        w->zero_blocks += (uint32_t)blocks;
        memset(w->tail, 0, w->partial);
        return 0;
    }
    if (w->partial)
        memcpy(w->tail, from + blocks * BLOCK, w->partial);
    return write_blocks(self, from, blocks);
}

int end_content(FileSystem *self)
{
    struct writer *w = &self->writer;
    if (!w->open || w->position != w->size)
        return misuse("less content than the file was begun with");
    w->open = false;
    if (w->partial) {
        memset(w->tail + w->partial, 0, BLOCK - w->partial);
        if (write_blocks(self, w->tail, 1))
            return -1;
    }
    /* Zeros at the end: a short run is written for the same reason as inside the file. */
    if (settle_zeros(self) || map_extents(self, w->ino, &w->inode, &w->extents))
        return -1;
    w->inode.base.i_size = (uint32_t)w->size;
    w->inode.base.i_size_high = (uint32_t)(w->size >> 32);
    if (w->extents.capacity > 4096) {
        free(w->extents.list);
        w->extents = (struct extents){0};
    }
    return write_inode(self, w->ino, &w->inode);
}
