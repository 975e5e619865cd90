/* Inodes: read, written, taken and given back. */
#include "filesystem.h"

#define EXTRA_SIZE (sizeof(struct ext2_inode_large) - EXT2_GOOD_OLD_INODE_SIZE)
#define EARLIEST (-0x80000000LL)
#define LATEST 0x37fffffffLL /* two more bits than 32: the year 2446 */

int read_inode(FileSystem *self, ext2_ino_t ino, union inode *inode)
{
    errcode_t error = ext2fs_read_inode_full(self->fs, ino, &inode->base, sizeof *inode);
    return error ? fail_code(error, "reading an inode") : 0;
}

int write_inode(FileSystem *self, ext2_ino_t ino, union inode *inode)
{
    errcode_t error = ext2fs_write_inode_full(self->fs, ino, &inode->base, sizeof *inode);
    return error ? fail_code(error, "writing an inode") : 0;
}

/* True if the fields of the times' second halves are there, or could be added. An inode of other
 * makers may have its attributes where they would be. */
static bool has_extra(union inode *inode)
{
    const size_t needed = 24; /* up to i_crtime_extra */
    uint32_t magic;
    if (inode->large.i_extra_isize >= needed)
        return true;
    memcpy(&magic, inode->bytes + EXT2_GOOD_OLD_INODE_SIZE + (inode->large.i_extra_isize & ~3u),
           sizeof magic);
    if (magic == EXT2_EXT_ATTR_MAGIC)
        return false;
    memset(inode->bytes + EXT2_GOOD_OLD_INODE_SIZE, 0, sizeof *inode - EXT2_GOOD_OLD_INODE_SIZE);
    inode->large.i_extra_isize = EXTRA_SIZE;
    return true;
}

static void set_time(uint32_t *low, uint32_t *extra, long long seconds, unsigned int nanoseconds)
{
    if (seconds < EARLIEST)
        seconds = EARLIEST, nanoseconds = 0;
    if (seconds > LATEST)
        seconds = LATEST, nanoseconds = 0;
    *low = (uint32_t)seconds;
    if (extra)
        *extra = (uint32_t)((seconds - (int32_t)seconds) >> 32 & 3) | nanoseconds << 2;
}

/* All four times are the entry's: an image must not depend on when it was made. */
void set_attributes(union inode *inode, const struct attributes *a)
{
    struct ext2_inode_large *large = &inode->large;
    large->i_mode = (uint16_t)a->mode;
    large->i_uid = (uint16_t)a->uid;
    large->i_gid = (uint16_t)a->gid;
    large->osd2.linux2.l_i_uid_high = (uint16_t)(a->uid >> 16);
    large->osd2.linux2.l_i_gid_high = (uint16_t)(a->gid >> 16);
    bool extra = has_extra(inode);
    set_time(&large->i_mtime, extra ? &large->i_mtime_extra : NULL, a->seconds, a->nanoseconds);
    set_time(&large->i_atime, extra ? &large->i_atime_extra : NULL, a->seconds, a->nanoseconds);
    set_time(&large->i_ctime, extra ? &large->i_ctime_extra : NULL, a->seconds, a->nanoseconds);
    if (extra)
        set_time(&large->i_crtime, &large->i_crtime_extra, a->seconds, a->nanoseconds);
}

int new_inode(FileSystem *self, const struct attributes *attributes, union inode *inode,
              ext2_ino_t *ino)
{
    ext2_filsys fs = self->fs;
    ext2_ino_t first = EXT2_FIRST_INODE(fs->super), found = 0;
    errcode_t error = ENOENT;
    if (self->inode_goal < first)
        self->inode_goal = first;
    if (self->inode_goal <= fs->super->s_inodes_count)
        error = ext2fs_find_first_zero_inode_bitmap2(fs->inode_map, self->inode_goal,
                                                     fs->super->s_inodes_count, &found);
    if (error == ENOENT)
        error = ext2fs_find_first_zero_inode_bitmap2(fs->inode_map, first,
                                                     fs->super->s_inodes_count, &found);
    if (error == ENOENT)
        error = EXT2_ET_INODE_ALLOC_FAIL;
    if (error)
        return fail_code(error, "looking for a free inode");
    ext2fs_inode_alloc_stats2(fs, found, +1, LINUX_S_ISDIR(attributes->mode));
    self->inode_goal = found + 1;
    memset(inode, 0, sizeof *inode);
    inode->large.i_extra_isize = EXTRA_SIZE;
    inode->base.i_links_count = 1;
    set_attributes(inode, attributes);
    set_fresh(self, found, true);
    *ino = found;
    return 0;
}

static int free_xattrs(FileSystem *self, ext2_ino_t ino, union inode *inode)
{
    if (!ext2fs_file_acl_block(self->fs, &inode->base))
        return 0;
    errcode_t error = ext2fs_free_ext_attr(self->fs, ino, &inode->large);
    return error ? fail_code(error, "freeing extended attributes") : 0;
}

/* The inode becomes zeros, so that its block may become a hole again. */
int free_inode(FileSystem *self, ext2_ino_t ino, union inode *inode, bool directory)
{
    if (free_xattrs(self, ino, inode) || free_blocks(self, ino, inode, 0))
        return -1;
    memset(inode, 0, sizeof *inode);
    if (write_inode(self, ino, inode))
        return -1;
    ext2fs_inode_alloc_stats2(self->fs, ino, -1, directory);
    set_fresh(self, ino, false);
    return 0;
}

/* One name of a file is gone. With the last one the file is, too. */
int drop_link(FileSystem *self, ext2_ino_t ino)
{
    union inode inode;
    if (read_inode(self, ino, &inode))
        return -1;
    if (inode.base.i_links_count > 1) {
        inode.base.i_links_count--;
        return write_inode(self, ino, &inode);
    }
    return free_inode(self, ino, &inode, false);
}

bool is_fresh(const FileSystem *self, ext2_ino_t ino)
{
    return self->fresh[ino >> 3] >> (ino & 7) & 1;
}

void set_fresh(FileSystem *self, ext2_ino_t ino, bool fresh)
{
    uint8_t bit = (uint8_t)(1u << (ino & 7));
    if (fresh)
        self->fresh[ino >> 3] |= bit;
    else
        self->fresh[ino >> 3] &= (uint8_t)~bit;
}
