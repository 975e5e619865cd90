/* Directories: held in memory while they change, written when the layer ends or memory is short.
 *
 * Entries never move while a directory is in memory, so the table of names stays right. A directory
 * of more than one block is written as a hash tree. One that was a tree already keeps its blocks as
 * long as each new name fits into the leaf of its hash; else it is built anew (htree.c).
 */
#include "filesystem.h"

#include <stdlib.h>

#define MEMORY_LIMIT (24u << 20) /* bytes of directories, beside twice the largest of them */
#define BLOCKS_LIMIT (1u << 18)  /* 1 GiB: no directory in a sane image is larger */
#define GONE 1u                  /* in the table: was removed. 0 is free; entries begin at 12 */

static void count_memory(FileSystem *self, const struct dir *dir, uint32_t more)
{
    size_t size = (size_t)dir->blocks * BLOCK;
    self->dir_memory += (size_t)more * BLOCK;
    if (size > self->largest_dir)
        self->largest_dir = size;
}

static struct dir **bucket_of(FileSystem *self, ext2_ino_t ino)
{
    return &self->dirs[ino % DIR_BUCKETS];
}

static void free_dir(FileSystem *self, struct dir *dir)
{
    self->dir_memory -= (size_t)dir->blocks * BLOCK;
    free(dir->data);
    free(dir->physical);
    free(dir->changed);
    free(dir->table);
    free(dir);
}

void forget_dir(FileSystem *self, ext2_ino_t ino)
{
    for (struct dir **link = bucket_of(self, ino); *link; link = &(*link)->next) {
        if ((*link)->ino == ino) {
            struct dir *dir = *link;
            *link = dir->next;
            free_dir(self, dir);
            return;
        }
    }
}

void forget_dirs(FileSystem *self)
{
    for (uint32_t i = 0; i < DIR_BUCKETS; i++) {
        while (self->dirs[i]) {
            struct dir *dir = self->dirs[i];
            self->dirs[i] = dir->next;
            free_dir(self, dir);
        }
    }
}

/* Room for this many blocks; the new ones are zeros. */
int grow_dir(struct dir *dir, uint32_t blocks)
{
    if (blocks > BLOCKS_LIMIT)
        return fail("limit", "a directory of more than 1 GiB");
    if (blocks <= dir->capacity)
        return 0;
    uint32_t capacity = dir->capacity ? dir->capacity : 1;
    while (capacity < blocks)
        capacity *= 2;
    void *data = realloc(dir->data, (size_t)capacity * BLOCK);
    if (data)
        dir->data = data;
    void *physical = realloc(dir->physical, capacity * sizeof *dir->physical);
    if (physical)
        dir->physical = physical;
    void *changed = realloc(dir->changed, capacity * sizeof *dir->changed);
    if (changed)
        dir->changed = changed;
    if (!data || !physical || !changed)
        return fail_code(ENOMEM, "directories");
    uint32_t more = capacity - dir->capacity;
    memset(dir->data + (size_t)dir->capacity * BLOCK, 0, (size_t)more * BLOCK);
    memset(dir->physical + dir->capacity, 0, more * sizeof *dir->physical);
    memset(dir->changed + dir->capacity, 0, more * sizeof *dir->changed);
    dir->capacity = capacity;
    return 0;
}

/* --- The table of names */

static uint32_t hash_of(const char *name, size_t length)
{
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (uint8_t)name[i]) * 16777619u;
    return hash ^ hash >> 15;
}

static void put_in_table(struct dir *dir, uint32_t place)
{
    struct ext2_dir_entry_2 *entry = entry_at(dir, place);
    uint32_t mask = dir->table_size - 1;
    uint32_t i = hash_of(entry->name, entry->name_len) & mask;
    while (dir->table[i] > GONE)
        i = (i + 1) & mask;
    if (dir->table[i] == 0)
        dir->table_used++;
    dir->table[i] = place;
}

static int make_room_in_table(struct dir *dir)
{
    if ((dir->table_used + 1) * 4 <= dir->table_size * 3)
        return 0;
    uint32_t old_size = dir->table_size, *old = dir->table;
    dir->table_size = 32;
    while (dir->table_size < (dir->live + 1) * 2)
        dir->table_size *= 2;
    dir->table = calloc(dir->table_size, sizeof *dir->table);
    if (!dir->table) {
        dir->table = old;
        dir->table_size = old_size;
        return fail_code(ENOMEM, "directories");
    }
    dir->table_used = 0;
    for (uint32_t i = 0; i < old_size; i++)
        if (old[i] > GONE)
            put_in_table(dir, old[i]);
    free(old);
    return 0;
}

/* The slot of a name in the table, or -1. */
static int64_t find_in_table(struct dir *dir, const char *name, size_t length)
{
    if (!dir->table_size)
        return -1;
    uint32_t mask = dir->table_size - 1;
    for (uint32_t i = hash_of(name, length) & mask; dir->table[i]; i = (i + 1) & mask) {
        if (dir->table[i] == GONE)
            continue;
        struct ext2_dir_entry_2 *entry = entry_at(dir, dir->table[i]);
        if (entry->name_len == length && memcmp(entry->name, name, length) == 0)
            return i;
    }
    return -1;
}

/* --- Reading a directory from the disk */

static int damaged(ext2_ino_t ino, const char *what)
{
    return fail("format", "directory inode %u: %s", ino, what);
}

/* Looks at every entry, and puts the names into the table. */
static int check_block(FileSystem *self, struct dir *dir, uint32_t block)
{
    uint32_t at = 0;
    for (int index = 0; at < BLOCK; index++) {
        struct ext2_dir_entry_2 *entry = entry_at(dir, block * BLOCK + at);
        uint32_t left = BLOCK - at, size = entry->rec_len;
        if (left < 12 || size < 12 || size % 4 || size > left ||
            entry_size(entry->name_len) > size)
            return damaged(dir->ino, "damaged entry");
        if (block == 0 && index < 2) {
            if (!entry->inode || entry->name_len != index + 1 || memcmp(entry->name, "..", entry->name_len))
                return damaged(dir->ino, "does not begin with \".\" and \"..\"");
        } else if (entry->inode) {
            if (entry->inode > self->fs->super->s_inodes_count || entry->name_len == 0)
                return damaged(dir->ino, "damaged entry");
            if (make_room_in_table(dir))
                return -1;
            put_in_table(dir, block * BLOCK + at);
            dir->live++;
        }
        at += size;
    }
    return 0;
}

static int load_dir(FileSystem *self, struct dir *dir)
{
    union inode inode;
    if (read_inode(self, dir->ino, &inode))
        return -1;
    uint64_t size = EXT2_I_SIZE(&inode.base);
    if (!LINUX_S_ISDIR(inode.base.i_mode) || inode.base.i_links_count == 0)
        return damaged(dir->ino, "is none");
    if (size == 0 || size % BLOCK || size / BLOCK > BLOCKS_LIMIT)
        return damaged(dir->ino, "impossible size");
    if (inode.base.i_flags & (EXT4_INLINE_DATA_FL | EXT4_ENCRYPT_FL | EXT4_CASEFOLD_FL))
        return fail("unsupported", "directory inode %u is encrypted, case-folded or inline",
                    dir->ino);
    if (grow_dir(dir, (uint32_t)(size / BLOCK)))
        return -1;
    dir->links = inode.base.i_links_count;
    dir->indexed = (inode.base.i_flags & EXT2_INDEX_FL) != 0;
    for (uint32_t block = 0; block < size / BLOCK; block++) {
        blk64_t at = 0;
        errcode_t error = ext2fs_bmap2(self->fs, dir->ino, &inode.base, NULL, 0, block, NULL, &at);
        if (error)
            return fail_code(error, "reading a directory");
        if (at == 0)
            return damaged(dir->ino, "has a hole");
        error = disk_read(&self->disk, at * BLOCK, BLOCK, dir->data + (size_t)block * BLOCK);
        if (error)
            return fail_code(error, "reading a directory");
        dir->physical[block] = at;
        if (check_block(self, dir, block))
            return -1;
        dir->blocks = dir->mapped = block + 1;
        count_memory(self, dir, 1);
    }
    return 0;
}

static struct dir *new_dir(ext2_ino_t ino)
{
    struct dir *dir = calloc(1, sizeof *dir);
    if (!dir)
        fail_code(ENOMEM, "directories");
    else
        dir->ino = ino;
    return dir;
}

static struct dir *keep_dir(FileSystem *self, struct dir *dir, int error)
{
    if (error) {
        free_dir(self, dir);
        return NULL;
    }
    struct dir **bucket = bucket_of(self, dir->ino);
    dir->next = *bucket;
    return *bucket = dir;
}

struct dir *get_dir(FileSystem *self, ext2_ino_t ino)
{
    if (ino == 0 || ino > self->fs->super->s_inodes_count) {
        misuse("no such inode");
        return NULL;
    }
    for (struct dir *dir = *bucket_of(self, ino); dir; dir = dir->next)
        if (dir->ino == ino)
            return dir;
    struct dir *dir = new_dir(ino);
    return dir ? keep_dir(self, dir, load_dir(self, dir)) : NULL;
}

/* A new, empty directory. Its blocks get their place when it is written. */
struct dir *make_dir(FileSystem *self, ext2_ino_t ino, ext2_ino_t parent)
{
    struct dir *dir = new_dir(ino);
    if (!dir)
        return NULL;
    if (grow_dir(dir, 1))
        return keep_dir(self, dir, -1);
    struct ext2_dir_entry_2 *dot = entry_at(dir, 0), *dots = entry_at(dir, 12);
    *dot = (struct ext2_dir_entry_2){.inode = ino, .rec_len = 12, .name_len = 1,
                                     .file_type = EXT2_FT_DIR, .name = "."};
    memcpy(dots, &(uint32_t){parent}, 4);
    dots->rec_len = BLOCK - 12;
    dots->name_len = 2;
    dots->file_type = EXT2_FT_DIR;
    memcpy(dots->name, "..", 2);
    dir->blocks = 1;
    count_memory(self, dir, 1);
    dir->links = 2;
    dir->changed[0] = dir->touched = true;
    return keep_dir(self, dir, 0);
}

/* --- Entries */

int find_entry(FileSystem *self, struct dir *dir, const char *name, size_t length,
               ext2_ino_t *ino, int *type)
{
    (void)self;
    int64_t slot = find_in_table(dir, name, length);
    if (slot < 0)
        return 0;
    struct ext2_dir_entry_2 *entry = entry_at(dir, dir->table[slot]);
    *ino = entry->inode;
    *type = entry->file_type;
    return 1;
}

/* The place in this block where an entry of this size can be, cut off from a longer one; 0: none. */
static uint32_t cut_room(struct dir *dir, uint32_t block, uint32_t size)
{
    for (uint32_t at = 0; at < BLOCK;) {
        struct ext2_dir_entry_2 *entry = entry_at(dir, block * BLOCK + at);
        uint32_t kept = entry->inode ? entry_size(entry->name_len) : 0;
        if (entry->rec_len - kept >= size) {
            uint32_t length = entry->rec_len - kept;
            if (kept)
                entry->rec_len = (uint16_t)kept;
            entry_at(dir, block * BLOCK + at + kept)->rec_len = (uint16_t)length;
            return block * BLOCK + at + kept;
        }
        at += entry->rec_len;
    }
    return 0;
}

static int append_block(FileSystem *self, struct dir *dir)
{
    if (grow_dir(dir, dir->blocks + 1))
        return -1;
    uint8_t *data = dir->data + (size_t)dir->blocks * BLOCK;
    memset(data, 0, BLOCK);
    entry_at(dir, dir->blocks * BLOCK)->rec_len = BLOCK;
    dir->blocks++;
    count_memory(self, dir, 1);
    return 0;
}

/* Where the new entry goes; 0 with an exception set. */
static uint32_t find_room(FileSystem *self, struct dir *dir, const char *name, size_t length)
{
    uint32_t size = entry_size(length), place, hash, minor, leaf;
    if (dir->indexed) {
        if (hash_name(self, name, length, &hash, &minor) || find_leaf(self, dir, hash, &leaf))
            return 0;
        place = cut_room(dir, leaf, size);
        if (place)
            return place;
        dir->indexed = false; /* to be built anew when it is written */
        dir->hint = 0;
    }
    for (uint32_t block = dir->hint; block < dir->blocks; block++) {
        place = cut_room(dir, block, size);
        if (place) {
            dir->hint = block;
            return place;
        }
    }
    if (append_block(self, dir))
        return 0;
    dir->hint = dir->blocks - 1;
    return cut_room(dir, dir->hint, size);
}

int add_entry(FileSystem *self, struct dir *dir, const char *name, size_t length, ext2_ino_t ino,
              int type)
{
    if (length == 0 || length > NAME_MAX_BYTES)
        return fail("limit", "a name of %zu bytes (ext4 has up to 255)", length);
    if (make_room_in_table(dir))
        return -1;
    uint32_t place = find_room(self, dir, name, length);
    if (!place)
        return -1;
    struct ext2_dir_entry_2 *entry = entry_at(dir, place);
    entry->inode = ino;
    entry->name_len = (uint8_t)length;
    entry->file_type = (uint8_t)type;
    memcpy(entry->name, name, length);
    memset(entry->name + length, 0, entry_size(length) - 8 - length);
    put_in_table(dir, place);
    dir->live++;
    dir->changed[place / BLOCK] = dir->touched = true;
    return 0;
}

int remove_entry(FileSystem *self, struct dir *dir, const char *name, size_t length)
{
    (void)self;
    int64_t slot = find_in_table(dir, name, length);
    if (slot < 0)
        return fail("missing", "no such name");
    uint32_t place = dir->table[slot], block = place / BLOCK, before = block * BLOCK;
    struct ext2_dir_entry_2 *entry = entry_at(dir, place);
    dir->table[slot] = GONE;
    dir->live--;
    uint32_t size = entry->rec_len;
    entry->inode = 0;
    if (before != place) {
        while (before + entry_at(dir, before)->rec_len != place)
            before += entry_at(dir, before)->rec_len;
        struct ext2_dir_entry_2 *previous = entry_at(dir, before);
        memset(entry, 0, entry_size(entry->name_len));
        previous->rec_len = (uint16_t)(previous->rec_len + size);
    } else {
        memset(entry->name, 0, entry->name_len);
        entry->name_len = entry->file_type = 0;
    }
    if (block < dir->hint)
        dir->hint = block;
    dir->changed[block] = dir->touched = true;
    return 0;
}

/* [(name, inode, type, of this layer)], in the order of the directory. */
PyObject *list_dir(FileSystem *self, struct dir *dir)
{
    PyObject *list = PyList_New(0);
    /* The second entry may reach over the root of a hash tree, or over free room. */
    uint32_t at = entry_at(dir, 0)->rec_len;
    at += entry_at(dir, at)->rec_len;
    while (list && at < dir->blocks * BLOCK) {
        struct ext2_dir_entry_2 *entry = entry_at(dir, at);
        at += entry->rec_len;
        if (!entry->inode)
            continue;
        PyObject *row = Py_BuildValue("(y#IiO)", entry->name, (Py_ssize_t)entry->name_len,
                                      (unsigned int)entry->inode, (int)entry->file_type,
                                      is_fresh(self, entry->inode) ? Py_True : Py_False);
        if (!row || PyList_Append(list, row))
            Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

/* --- Writing */

static int map_new_blocks(FileSystem *self, struct dir *dir, union inode *inode)
{
    struct extents extents = {0};
    bool all = dir->mapped == 0;
    int result = 0;
    while (dir->mapped < dir->blocks && !result) {
        uint64_t wanted = dir->blocks - dir->mapped, got;
        blk64_t start;
        result = allocate(self, wanted, wanted, &start, &got);
        if (result)
            break;
        if (all)
            result = add_extent(&extents, dir->mapped, start, got);
        for (uint64_t i = 0; i < got && !result; i++) {
            blk64_t at = start + i;
            errcode_t error = all ? 0
                                  : ext2fs_bmap2(self->fs, dir->ino, &inode->base, NULL, BMAP_SET,
                                                 dir->mapped, NULL, &at);
            if (!all && !error)
                error = ext2fs_iblk_add_blocks(self->fs, &inode->base, 1);
            if (error)
                result = fail_code(error, "writing a directory");
            dir->changed[dir->mapped] = true;
            dir->physical[dir->mapped++] = at;
        }
    }
    if (all && !result)
        result = map_extents(self, dir->ino, inode, &extents);
    free(extents.list);
    return result;
}

static int write_dir(FileSystem *self, struct dir *dir)
{
    union inode inode;
    bool unsorted = dir->blocks > 1 && !dir->indexed && dir->ino != EXT2_FIRST_INODE(self->fs->super);
    if (unsorted && rebuild_dir(self, dir))
        return -1;
    if (read_inode(self, dir->ino, &inode))
        return -1;
    if (dir->blocks < dir->mapped) {
        if (free_blocks(self, dir->ino, &inode, dir->blocks))
            return -1;
        dir->mapped = dir->blocks;
    } else if (dir->blocks > dir->mapped && map_new_blocks(self, dir, &inode)) {
        return -1;
    }
    for (uint32_t block = 0; block < dir->blocks; block++) {
        if (!dir->changed[block])
            continue;
        errcode_t error = disk_write_data(&self->disk, dir->physical[block], 1,
                                          dir->data + (size_t)block * BLOCK);
        if (error)
            return fail_code(error, "writing to the scratch file");
        dir->changed[block] = false;
    }
    inode.base.i_size = dir->blocks * BLOCK;
    inode.base.i_size_high = 0;
    /* Beyond the limit ext4 counts no more: 1 stands for "many". */
    inode.base.i_links_count = (uint16_t)(dir->links >= LINK_LIMIT ? 1 : dir->links);
    if (dir->indexed)
        inode.base.i_flags |= EXT2_INDEX_FL;
    else
        inode.base.i_flags &= ~(uint32_t)EXT2_INDEX_FL;
    dir->touched = false;
    return write_inode(self, dir->ino, &inode);
}

static int by_inode(const void *a, const void *b)
{
    ext2_ino_t x = (*(struct dir *const *)a)->ino, y = (*(struct dir *const *)b)->ino;
    return x < y ? -1 : x > y;
}

/* Writes all changed directories, in the order of their inodes, and forgets them all. */
int flush_dirs(FileSystem *self)
{
    size_t count = 0;
    for (uint32_t i = 0; i < DIR_BUCKETS; i++)
        for (struct dir *dir = self->dirs[i]; dir; dir = dir->next)
            count += dir->touched;
    struct dir **sorted = malloc((count + 1) * sizeof *sorted);
    if (!sorted)
        return fail_code(ENOMEM, "directories");
    size_t at = 0;
    for (uint32_t i = 0; i < DIR_BUCKETS; i++)
        for (struct dir *dir = self->dirs[i]; dir; dir = dir->next)
            if (dir->touched)
                sorted[at++] = dir;
    qsort(sorted, count, sizeof *sorted, by_inode);
    int result = 0;
    for (at = 0; at < count && !result; at++)
        result = write_dir(self, sorted[at]);
    free(sorted);
    if (!result)
        forget_dirs(self);
    return result;
}

/* Writes and forgets all directories when they take much memory: not only one that is needed again
 * at once. Call this only where no pointer to a directory is held. */
int trim_dirs(FileSystem *self)
{
    return self->dir_memory > MEMORY_LIMIT + 2 * self->largest_dir ? flush_dirs(self) : 0;
}
