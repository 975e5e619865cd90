/* One ext4 file system that is being changed, and what the parts of the module do to it.
 *
 * A function that returns int gives 0, or -1 with a Python exception set. What makes files and writes
 * their content may be called without the GIL; errors.c and disk.c take it where they need it.
 */
#ifndef HYBRID_EXT4_FILESYSTEM_H
#define HYBRID_EXT4_FILESYSTEM_H

#include "disk.h"

#define DIR_BUCKETS 4096u
#define NAME_MAX_BYTES 255u
#define LINK_LIMIT 65000u

/* An inode as it lies on the disk: 256 bytes, with room for attributes behind the fields. */
union inode {
    struct ext2_inode_large large;
    struct ext2_inode base;
    uint8_t bytes[256];
};

struct extent {
    uint32_t logical, count;
    blk64_t physical;
};

struct extents {
    struct extent *list;
    uint32_t count, capacity;
};

/* A directory in memory, with its blocks as they are to be on the disk. */
struct dir {
    struct dir *next; /* in the same bucket */
    ext2_ino_t ino;
    uint32_t blocks;   /* in data */
    uint32_t mapped;   /* of them, those that have a place on the disk */
    uint32_t capacity; /* blocks that data, physical and changed have room for */
    uint8_t *data;
    blk64_t *physical;
    bool *changed;
    uint32_t *table; /* name -> place of the entry in data; open addressing */
    uint32_t table_size, table_used;
    uint32_t live;    /* entries, without "." and ".." */
    uint32_t hint;    /* the first block worth a look for room */
    uint32_t links;   /* of the directory's inode */
    bool indexed;     /* data holds a hash tree which is right */
    bool touched;     /* something is to be written */
};

struct attributes {
    unsigned int mode; /* with the type */
    unsigned int uid, gid;
    long long seconds;
    unsigned int nanoseconds;
};

/* A file that is being made: where, and what becomes of it. */
struct new_file {
    unsigned int dir, ino;
    const char *name;
    Py_ssize_t length;
    struct attributes attributes;
    union inode inode;
};

/* The regular file whose content is being written. */
struct writer {
    bool open;
    ext2_ino_t ino;
    union inode inode;
    uint64_t size, position;
    struct extents extents;
    uint32_t next_block;  /* the first logical block that is neither written nor a hole */
    uint32_t zero_blocks; /* zeros behind it that may become a hole */
    uint32_t partial;     /* bytes in tail */
    uint8_t tail[BLOCK];
};

typedef struct {
    PyObject_HEAD
    struct disk disk;
    ext2_filsys fs;
    bool busy; /* one caller at a time: the GIL is released inside */
    bool broken; /* an error left it half changed */
    blk64_t goal;
    ext2_ino_t inode_goal;
    uint8_t *fresh; /* one bit an inode: it is of this layer */
    struct dir *dirs[DIR_BUCKETS];
    size_t dir_memory;  /* bytes of all directories in memory */
    size_t largest_dir; /* of the largest one so far */
    struct writer writer;
    unsigned long long run_used; /* of the archive, by the last run of plain files */
} FileSystem;

extern PyObject *native_error;

/* errors.c: set native_error(kind, text). Kinds: full, limit, format, missing, system. */
int fail(const char *kind, const char *format, ...);
int fail_code(errcode_t code, const char *doing);
int misuse(const char *text); /* ValueError: a mistake of the caller */

/* format.c */
int format_filesystem(FileSystem *self, unsigned int bytes_per_inode, const uint8_t uuid[16]);
int open_filesystem(FileSystem *self);

/* inodes.c */
int read_inode(FileSystem *self, ext2_ino_t ino, union inode *inode);
int write_inode(FileSystem *self, ext2_ino_t ino, union inode *inode);
void set_attributes(union inode *inode, const struct attributes *attributes);
int new_inode(FileSystem *self, const struct attributes *attributes, union inode *inode,
              ext2_ino_t *ino);
int drop_link(FileSystem *self, ext2_ino_t ino);
int free_inode(FileSystem *self, ext2_ino_t ino, union inode *inode, bool directory);
bool is_fresh(const FileSystem *self, ext2_ino_t ino);
void set_fresh(FileSystem *self, ext2_ino_t ino, bool fresh);

/* attributes.c */
int replace_xattrs(FileSystem *self, ext2_ino_t ino, PyObject *attributes, bool keep_others);
PyObject *list_xattrs(FileSystem *self, ext2_ino_t ino);

/* blocks.c */
int allocate(FileSystem *self, uint64_t contiguous, uint64_t wanted, blk64_t *start,
             uint64_t *count);
int add_extent(struct extents *extents, uint32_t logical, blk64_t physical, uint64_t count);
int map_extents(FileSystem *self, ext2_ino_t ino, union inode *inode,
                const struct extents *extents);
int free_blocks(FileSystem *self, ext2_ino_t ino, union inode *inode, uint64_t from);

/* files.c. The name must be new: that is the caller's to see to. */
int type_of(unsigned int mode);
struct dir *name_new(FileSystem *self, struct new_file *file);
int begin_new(FileSystem *self, struct new_file *file, uint64_t size);

/* run.c */
struct run {
    size_t used; /* bytes of the archive */
    unsigned long long files, bytes;
};
int put_run(FileSystem *self, const uint8_t *data, size_t length, PyObject *known,
            struct run *run);

/* content.c */
int begin_content(FileSystem *self, ext2_ino_t ino, const union inode *inode, uint64_t size);
int write_content(FileSystem *self, const uint8_t *from, uint64_t length); /* NULL: zeros */
int end_content(FileSystem *self);

/* dirs.c */
struct dir *get_dir(FileSystem *self, ext2_ino_t ino);
struct dir *make_dir(FileSystem *self, ext2_ino_t ino, ext2_ino_t parent);
void forget_dir(FileSystem *self, ext2_ino_t ino);
void forget_dirs(FileSystem *self);
int find_entry(FileSystem *self, struct dir *dir, const char *name, size_t length,
               ext2_ino_t *ino, int *type); /* 1: found, 0: not */
int add_entry(FileSystem *self, struct dir *dir, const char *name, size_t length, ext2_ino_t ino,
              int type);
int remove_entry(FileSystem *self, struct dir *dir, const char *name, size_t length);
int flush_dirs(FileSystem *self);
int trim_dirs(FileSystem *self);
int grow_dir(struct dir *dir, uint32_t blocks);
PyObject *list_dir(FileSystem *self, struct dir *dir);

/* htree.c */
int hash_name(FileSystem *self, const char *name, size_t length, uint32_t *major,
              uint32_t *minor);
int find_leaf(FileSystem *self, struct dir *dir, uint32_t hash, uint32_t *block);
int rebuild_dir(FileSystem *self, struct dir *dir);

/* A directory entry in a block; rec_len is at most 4096 here, so no encoding of 65536. */
static inline struct ext2_dir_entry_2 *entry_at(const struct dir *dir, uint32_t place)
{
    return (struct ext2_dir_entry_2 *)(void *)(dir->data + place);
}

static inline uint32_t entry_size(size_t name_length)
{
    return (uint32_t)(8 + name_length + 3) & ~3u;
}

#endif
