/* Compressors need memory to work in, and making it takes longer than a block. So some is kept.
 * Called with the GIL held only, which guards the list. */
#include "runs.h"

#include <stdlib.h>

#define KEPT 4 /* of each kind: workspaces of zstd have some 0.2 MB (expanding) or 1 MB (packing) */
#define LEVEL 3 /* spec: zfile 9 */

struct workspace {
    enum algorithm algorithm;
    enum direction direction;
    void *state;
    struct workspace *next;
};

static struct workspace *kept[ALGORITHMS][2];
static int count[ALGORITHMS][2];

static void *make_state(enum algorithm algorithm, enum direction direction) {
    if (algorithm == LZ4)
        return malloc(direction == PACK ? (size_t)lz4.sizeof_state() : 1);
    if (direction == EXPAND)
        return zstd.create_dctx();
    void *cctx = zstd.create_cctx();
    if (cctx && zstd.is_error(zstd.cctx_set_parameter(cctx, ZSTD_COMPRESSION_LEVEL, LEVEL))) {
        zstd.free_cctx(cctx);
        cctx = NULL;
    }
    return cctx;
}

static void free_state(struct workspace *workspace) {
    if (workspace->algorithm == LZ4)
        free(workspace->state);
    else if (workspace->direction == EXPAND)
        zstd.free_dctx(workspace->state);
    else
        zstd.free_cctx(workspace->state);
}

struct workspace *take_workspace(enum algorithm algorithm, enum direction direction) {
    struct workspace *workspace = kept[algorithm][direction];
    if (workspace) {
        kept[algorithm][direction] = workspace->next;
        count[algorithm][direction]--;
        return workspace;
    }
    workspace = malloc(sizeof *workspace);
    if (!workspace)
        return NULL;
    *workspace = (struct workspace){algorithm, direction, make_state(algorithm, direction), NULL};
    if (!workspace->state) {
        free(workspace);
        return NULL;
    }
    return workspace;
}

void give_back_workspace(struct workspace *workspace) {
    enum algorithm algorithm = workspace->algorithm;
    enum direction direction = workspace->direction;
    if (count[algorithm][direction] >= KEPT) {
        free_state(workspace);
        free(workspace);
        return;
    }
    workspace->next = kept[algorithm][direction];
    kept[algorithm][direction] = workspace;
    count[algorithm][direction]++;
}

void *workspace_state(struct workspace *workspace) { return workspace->state; }
