/* hybrid.core._zblocks: what hybrid/core/zblocks_compiled.py calls. Its .pyi file is the reference. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "crc32c.h"
#include "runs.h"
#include "workers.h"

#define MIN_BLOCK_SIZE 512
#define MAX_BLOCK_SIZE 65536
#define PARALLEL_BYTES (256u << 10) /* below, starting a thread costs more than it saves */
#define UNLOCKED_BYTES (32u << 10)  /* below, others hardly wait, and we need not wait for them */

static int check_form(const struct form *form, int algorithm) {
    if (algorithm != LZ4 && algorithm != ZSTD)
        PyErr_Format(PyExc_ValueError, "algorithm %d", algorithm);
    else if (!is_bound((enum algorithm)algorithm))
        PyErr_Format(PyExc_RuntimeError, "the library of algorithm %d is not bound", algorithm);
    else if (form->block_size < MIN_BLOCK_SIZE || form->block_size > MAX_BLOCK_SIZE ||
             form->block_size & (form->block_size - 1))
        PyErr_Format(PyExc_ValueError, "block size %u", form->block_size);
    else
        return 1;
    return 0;
}

/* Whether the numbers fit each other, so that no product or index below can overflow. */
static int check_range(const struct form *form, const Py_buffer *offsets,
                       unsigned long long first, unsigned long long last,
                       unsigned long long stream_size) {
    if (offsets->itemsize != 8 || (uintptr_t)offsets->buf % 8)
        PyErr_SetString(PyExc_ValueError, "offsets must be 64-bit numbers");
    else if (first >= last || last >= (unsigned long long)offsets->len / 8 ||
             last - 1 >= stream_size / form->block_size + (stream_size % form->block_size != 0) ||
             (last - first) * form->block_size > PY_SSIZE_T_MAX / 2)
        PyErr_Format(PyExc_ValueError, "no blocks %llu to %llu", first, last);
    else
        return 1;
    return 0;
}

static PyObject *expand_buffers(const struct form *form, const Py_buffer *data,
                                const Py_buffer *offsets, unsigned long long first,
                                unsigned long long last, unsigned long long stream_size) {
    uint64_t begin = first * form->block_size, end = last * form->block_size;
    size_t size = (size_t)((end < stream_size ? end : stream_size) - begin);
    struct workspace *workspace = take_workspace(form->algorithm, EXPAND);
    if (!workspace)
        return PyErr_NoMemory();
    PyObject *out = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    uint64_t damaged = NO_BLOCK;
    if (out) {
        PyThreadState *unlocked = size >= UNLOCKED_BYTES ? PyEval_SaveThread() : NULL;
        damaged = expand_run(form, data->buf, (size_t)data->len, offsets->buf, first, last,
                             stream_size, (uint8_t *)PyBytes_AS_STRING(out), workspace);
        if (unlocked)
            PyEval_RestoreThread(unlocked);
    }
    give_back_workspace(workspace);
    if (damaged == NO_BLOCK)
        return out;
    Py_DECREF(out);
    return PyLong_FromUnsignedLongLong(damaged);
}

static PyObject *expand(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer data, offsets;
    unsigned long long first, last, stream_size;
    int algorithm, verify;
    struct form form;
    if (!PyArg_ParseTuple(arguments, "y*y*KKKIip:expand", &data, &offsets, &first, &last,
                          &stream_size, &form.block_size, &algorithm, &verify))
        return NULL;
    PyObject *result = NULL;
    form.algorithm = (enum algorithm)algorithm;
    form.verify = verify;
    if (check_form(&form, algorithm) && check_range(&form, &offsets, first, last, stream_size))
        result = expand_buffers(&form, &data, &offsets, first, last, stream_size);
    PyBuffer_Release(&data);
    PyBuffer_Release(&offsets);
    return result;
}

static int worker_count(size_t bytes, int wanted) {
    if (wanted <= 1 || bytes < PARALLEL_BYTES)
        return 1;
    int usable = usable_processors();
    int count = wanted < usable ? wanted : usable;
    size_t shares = bytes / (PARALLEL_BYTES / 2);
    if ((size_t)count > shares)
        count = (int)shares;
    return count < MAX_WORKERS ? count : MAX_WORKERS;
}

static void give_back(struct workspace **workspaces, int count) {
    while (count-- > 0)
        give_back_workspace(workspaces[count]);
}

/* Workspaces for packing by up to ``count`` workers; how many there are, or 0 with MemoryError. */
static int take(const struct form *form, struct workspace **workspaces, int count) {
    int taken = 0;
    while (taken < count && (workspaces[taken] = take_workspace(form->algorithm, PACK)) != NULL)
        taken++;
    if (!taken)
        PyErr_NoMemory();
    return taken;
}

static PyObject *pack_buffer(const struct form *form, const Py_buffer *data, int threads) {
    struct workspace *workspaces[MAX_WORKERS];
    size_t size = (size_t)data->len, room = packed_room(form);
    size_t blocks = size / form->block_size + (size % form->block_size != 0);
    if (blocks > (size_t)PY_SSIZE_T_MAX / room)
        return PyErr_NoMemory();
    PyObject *out = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(blocks * room));
    PyObject *sizes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(blocks * sizeof(uint32_t)));
    int workers = out && sizes ? take(form, workspaces, worker_count(size, threads)) : 0;
    if (!workers) {
        Py_XDECREF(out);
        Py_XDECREF(sizes);
        return NULL;
    }
    PyThreadState *unlocked = size >= UNLOCKED_BYTES ? PyEval_SaveThread() : NULL;
    size_t total = pack_run(form, data->buf, size, (uint8_t *)PyBytes_AS_STRING(out),
                            (uint32_t *)PyBytes_AS_STRING(sizes), workspaces, workers);
    if (unlocked)
        PyEval_RestoreThread(unlocked);
    give_back(workspaces, workers);
    if (!total && blocks) {
        PyErr_SetString(PyExc_RuntimeError, "the compressor failed");
        Py_CLEAR(out);
    } else {
        _PyBytes_Resize(&out, (Py_ssize_t)total); /* sets out to NULL when it fails */
    }
    if (!out) {
        Py_DECREF(sizes);
        return NULL;
    }
    return Py_BuildValue("(NN)", out, sizes);
}

static PyObject *pack(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer data;
    int algorithm, verify, threads;
    struct form form;
    if (!PyArg_ParseTuple(arguments, "y*Iipi:pack", &data, &form.block_size, &algorithm, &verify,
                          &threads))
        return NULL;
    PyObject *result = NULL;
    form.algorithm = (enum algorithm)algorithm;
    form.verify = verify;
    if (check_form(&form, algorithm))
        result = pack_buffer(&form, &data, threads);
    PyBuffer_Release(&data);
    return result;
}

static PyObject *crc32c(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer data;
    unsigned int reg;
    int portable;
    if (!PyArg_ParseTuple(arguments, "Iy*p:crc32c", &reg, &data, &portable))
        return NULL;
    uint32_t result = portable ? crc32c_portable(reg, data.buf, (size_t)data.len)
                               : crc32c_update(reg, data.buf, (size_t)data.len);
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(result);
}

static PyObject *bind_library(const char *(*bind)(const char *path), PyObject *arguments) {
    PyObject *path;
    if (!PyArg_ParseTuple(arguments, "O&", PyUnicode_FSConverter, &path))
        return NULL;
    const char *missing = bind(PyBytes_AS_STRING(path));
    if (missing)
        PyErr_Format(PyExc_ImportError, "%s: no usable %s", PyBytes_AS_STRING(path), missing);
    Py_DECREF(path);
    if (missing)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *bind_lz4_library(PyObject *module, PyObject *arguments) {
    (void)module;
    return bind_library(bind_lz4, arguments);
}

static PyObject *bind_zstd_library(PyObject *module, PyObject *arguments) {
    (void)module;
    return bind_library(bind_zstd, arguments);
}

static PyObject *zstd_version(PyObject *module, PyObject *nothing) {
    (void)module;
    (void)nothing;
    return PyLong_FromUnsignedLong(is_bound(ZSTD) ? zstd.version_number() : 0);
}

static PyMethodDef methods[] = {
    {"expand", expand, METH_VARARGS, NULL},
    {"pack", pack, METH_VARARGS, NULL},
    {"crc32c", crc32c, METH_VARARGS, NULL},
    {"bind_lz4", bind_lz4_library, METH_VARARGS, NULL},
    {"bind_zstd", bind_zstd_library, METH_VARARGS, NULL},
    {"zstd_version", zstd_version, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "hybrid.core._zblocks", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__zblocks(void) {
    crc32c_setup();
    PyObject *module = PyModule_Create(&definition);
    if (!module)
        return NULL;
    PyObject *hardware = crc32c_is_hardware() ? Py_True : Py_False;
    if (PyModule_AddIntConstant(module, "LZ4", LZ4) ||
        PyModule_AddIntConstant(module, "ZSTD", ZSTD) ||
        PyModule_AddObjectRef(module, "HARDWARE_CRC", hardware)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
