/* Compressors of other versions give other bytes for the same input. So this extension is not linked
 * to a liblz4 or libzstd of its own: it calls the very code that the Python packages run, which the
 * lock file pins by hash. The compiled and the pure path then cannot differ in what they write. */
#include "libraries.h"

#include <dlfcn.h>
#include <string.h>

struct lz4_library lz4;
struct zstd_library zstd;
static int bound[ALGORITHMS];

struct symbol {
    const char *name;
    void *place; /* a pointer to a function pointer */
};

static const char *bind(const char *path, const struct symbol *symbols, size_t count) {
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!object)
        return path;
    for (size_t i = 0; i < count; i++) {
        void *found = dlsym(object, symbols[i].name);
        if (!found) {
            dlclose(object);
            return symbols[i].name;
        }
        memcpy(symbols[i].place, &found, sizeof found);
    }
    return NULL;
}

const char *bind_lz4(const char *path) {
    struct lz4_library found;
    const struct symbol symbols[] = {
        {"LZ4_sizeofState", &found.sizeof_state},
        {"LZ4_compressBound", &found.compress_bound},
        {"LZ4_initStream", &found.init_stream},
        {"LZ4_compress_fast_continue", &found.compress_continue},
        {"LZ4_decompress_safe", &found.decompress_safe},
    };
    const char *missing = bind(path, symbols, sizeof symbols / sizeof *symbols);
    if (!missing) {
        lz4 = found;
        bound[LZ4] = 1;
    }
    return missing;
}

const char *bind_zstd(const char *path) {
    struct zstd_library found;
    const struct symbol symbols[] = {
        {"ZSTD_versionNumber", &found.version_number},
        {"ZSTD_isError", &found.is_error},
        {"ZSTD_compressBound", &found.compress_bound},
        {"ZSTD_createCCtx", &found.create_cctx},
        {"ZSTD_freeCCtx", &found.free_cctx},
        {"ZSTD_CCtx_setParameter", &found.cctx_set_parameter},
        {"ZSTD_compress2", &found.compress2},
        {"ZSTD_createDCtx", &found.create_dctx},
        {"ZSTD_freeDCtx", &found.free_dctx},
        {"ZSTD_DCtx_reset", &found.dctx_reset},
        {"ZSTD_decompressStream", &found.decompress_stream},
        {"ZSTD_getFrameContentSize", &found.frame_content_size},
    };
    const char *missing = bind(path, symbols, sizeof symbols / sizeof *symbols);
    if (!missing) {
        zstd = found;
        bound[ZSTD] = 1;
    }
    return missing;
}

int is_bound(enum algorithm algorithm) { return bound[algorithm]; }
