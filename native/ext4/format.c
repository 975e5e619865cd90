/* Making a file system, and opening one.
 *
 * What is made depends on nothing but its size: no clock, no random numbers, no configuration file.
 * It has no journal, since images are read-only; no checksums of its own, since each block of an
 * image has one already; no backups of superblock and descriptors, since layers never change.
 */
#include "filesystem.h"

#include <stdlib.h>

#define NOW 1 /* seconds; with 0 the library would look at the clock */

static void set_parameters(struct ext2_super_block *super, blk64_t blocks,
                           unsigned int bytes_per_inode)
{
    blk64_t inodes = blocks * BLOCK / bytes_per_inode;
    memset(super, 0, sizeof *super);
    ext2fs_blocks_count_set(super, blocks);
    super->s_inodes_count = inodes < UINT32_MAX ? (uint32_t)inodes : UINT32_MAX;
    super->s_log_block_size = super->s_log_cluster_size = 2; /* 1024 << 2 */
    super->s_rev_level = EXT2_DYNAMIC_REV;
    super->s_inode_size = sizeof(union inode);
    super->s_log_groups_per_flex = 4;
    super->s_desc_size = EXT2_MIN_DESC_SIZE_64BIT;
    super->s_feature_compat = EXT2_FEATURE_COMPAT_EXT_ATTR | EXT2_FEATURE_COMPAT_DIR_INDEX |
                              EXT4_FEATURE_COMPAT_SPARSE_SUPER2;
    super->s_feature_incompat = EXT2_FEATURE_INCOMPAT_FILETYPE | EXT3_FEATURE_INCOMPAT_EXTENTS |
                                EXT4_FEATURE_INCOMPAT_64BIT | EXT4_FEATURE_INCOMPAT_FLEX_BG;
    super->s_feature_ro_compat =
        EXT2_FEATURE_RO_COMPAT_SPARSE_SUPER | EXT2_FEATURE_RO_COMPAT_LARGE_FILE |
        EXT4_FEATURE_RO_COMPAT_HUGE_FILE | EXT4_FEATURE_RO_COMPAT_DIR_NLINK |
        EXT4_FEATURE_RO_COMPAT_EXTRA_ISIZE;
}

static void set_identity(struct ext2_super_block *super, const uint8_t uuid[16])
{
    memcpy(super->s_uuid, uuid, sizeof super->s_uuid);
    memcpy(super->s_hash_seed, uuid, sizeof super->s_hash_seed);
    super->s_def_hash_version = EXT2_HASH_HALF_MD4;
    super->s_flags |= EXT2_FLAGS_SIGNED_HASH; /* on every processor */
    super->s_default_mount_opts = EXT2_DEFM_XATTR_USER | EXT2_DEFM_ACL;
    super->s_max_mnt_count = -1;
    super->s_mnt_count = 0;
    super->s_checkinterval = 0;
    super->s_mkfs_time = super->s_lastcheck = super->s_wtime = NOW;
    super->s_mtime = 0;
    super->s_kbytes_written = 0;
    super->s_min_extra_isize = super->s_want_extra_isize =
        sizeof(struct ext2_inode_large) - EXT2_GOOD_OLD_INODE_SIZE;
}

static int make_directories(FileSystem *self)
{
    struct attributes root = {.mode = LINUX_S_IFDIR | 0755};
    struct attributes lost = {.mode = LINUX_S_IFDIR | 0700};
    union inode inode;
    ext2_ino_t ino;
    for (ino = EXT2_BAD_INO; ino < EXT2_FIRST_INODE(self->fs->super); ino++)
        ext2fs_inode_alloc_stats2(self->fs, ino, +1, ino == EXT2_ROOT_INO);
    memset(&inode, 0, sizeof inode);
    set_attributes(&inode, &root);
    inode.base.i_links_count = 3;
    inode.base.i_flags = EXT4_EXTENTS_FL;
    if (write_inode(self, EXT2_ROOT_INO, &inode))
        return -1;
    struct dir *dir = make_dir(self, EXT2_ROOT_INO, EXT2_ROOT_INO);
    if (!dir || new_inode(self, &lost, &inode, &ino))
        return -1;
    dir->links = 3;
    inode.base.i_links_count = 2;
    inode.base.i_flags = EXT4_EXTENTS_FL;
    if (write_inode(self, ino, &inode) ||
        add_entry(self, dir, "lost+found", 10, ino, EXT2_FT_DIR))
        return -1;
    dir = make_dir(self, ino, EXT2_ROOT_INO);
    if (!dir || grow_dir(dir, 4))
        return -1;
    for (; dir->blocks < 4; dir->blocks++) {
        entry_at(dir, dir->blocks * BLOCK)->rec_len = BLOCK;
        dir->changed[dir->blocks] = true;
        self->dir_memory += BLOCK;
    }
    return flush_dirs(self);
}

static int prepare(FileSystem *self)
{
    ext2_filsys fs = self->fs;
    fs->now = NOW;
    fs->flags |= EXT2_FLAG_MASTER_SB_ONLY;
    self->goal = fs->super->s_first_data_block;
    self->inode_goal = EXT2_FIRST_INODE(fs->super);
    self->fresh = calloc(fs->super->s_inodes_count / 8 + 1, 1);
    return self->fresh ? 0 : fail_code(ENOMEM, "inodes");
}

int format_filesystem(FileSystem *self, unsigned int bytes_per_inode, const uint8_t uuid[16])
{
    struct ext2_super_block parameters;
    char name[32];
    disk_name(&self->disk, name);
    set_parameters(&parameters, self->disk.blocks, bytes_per_inode);
    errcode_t error = ext2fs_initialize(name, EXT2_FLAG_64BITS, &parameters, &disk_io_manager,
                                        &self->fs);
    if (error)
        return fail_code(error, "making the file system");
    set_identity(self->fs->super, uuid);
    if (prepare(self))
        return -1;
    error = ext2fs_allocate_tables(self->fs);
    if (error)
        return fail_code(error, "making the file system");
    return make_directories(self);
}

static int check_features(struct ext2_super_block *super, uint64_t blocks)
{
    const uint32_t incompat = EXT2_FEATURE_INCOMPAT_FILETYPE | EXT3_FEATURE_INCOMPAT_EXTENTS |
                              EXT4_FEATURE_INCOMPAT_64BIT | EXT4_FEATURE_INCOMPAT_FLEX_BG;
    const uint32_t ro_compat =
        EXT2_FEATURE_RO_COMPAT_SPARSE_SUPER | EXT2_FEATURE_RO_COMPAT_LARGE_FILE |
        EXT4_FEATURE_RO_COMPAT_HUGE_FILE | EXT4_FEATURE_RO_COMPAT_GDT_CSUM |
        EXT4_FEATURE_RO_COMPAT_DIR_NLINK | EXT4_FEATURE_RO_COMPAT_EXTRA_ISIZE;
    if (super->s_feature_incompat & EXT3_FEATURE_INCOMPAT_RECOVER)
        return fail("unsupported", "its journal has to be replayed first");
    if (super->s_feature_incompat & ~incompat || super->s_feature_ro_compat & ~ro_compat)
        return fail("unsupported", "features that hybrid does not write (incompat %x, ro_compat %x)",
                    super->s_feature_incompat & ~incompat,
                    super->s_feature_ro_compat & ~ro_compat);
    if (~super->s_feature_incompat &
        (EXT3_FEATURE_INCOMPAT_EXTENTS | EXT2_FEATURE_INCOMPAT_FILETYPE))
        return fail("unsupported", "it has no extents (ext2 or ext3)");
    if (super->s_log_block_size != 2 || EXT2_INODE_SIZE(super) != sizeof(union inode))
        return fail("unsupported", "blocks other than 4096 or inodes other than 256 bytes");
    if (ext2fs_blocks_count(super) > blocks)
        return fail("format", "it is larger than the disk");
    if (!(super->s_state & EXT2_VALID_FS) || super->s_state & EXT2_ERROR_FS)
        return fail("format", "it was not unmounted cleanly");
    return 0;
}

/* The reference leaves the totals as they were when it has applied a layer; the groups are right. */
static void correct_totals(ext2_filsys fs)
{
    blk64_t blocks = 0;
    ext2_ino_t inodes = 0;
    for (dgrp_t group = 0; group < fs->group_desc_count; group++) {
        blocks += ext2fs_bg_free_blocks_count(fs, group);
        inodes += ext2fs_bg_free_inodes_count(fs, group);
    }
    ext2fs_free_blocks_count_set(fs->super, blocks);
    fs->super->s_free_inodes_count = inodes;
}

int open_filesystem(FileSystem *self)
{
    char name[32];
    disk_name(&self->disk, name);
    errcode_t error = ext2fs_open2(name, NULL, EXT2_FLAG_RW | EXT2_FLAG_64BITS, 0, 0,
                                   &disk_io_manager, &self->fs);
    if (error)
        return fail_code(error, "opening the file system");
    if (check_features(self->fs->super, self->disk.blocks))
        return -1;
    error = ext2fs_check_desc(self->fs);
    if (!error)
        error = ext2fs_read_bitmaps(self->fs);
    if (error)
        return fail_code(error, "opening the file system");
    correct_totals(self->fs);
    return prepare(self);
}
