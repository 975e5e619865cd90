/* New files of all kinds: an inode and a name. */
#include "filesystem.h"

int type_of(unsigned int mode)
{
    switch (mode & LINUX_S_IFMT) {
    case LINUX_S_IFREG:
        return EXT2_FT_REG_FILE;
    case LINUX_S_IFDIR:
        return EXT2_FT_DIR;
    case LINUX_S_IFLNK:
        return EXT2_FT_SYMLINK;
    case LINUX_S_IFCHR:
        return EXT2_FT_CHRDEV;
    case LINUX_S_IFBLK:
        return EXT2_FT_BLKDEV;
    case LINUX_S_IFIFO:
        return EXT2_FT_FIFO;
    default:
        return EXT2_FT_UNKNOWN;
    }
}

/* Takes an inode and gives it its name. */
struct dir *name_new(FileSystem *self, struct new_file *f)
{
    struct dir *dir = trim_dirs(self) ? NULL : get_dir(self, f->dir);
    if (!dir || new_inode(self, &f->attributes, &f->inode, &f->ino) ||
        add_entry(self, dir, f->name, (size_t)f->length, f->ino, type_of(f->attributes.mode)))
        return NULL;
    return dir;
}

int begin_new(FileSystem *self, struct new_file *f, uint64_t size)
{
    f->attributes.mode = (f->attributes.mode & 07777) | LINUX_S_IFREG;
    if (!name_new(self, f))
        return -1;
    /* Written at once, so that a part that reads it sees no other file's remains. */
    return write_inode(self, f->ino, &f->inode) || begin_content(self, f->ino, &f->inode, size);
}
