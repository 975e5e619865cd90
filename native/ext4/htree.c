/* The hash tree of a directory: found in, and built. At most two levels of index, as ext4 has it
 * without the feature large_dir.
 *
 * Block 0: "." | ".." with the rest of the block | info (8 bytes) | limit, count, block | hash,
 * block ... Inner blocks: an empty entry over the whole block | limit, count, block | hash, block ...
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* qsort_r */
#endif
#include "filesystem.h"

#include <stdlib.h>

#define ROOT_INFO 24u
#define ROOT_TABLE 32u
#define NODE_TABLE 8u
#define ROOT_LIMIT ((BLOCK - ROOT_TABLE) / 8)
#define NODE_LIMIT ((BLOCK - NODE_TABLE) / 8)
#define LEAF_FILL 3276u /* a fifth of each new leaf is left for the names of later layers */

struct item {
    uint32_t hash, minor, place;
};

struct table { /* the first entry has limit and count where the others have the hash */
    uint16_t limit, count;
    uint32_t block;
};

int hash_name(FileSystem *self, const char *name, size_t length, uint32_t *major, uint32_t *minor)
{
    struct ext2_super_block *super = self->fs->super;
    int version = super->s_def_hash_version;
    if (version <= EXT2_HASH_TEA && super->s_flags & EXT2_FLAGS_UNSIGNED_HASH)
        version += 3;
    errcode_t error = ext2fs_dirhash(version, name, (int)length, super->s_hash_seed, major, minor);
    return error ? fail_code(error, "hashing a name") : 0;
}

static int damaged(struct dir *dir)
{
    return fail("format", "directory inode %u: damaged hash tree", dir->ino);
}

static uint32_t word(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

int find_leaf(FileSystem *self, struct dir *dir, uint32_t hash, uint32_t *leaf)
{
    const uint8_t *info = dir->data + ROOT_INFO;
    uint32_t at = ROOT_TABLE, block = 0, levels = info[6];
    if (word(info) != 0 || info[5] != 8 || levels > 1)
        return damaged(dir);
    if (info[4] != self->fs->super->s_def_hash_version)
        return fail("unsupported", "directory inode %u has a hash of its own", dir->ino);
    for (uint32_t level = 0; level <= levels; level++) {
        const uint8_t *base = dir->data + (size_t)block * BLOCK + at;
        struct table table;
        memcpy(&table, base, sizeof table);
        if (table.count == 0 || table.count > table.limit || at + table.limit * 8u > BLOCK)
            return damaged(dir);
        uint32_t low = 0, high = table.count; /* the last entry whose hash is not above ours */
        while (high - low > 1) {
            uint32_t middle = (low + high) / 2;
            if (word(base + middle * 8) > hash)
                high = middle;
            else
                low = middle;
        }
        block = word(base + low * 8 + 4);
        at = NODE_TABLE;
        if (block == 0 || block >= dir->blocks)
            return damaged(dir);
    }
    *leaf = block;
    return 0;
}

static int by_hash(const void *a, const void *b, void *context)
{
    const struct item *x = a, *y = b;
    struct dir *dir = context;
    if (x->hash != y->hash)
        return x->hash < y->hash ? -1 : 1;
    if (x->minor != y->minor)
        return x->minor < y->minor ? -1 : 1;
    struct ext2_dir_entry_2 *left = entry_at(dir, x->place), *right = entry_at(dir, y->place);
    int n = left->name_len < right->name_len ? left->name_len : right->name_len;
    int order = memcmp(left->name, right->name, (size_t)n);
    return order ? order : left->name_len - right->name_len;
}

static struct item *sorted_items(FileSystem *self, struct dir *dir, uint64_t *bytes)
{
    struct item *items = malloc((dir->live + 1) * sizeof *items);
    uint32_t count = 0;
    *bytes = 0;
    if (!items) {
        fail_code(ENOMEM, "directories");
        return NULL;
    }
    for (uint32_t i = 0; i < dir->table_size; i++) {
        if (dir->table[i] < 12)
            continue;
        struct ext2_dir_entry_2 *entry = entry_at(dir, dir->table[i]);
        struct item *item = &items[count++];
        item->place = dir->table[i];
        *bytes += entry_size(entry->name_len);
        if (hash_name(self, entry->name, entry->name_len, &item->hash, &item->minor)) {
            free(items);
            return NULL;
        }
    }
    qsort_r(items, count, sizeof *items, by_hash, dir);
    return items;
}

/* Copies entries from first on into the block until it is filled; gives the first left over. */
static uint32_t fill_block(struct dir *from, const struct item *items, uint32_t first,
                           uint32_t count, uint8_t *to, uint32_t at, uint32_t limit)
{
    struct ext2_dir_entry_2 *last = at ? (void *)(to + 12) : NULL;
    uint32_t i = first;
    for (; i < count; i++) {
        struct ext2_dir_entry_2 *entry = entry_at(from, items[i].place);
        uint32_t size = entry_size(entry->name_len);
        if (at + size > limit)
            break;
        if (last)
            last->rec_len = (uint16_t)(to + at - (uint8_t *)last);
        last = (void *)(to + at);
        memcpy(last, entry, size);
        last->rec_len = (uint16_t)size;
        at += size;
    }
    if (last)
        last->rec_len = (uint16_t)(to + BLOCK - (uint8_t *)last);
    return i;
}

static void set_entry(uint8_t *table, uint32_t index, uint32_t hash, uint32_t block)
{
    if (index)
        memcpy(table + index * 8, &hash, 4);
    memcpy(table + index * 8 + 4, &block, 4);
}

static void set_counts(uint8_t *table, uint32_t limit, uint32_t count)
{
    struct table counts = {.limit = (uint16_t)limit, .count = (uint16_t)count};
    memcpy(table, &counts, 4);
}

/* The index over leaves whose first hashes are given. */
static void write_index(struct dir *to, const uint32_t *hashes, uint32_t leaves, uint32_t inner,
                        int version)
{
    uint8_t *root = to->data;
    uint8_t info[8] = {0, 0, 0, 0, (uint8_t)version, 8, inner > 0, 0};
    entry_at(to, 12)->rec_len = BLOCK - 12;
    memset(root + ROOT_INFO, 0, BLOCK - ROOT_INFO);
    memcpy(root + ROOT_INFO, info, sizeof info);
    uint32_t first_leaf = 1 + inner;
    if (!inner) {
        for (uint32_t i = 0; i < leaves; i++)
            set_entry(root + ROOT_TABLE, i, hashes[i], first_leaf + i);
        set_counts(root + ROOT_TABLE, ROOT_LIMIT, leaves);
        return;
    }
    set_counts(root + ROOT_TABLE, ROOT_LIMIT, inner);
    for (uint32_t i = 0; i < inner; i++) {
        uint32_t first = i * NODE_LIMIT;
        uint32_t count = leaves - first < NODE_LIMIT ? leaves - first : NODE_LIMIT;
        uint8_t *node = to->data + (size_t)(1 + i) * BLOCK;
        memset(node, 0, BLOCK);
        entry_at(to, (1 + i) * BLOCK)->rec_len = BLOCK;
        set_entry(root + ROOT_TABLE, i, hashes[first], 1 + i);
        for (uint32_t j = 0; j < count; j++)
            set_entry(node + NODE_TABLE, j, hashes[first + j], first_leaf + first + j);
        set_counts(node + NODE_TABLE, NODE_LIMIT, count);
    }
}

/* How many leaves there will be, and the first hash of each. */
static uint32_t plan_leaves(struct dir *dir, const struct item *items, uint32_t *hashes)
{
    uint32_t leaves = 0, used = LEAF_FILL;
    for (uint32_t i = 0; i < dir->live; i++) {
        uint32_t size = entry_size(entry_at(dir, items[i].place)->name_len);
        if (used + size > LEAF_FILL) {
            /* The lowest bit says that the hash goes on from the leaf before. */
            bool goes_on = i && items[i - 1].hash == items[i].hash;
            hashes[leaves++] = items[i].hash | goes_on;
            used = 0;
        }
        used += size;
    }
    return leaves;
}

static int build(FileSystem *self, struct dir *dir, const struct item *items, uint64_t bytes)
{
    struct dir to = {.ino = dir->ino};
    uint32_t *hashes = malloc((dir->live + 1) * sizeof *hashes);
    uint32_t leaves = 0, inner = 0;
    bool tree = bytes + 24 > BLOCK;
    int result = hashes ? 0 : fail_code(ENOMEM, "directories");
    if (!result && tree) {
        leaves = plan_leaves(dir, items, hashes);
        inner = leaves > ROOT_LIMIT ? (leaves + NODE_LIMIT - 1) / NODE_LIMIT : 0;
    }
    if (inner > ROOT_LIMIT) {
        free(hashes);
        return 0; /* more than the index can hold: it stays without one */
    }
    if (!result)
        result = grow_dir(&to, 1 + inner + leaves);
    if (!result) {
        to.blocks = 1 + inner + leaves;
        memcpy(to.data, dir->data, ROOT_INFO);
        entry_at(&to, 12)->rec_len = BLOCK - 12;
        if (tree) {
            uint32_t next = 0;
            write_index(&to, hashes, leaves, inner, self->fs->super->s_def_hash_version);
            for (uint32_t i = 0; i < leaves; i++)
                next = fill_block(dir, items, next, dir->live,
                                  to.data + (size_t)(1 + inner + i) * BLOCK, 0, LEAF_FILL);
        } else {
            fill_block(dir, items, 0, dir->live, to.data, 24, BLOCK);
        }
        result = grow_dir(dir, to.blocks);
    }
    if (!result) {
        self->dir_memory += ((size_t)to.blocks - dir->blocks) * BLOCK;
        memcpy(dir->data, to.data, (size_t)to.blocks * BLOCK);
        dir->blocks = to.blocks;
        memset(dir->changed, true, dir->blocks * sizeof *dir->changed);
        dir->indexed = tree;
    }
    free(hashes);
    free(to.data);
    free(to.physical);
    free(to.changed);
    return result;
}

/* Sorts the entries into the fewest blocks. Only before writing and forgetting the directory: the
 * table of names is not right any more. */
int rebuild_dir(FileSystem *self, struct dir *dir)
{
    uint64_t bytes;
    if (!ext2fs_has_feature_dir_index(self->fs->super))
        return 0;
    struct item *items = sorted_items(self, dir, &bytes);
    if (!items)
        return -1;
    int result = build(self, dir, items, bytes);
    free(items);
    return result;
}
