/* Runs of ZFile blocks, expanded, and packed by several threads. Knows nothing of Python. */
#ifndef HYBRID_RUNS_H
#define HYBRID_RUNS_H

#include "libraries.h"

#include <stddef.h>
#include <stdint.h>

#define MAX_WORKERS 16
#define CHECKSUM_SIZE 4u
#define NO_BLOCK UINT64_MAX

/* What one worker needs of a compressor; they are kept for the next run (workspaces.c). */
enum direction { EXPAND, PACK };
struct workspace;
struct workspace *take_workspace(enum algorithm algorithm, enum direction direction);
void give_back_workspace(struct workspace *workspace);
void *workspace_state(struct workspace *workspace);

struct form {
    enum algorithm algorithm;
    uint32_t block_size; /* bytes, at most 65536 */
    int verify;          /* blocks end with their CRC */
};

/* Expands blocks first to last - 1 into ``out``, whose size is that of these blocks of the stream.
 * ``data`` begins with block ``first``; offsets[first .. last] say where each begins. Returns the
 * number of the first block that is damaged, or NO_BLOCK. */
uint64_t expand_run(const struct form *form, const uint8_t *data, size_t data_size,
                    const uint64_t *offsets, uint64_t first, uint64_t last, uint64_t stream_size,
                    uint8_t *out, struct workspace *workspace);

/* The room that one packed block may need, in bytes. */
size_t packed_room(const struct form *form);

/* Packs ``data`` into ``out``, which has packed_room() for each block, and leaves the packed blocks
 * there back to back, their sizes in ``sizes``. One workspace for each worker. Returns the size of
 * all, or 0 if a compressor failed, which none does with that much room. */
size_t pack_run(const struct form *form, const uint8_t *data, size_t data_size, uint8_t *out,
                uint32_t *sizes, struct workspace **workspaces, int workers);

#endif
