/* The compressors, taken at run time from the Python packages lz4 and zstandard: see libraries.c. */
#ifndef HYBRID_LIBRARIES_H
#define HYBRID_LIBRARIES_H

#include <stddef.h>

enum algorithm { LZ4, ZSTD, ALGORITHMS };

/* Parts of the public, stable interface of liblz4 (since 1.9) and libzstd (since 1.4). */
struct zstd_in { const void *src; size_t size; size_t pos; };
struct zstd_out { void *dst; size_t size; size_t pos; };

struct lz4_library {
    int (*sizeof_state)(void);
    int (*compress_bound)(int size);
    void *(*init_stream)(void *state, size_t size);
    int (*compress_continue)(void *stream, const char *src, char *dst, int size, int room,
                             int acceleration);
    int (*decompress_safe)(const char *src, char *dst, int size, int room);
};

struct zstd_library {
    unsigned (*version_number)(void);
    unsigned (*is_error)(size_t code);
    size_t (*compress_bound)(size_t size);
    void *(*create_cctx)(void);
    size_t (*free_cctx)(void *cctx);
    size_t (*cctx_set_parameter)(void *cctx, int parameter, int value);
    size_t (*compress2)(void *cctx, void *dst, size_t room, const void *src, size_t size);
    void *(*create_dctx)(void);
    size_t (*free_dctx)(void *dctx);
    size_t (*dctx_reset)(void *dctx, int directive);
    size_t (*decompress_stream)(void *dctx, struct zstd_out *out, struct zstd_in *in);
    unsigned long long (*frame_content_size)(const void *src, size_t size);
};

#define ZSTD_COMPRESSION_LEVEL 100 /* ZSTD_cParameter */
#define ZSTD_RESET_SESSION 1       /* ZSTD_ResetDirective */
#define ZSTD_SIZE_UNKNOWN (0ULL - 1)
#define ZSTD_SIZE_ERROR (0ULL - 2)

extern struct lz4_library lz4;
extern struct zstd_library zstd;

/* Take all functions from the shared object at ``path``, or from what it is linked to. Returns
 * NULL, or the name of what is missing; then nothing has changed. The object stays loaded. */
const char *bind_lz4(const char *path);
const char *bind_zstd(const char *path);
int is_bound(enum algorithm algorithm);

#endif
