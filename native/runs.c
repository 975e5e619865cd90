#include "runs.h"

#include "crc32c.h"
#include "workers.h"

#include <limits.h>
#include <stdatomic.h>
#include <string.h>

#define CHECKSUM_SEED 100007u /* spec: zfile 3 */
#define CHUNK_BYTES 65536u    /* of the stream: what a packing worker takes at a time */

/* --- expanding */

struct expansion {
    const struct form *form;
    const uint8_t *data;
    size_t data_size;
    const uint64_t *offsets;
    uint64_t first, stream_size;
    uint8_t *out;
    void *state;
};

struct stored {
    const uint8_t *data;
    size_t size; /* with the checksum */
    int good;
};

/* Where a block lies. Its numbers were checked when the index was read: they are checked again,
 * since a mistake there must not become a read of foreign memory here. */
static struct stored find_block(const struct expansion *run, uint64_t number) {
    struct stored block = {run->data, 0, 0};
    uint64_t base = run->offsets[run->first];
    uint64_t start = run->offsets[number], end = run->offsets[number + 1];
    size_t cut = run->form->verify ? CHECKSUM_SIZE : 0;
    if (base <= start && start < end && end - base <= run->data_size && end - start > cut &&
        end - start < INT_MAX) {
        block.data += start - base;
        block.size = end - start;
        block.good = 1;
    }
    return block;
}

static int expand_lz4(const uint8_t *src, size_t size, uint8_t *out, size_t wanted) {
    int got = lz4.decompress_safe((const char *)src, (char *)out, (int)size, (int)wanted);
    return got >= 0 && (size_t)got == wanted;
}

/* The streaming call, as the Python package uses it: it takes exactly one frame, and a frame that
 * states its size is expanded without a detour. */
static int expand_zstd(void *dctx, const uint8_t *src, size_t size, uint8_t *out, size_t wanted) {
    unsigned long long stated = zstd.frame_content_size(src, size);
    if (stated != wanted && stated != ZSTD_SIZE_UNKNOWN)
        return 0;
    struct zstd_in in = {src, size, 0};
    struct zstd_out to = {out, wanted, 0};
    zstd.dctx_reset(dctx, ZSTD_RESET_SESSION);
    return zstd.decompress_stream(dctx, &to, &in) == 0 && in.pos == size && to.pos == wanted;
}

static int expand_block(const struct expansion *run, uint64_t number,
                        const struct stored *block) {
    uint64_t at = number * run->form->block_size, wanted = run->stream_size - at;
    if (wanted > run->form->block_size)
        wanted = run->form->block_size;
    uint8_t *out = run->out + (at - run->first * run->form->block_size);
    size_t size = block->size - (run->form->verify ? CHECKSUM_SIZE : 0);
    if (run->form->algorithm == LZ4)
        return expand_lz4(block->data, size, out, wanted);
    return expand_zstd(run->state, block->data, size, out, wanted);
}

/* Feeding the register its own value leaves zero: one update checks block and checksum. */
static void check_three(struct stored blocks[3]) {
    uint32_t regs[3] = {CHECKSUM_SEED, CHECKSUM_SEED, CHECKSUM_SEED};
    const uint8_t *data[3] = {blocks[0].data, blocks[1].data, blocks[2].data};
    const size_t sizes[3] = {blocks[0].size, blocks[1].size, blocks[2].size};
    crc32c_update3(regs, data, sizes);
    for (int i = 0; i < 3; i++)
        blocks[i].good &= regs[i] == 0;
}

uint64_t expand_run(const struct form *form, const uint8_t *data, size_t data_size,
                    const uint64_t *offsets, uint64_t first, uint64_t last, uint64_t stream_size,
                    uint8_t *out, struct workspace *workspace) {
    const struct expansion run = {
        form, data, data_size, offsets, first, stream_size, out, workspace_state(workspace),
    };
    for (uint64_t number = first; number < last;) {
        struct stored blocks[3];
        int count = last - number < 3 ? (int)(last - number) : 3;
        for (int i = 0; i < 3; i++)
            blocks[i] = i < count ? find_block(&run, number + i) : (struct stored){data, 0, 0};
        if (form->verify)
            check_three(blocks);
        for (int i = 0; i < count; i++, number++)
            if (!blocks[i].good || !expand_block(&run, number, &blocks[i]))
                return number;
    }
    return NO_BLOCK;
}

/* --- packing */

struct packing {
    const struct form *form;
    const uint8_t *data;
    size_t data_size, room, chunks;
    uint8_t *out;
    uint32_t *sizes;
    struct workspace **workspaces;
    uint64_t chunk_blocks;
    _Atomic size_t next;
    atomic_int failed;
};

size_t packed_room(const struct form *form) {
    size_t bound = form->algorithm == LZ4 ? (size_t)lz4.compress_bound((int)form->block_size)
                                          : zstd.compress_bound(form->block_size);
    return bound + CHECKSUM_SIZE;
}

/* A fresh stream of one piece, as the Python package does it: the plain function takes smaller
 * positions for the matches it remembers, and so finds others. */
static size_t pack_lz4(void *state, const uint8_t *src, size_t size, uint8_t *out, size_t room) {
    void *stream = lz4.init_stream(state, (size_t)lz4.sizeof_state());
    if (!stream)
        return 0;
    int got = lz4.compress_continue(stream, (const char *)src, (char *)out, (int)size, (int)room, 1);
    return got > 0 ? (size_t)got : 0;
}

/* The size of the packed block, or 0. */
static size_t pack_block(const struct packing *run, void *state, const uint8_t *src, size_t size,
                         uint8_t *out) {
    size_t room = run->room - CHECKSUM_SIZE, got;
    if (run->form->algorithm == LZ4) {
        got = pack_lz4(state, src, size, out, room);
    } else {
        got = zstd.compress2(state, out, room, src, size);
        if (zstd.is_error(got))
            got = 0;
    }
    if (!got || !run->form->verify)
        return got;
    uint32_t crc = crc32c_update(CHECKSUM_SEED, out, got);
    for (unsigned i = 0; i < CHECKSUM_SIZE; i++)
        out[got + i] = (uint8_t)(crc >> 8 * i);
    return got + CHECKSUM_SIZE;
}

/* The blocks of one chunk, back to back from the place on where the chunk may begin at the latest. */
static int pack_chunk(const struct packing *run, void *state, size_t chunk) {
    size_t number = chunk * run->chunk_blocks, block_size = run->form->block_size;
    uint8_t *out = run->out + number * run->room;
    for (size_t i = 0; i < run->chunk_blocks; i++, number++) {
        size_t at = number * block_size;
        if (at >= run->data_size)
            break;
        size_t left = run->data_size - at;
        size_t got = pack_block(run, state, run->data + at, left < block_size ? left : block_size,
                                out);
        if (!got)
            return 0;
        run->sizes[number] = (uint32_t)got;
        out += got;
    }
    return 1;
}

static void pack_worker(void *shared, int worker) {
    struct packing *run = shared;
    void *state = workspace_state(run->workspaces[worker]);
    for (;;) {
        size_t chunk = atomic_fetch_add(&run->next, 1);
        if (chunk >= run->chunks || atomic_load(&run->failed))
            return;
        if (!pack_chunk(run, state, chunk))
            atomic_store(&run->failed, 1);
    }
}

/* Close the gaps between the chunks; the size of all. */
static size_t join_chunks(const struct packing *run, size_t blocks) {
    size_t total = 0;
    for (size_t begin = 0; begin < blocks; begin += run->chunk_blocks) {
        size_t size = 0;
        for (size_t i = begin; i < blocks && i < begin + run->chunk_blocks; i++)
            size += run->sizes[i];
        memmove(run->out + total, run->out + begin * run->room, size);
        total += size;
    }
    return total;
}

size_t pack_run(const struct form *form, const uint8_t *data, size_t data_size, uint8_t *out,
                uint32_t *sizes, struct workspace **workspaces, int workers) {
    size_t blocks = (data_size + form->block_size - 1) / form->block_size;
    struct packing run = {
        .form = form, .data = data, .data_size = data_size, .room = packed_room(form), .out = out,
        .sizes = sizes, .workspaces = workspaces, .chunk_blocks = CHUNK_BYTES / form->block_size,
    };
    run.chunks = (blocks + run.chunk_blocks - 1) / run.chunk_blocks;
    atomic_init(&run.next, 0);
    atomic_init(&run.failed, 0);
    run_workers(pack_worker, &run, workers);
    return atomic_load(&run.failed) ? 0 : join_chunks(&run, blocks);
}
