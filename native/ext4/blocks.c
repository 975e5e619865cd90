/* Blocks: where they are taken from, and how a file's map of them is written. */
#include "filesystem.h"

#include <errno.h>
#include <stdlib.h>

#define EXTENT_MAX 32768u /* blocks of one extent */
#define ROOT_EXTENTS 4u   /* extents that fit into the inode */
#define RUN_AIM 2048u     /* rather skip smaller holes than scatter a file: 8 MiB */
#define RUN_TRIES 256     /* but do not look through a disk full of small holes each time */

/* The first run of at least this many free blocks in a range; looks at so many runs at most.
 * (ext2fs_new_range does the same, but does not come back when no run is long enough.) */
static errcode_t find_run(ext2_filsys fs, blk64_t from, blk64_t last, uint64_t least, int tries,
                          blk64_t *start, uint64_t *count)
{
    while (from <= last && tries-- > 0) {
        blk64_t free, used;
        errcode_t error = ext2fs_find_first_zero_block_bitmap2(fs->block_map, from, last, &free);
        if (error)
            return error;
        error = ext2fs_find_first_set_block_bitmap2(fs->block_map, free, last, &used);
        if (error == ENOENT)
            used = last + 1;
        else if (error)
            return error;
        if (used - free >= least) {
            *start = free;
            *count = used - free;
            return 0;
        }
        from = used;
    }
    return ENOENT;
}

/* Takes up to ``wanted`` blocks behind those taken last, rather where ``contiguous`` ones are free. */
int allocate(FileSystem *self, uint64_t contiguous, uint64_t wanted, blk64_t *start,
             uint64_t *count)
{
    ext2_filsys fs = self->fs;
    blk64_t first = fs->super->s_first_data_block, last = ext2fs_blocks_count(fs->super) - 1;
    uint64_t least = contiguous < RUN_AIM ? contiguous : RUN_AIM;
    errcode_t error = find_run(fs, self->goal, last, least, RUN_TRIES, start, count);
    if (error == ENOENT)
        error = find_run(fs, self->goal, last, 1, 1, start, count);
    if (error == ENOENT)
        error = find_run(fs, first, last, least, RUN_TRIES, start, count);
    if (error == ENOENT)
        error = find_run(fs, first, last, 1, 1, start, count);
    if (error)
        return fail_code(error == ENOENT ? EXT2_ET_BLOCK_ALLOC_FAIL : error,
                         "looking for free blocks");
    if (*count > wanted)
        *count = wanted;
    ext2fs_block_alloc_stats_range(fs, *start, *count, +1);
    self->goal = *start + *count;
    return 0;
}

int add_extent(struct extents *extents, uint32_t logical, blk64_t physical, uint64_t count)
{
    struct extent *last = extents->count ? &extents->list[extents->count - 1] : NULL;
    while (count) {
        if (last && last->logical + last->count == logical &&
            last->physical + last->count == physical && last->count < EXTENT_MAX) {
            uint64_t room = EXTENT_MAX - last->count, n = room < count ? room : count;
            last->count += (uint32_t)n;
            logical += (uint32_t)n, physical += n, count -= n;
            continue;
        }
        if (extents->count == extents->capacity) {
            uint32_t capacity = extents->capacity ? extents->capacity * 2 : 16;
            void *list = realloc(extents->list, capacity * sizeof *extents->list);
            if (!list)
                return fail_code(ENOMEM, "extents");
            extents->list = list;
            extents->capacity = capacity;
        }
        last = &extents->list[extents->count++];
        *last = (struct extent){.logical = logical, .physical = physical};
    }
    return 0;
}

static void map_in_inode(union inode *inode, const struct extents *extents)
{
    struct ext3_extent_header *header = (void *)inode->base.i_block;
    struct ext3_extent *entry = (void *)(header + 1);
    memset(inode->base.i_block, 0, sizeof inode->base.i_block);
    header->eh_magic = ext2fs_cpu_to_le16(EXT3_EXT_MAGIC);
    header->eh_entries = ext2fs_cpu_to_le16((uint16_t)extents->count);
    header->eh_max = ext2fs_cpu_to_le16(ROOT_EXTENTS);
    for (uint32_t i = 0; i < extents->count; i++, entry++) {
        const struct extent *extent = &extents->list[i];
        entry->ee_block = ext2fs_cpu_to_le32(extent->logical);
        entry->ee_len = ext2fs_cpu_to_le16((uint16_t)extent->count);
        entry->ee_start = ext2fs_cpu_to_le32((uint32_t)extent->physical);
        entry->ee_start_hi = ext2fs_cpu_to_le16((uint16_t)(extent->physical >> 32));
    }
}

static int map_in_tree(FileSystem *self, ext2_ino_t ino, union inode *inode,
                       const struct extents *extents)
{
    ext2_extent_handle_t handle;
    memset(inode->base.i_block, 0, sizeof inode->base.i_block);
    if (write_inode(self, ino, inode))
        return -1;
    errcode_t error = ext2fs_extent_open2(self->fs, ino, &inode->base, &handle);
    if (error)
        return fail_code(error, "writing the extents of a file");
    for (uint32_t i = 0; i < extents->count && !error; i++) {
        struct ext2fs_extent extent = {
            .e_lblk = extents->list[i].logical,
            .e_pblk = extents->list[i].physical,
            .e_len = extents->list[i].count,
        };
        error = ext2fs_extent_insert(handle, EXT2_EXTENT_INSERT_AFTER, &extent);
    }
    ext2fs_extent_free(handle);
    return error ? fail_code(error, "writing the extents of a file") : 0;
}

/* Gives a file without blocks these. Changes only the inode in memory, and writes tree blocks. */
int map_extents(FileSystem *self, ext2_ino_t ino, union inode *inode,
                const struct extents *extents)
{
    uint64_t blocks = 0;
    for (uint32_t i = 0; i < extents->count; i++)
        blocks += extents->list[i].count;
    inode->base.i_flags |= EXT4_EXTENTS_FL;
    inode->base.i_blocks = 0;
    inode->base.osd2.linux2.l_i_blocks_hi = 0;
    if (inode->base.i_file_acl || inode->base.osd2.linux2.l_i_file_acl_high)
        blocks++;
    if (blocks) {
        errcode_t error = ext2fs_iblk_add_blocks(self->fs, &inode->base, blocks);
        if (error)
            return fail_code(error, "counting the blocks of a file");
    }
    if (extents->count <= ROOT_EXTENTS) {
        map_in_inode(inode, extents);
        return 0;
    }
    return map_in_tree(self, ino, inode, extents);
}

/* Frees the blocks from this logical one on. */
int free_blocks(FileSystem *self, ext2_ino_t ino, union inode *inode, uint64_t from)
{
    if (!ext2fs_inode_has_valid_blocks2(self->fs, &inode->base))
        return 0;
    errcode_t error = ext2fs_punch(self->fs, ino, &inode->base, NULL, from, ~0ULL);
    return error ? fail_code(error, "freeing the blocks of a file") : 0;
}
