/* The Python type FileSystem: thin methods over the rest of this directory. */
#include "filesystem.h"

#include <stddef.h>
#include <stdlib.h>
#include <structmember.h>

/* One caller at a time, and no one after an error that left things half changed. */
static int enter(FileSystem *self)
{
    if (!self->fs || self->busy || self->broken) {
        PyErr_SetString(PyExc_RuntimeError, !self->fs     ? "no file system is open"
                                            : self->busy ? "another thread is inside"
                                                         : "an earlier change has failed");
        return -1;
    }
    self->busy = true;
    return 0;
}

static PyObject *leave(FileSystem *self, PyObject *result)
{
    self->busy = false;
    if (!result)
        self->broken = true;
    return result;
}

static PyObject *nothing(FileSystem *self, int error)
{
    return leave(self, error ? NULL : Py_NewRef(Py_None));
}

static int init(FileSystem *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"read", "fd", "size", NULL};
    PyObject *read;
    int fd;
    unsigned long long size;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OiK", names, &read, &fd, &size))
        return -1;
    if (self->disk.slots || size % BLOCK || size / BLOCK < 1 || size > 1ULL << 60) {
        PyErr_SetString(PyExc_ValueError, "the size must be a multiple of 4096");
        return -1;
    }
    errcode_t error = disk_init(&self->disk, read == Py_None ? NULL : read, fd, size / BLOCK);
    return error ? fail_code(error, "opening a disk") : 0;
}

static void close_fs(FileSystem *self)
{
    forget_dirs(self);
    if (self->fs)
        ext2fs_free(self->fs);
    self->fs = NULL;
    free(self->fresh);
    self->fresh = NULL;
    free(self->writer.extents.list);
    self->writer.extents = (struct extents){0};
    disk_free(&self->disk);
}

static void dealloc(FileSystem *self)
{
    PyTypeObject *type = Py_TYPE(self);
    close_fs(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyObject *method_close(FileSystem *self, PyObject *unused)
{
    (void)unused;
    if (self->busy) {
        PyErr_SetString(PyExc_RuntimeError, "another thread is inside");
        return NULL;
    }
    close_fs(self);
    Py_RETURN_NONE;
}

static PyObject *begin(FileSystem *self, int error)
{
    if (error)
        self->broken = true;
    return error ? NULL : Py_NewRef(Py_None);
}

static bool may_begin(const FileSystem *self)
{
    if (!self->fs && self->disk.slots)
        return true;
    PyErr_SetString(PyExc_RuntimeError, "a file system is open already, or all is closed");
    return false;
}

static PyObject *method_format(FileSystem *self, PyObject *args)
{
    unsigned int bytes_per_inode;
    const char *uuid;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(args, "Iy#", &bytes_per_inode, &uuid, &length) || !may_begin(self))
        return NULL;
    if (length != 16 || bytes_per_inode < 1024) {
        PyErr_SetString(PyExc_ValueError, "16 bytes of UUID, at least 1024 bytes an inode");
        return NULL;
    }
    return begin(self, format_filesystem(self, bytes_per_inode, (const uint8_t *)uuid));
}

static PyObject *method_open(FileSystem *self, PyObject *unused)
{
    (void)unused;
    return may_begin(self) ? begin(self, open_filesystem(self)) : NULL;
}

/* --- Looking */

static bool valid_ino(const FileSystem *self, unsigned int ino)
{
    if (ino && ino <= self->fs->super->s_inodes_count)
        return true;
    PyErr_SetString(PyExc_ValueError, "no such inode");
    return false;
}

static PyObject *method_lookup(FileSystem *self, PyObject *args)
{
    unsigned int dir_ino, ino = 0;
    const char *name;
    Py_ssize_t length;
    int type = 0;
    if (!PyArg_ParseTuple(args, "Iy#", &dir_ino, &name, &length) || enter(self))
        return NULL;
    struct dir *dir = trim_dirs(self) ? NULL : get_dir(self, dir_ino);
    if (!dir)
        return leave(self, NULL);
    if (!find_entry(self, dir, name, (size_t)length, &ino, &type))
        return nothing(self, 0);
    return leave(self, Py_BuildValue("(IiO)", ino, type,
                                     is_fresh(self, ino) ? Py_True : Py_False));
}

static PyObject *method_listdir(FileSystem *self, PyObject *args)
{
    unsigned int ino;
    if (!PyArg_ParseTuple(args, "I", &ino) || enter(self))
        return NULL;
    struct dir *dir = trim_dirs(self) ? NULL : get_dir(self, ino);
    return leave(self, dir ? list_dir(self, dir) : NULL);
}

static PyObject *method_stat(FileSystem *self, PyObject *args)
{
    unsigned int ino;
    union inode inode;
    if (!PyArg_ParseTuple(args, "I", &ino) || enter(self))
        return NULL;
    if (!valid_ino(self, ino) || read_inode(self, ino, &inode))
        return leave(self, NULL);
    return leave(self, Py_BuildValue("(IIIIK)", (unsigned int)inode.base.i_mode,
                                     (unsigned int)inode_uid(inode.base),
                                     (unsigned int)inode_gid(inode.base),
                                     (unsigned int)inode.base.i_links_count,
                                     (unsigned long long)EXT2_I_SIZE(&inode.base)));
}

static PyObject *read_link(FileSystem *self, ext2_ino_t ino)
{
    union inode inode;
    char target[BLOCK];
    if (read_inode(self, ino, &inode))
        return NULL;
    uint64_t size = EXT2_I_SIZE(&inode.base);
    bool fast = ext2fs_is_fast_symlink(&inode.base);
    if (!LINUX_S_ISLNK(inode.base.i_mode) || size >= (fast ? sizeof inode.base.i_block : BLOCK)) {
        fail("format", "inode %u: damaged symbolic link", ino);
        return NULL;
    }
    if (fast)
        return PyBytes_FromStringAndSize((char *)inode.base.i_block, (Py_ssize_t)size);
    blk64_t at = 0;
    errcode_t error = ext2fs_bmap2(self->fs, ino, &inode.base, NULL, 0, 0, NULL, &at);
    if (!error)
        error = disk_read(&self->disk, at * BLOCK, BLOCK, target);
    if (error) {
        fail_code(error, "reading a symbolic link");
        return NULL;
    }
    return PyBytes_FromStringAndSize(target, (Py_ssize_t)size);
}

static PyObject *method_readlink(FileSystem *self, PyObject *args)
{
    unsigned int ino;
    if (!PyArg_ParseTuple(args, "I", &ino) || enter(self))
        return NULL;
    return leave(self, valid_ino(self, ino) ? read_link(self, ino) : NULL);
}

static PyObject *method_xattrs(FileSystem *self, PyObject *args)
{
    unsigned int ino;
    if (!PyArg_ParseTuple(args, "I", &ino) || enter(self))
        return NULL;
    return leave(self, valid_ino(self, ino) ? list_xattrs(self, ino) : NULL);
}

/* --- Making */

#define NEW_ARGS "Iy#IIILI"
#define NEW_TARGETS(f)                                                                          \
    &(f).dir, &(f).name, &(f).length, &(f).attributes.mode, &(f).attributes.uid,                \
        &(f).attributes.gid, &(f).attributes.seconds, &(f).attributes.nanoseconds

static PyObject *made(FileSystem *self, struct new_file *f, int error)
{
    return leave(self, error ? NULL : PyLong_FromUnsignedLong(f->ino));
}

static PyObject *method_mkdir(FileSystem *self, PyObject *args)
{
    struct new_file f;
    if (!PyArg_ParseTuple(args, NEW_ARGS, NEW_TARGETS(f)) || enter(self))
        return NULL;
    f.attributes.mode = (f.attributes.mode & 07777) | LINUX_S_IFDIR;
    struct dir *parent = name_new(self, &f);
    if (!parent)
        return made(self, &f, -1);
    if (parent->links > 1)
        parent->links++;
    f.inode.base.i_links_count = 2;
    f.inode.base.i_flags = EXT4_EXTENTS_FL;
    return made(self, &f,
                write_inode(self, f.ino, &f.inode) || !make_dir(self, f.ino, f.dir));
}

static PyObject *method_put_file(FileSystem *self, PyObject *args)
{
    struct new_file f;
    Py_buffer data;
    if (!PyArg_ParseTuple(args, NEW_ARGS "y*", NEW_TARGETS(f), &data))
        return NULL;
    if (enter(self)) {
        PyBuffer_Release(&data);
        return NULL;
    }
    int error;
    /* Even for little data: without this the other threads would wait 5 ms for each turn. */
    Py_BEGIN_ALLOW_THREADS
    error = begin_new(self, &f, (uint64_t)data.len) ||
            write_content(self, data.buf, (uint64_t)data.len) || end_content(self);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return made(self, &f, error);
}

/* Plain files as they lie in an archive, up to what is anything else. (bytes used, files, bytes of
 * their content); after an error, run_used has the bytes in front of the file that has failed. */
static PyObject *method_put_files(FileSystem *self, PyObject *args)
{
    Py_buffer data;
    PyObject *known;
    struct run run = {0};
    if (!PyArg_ParseTuple(args, "y*O!", &data, &PyDict_Type, &known))
        return NULL;
    if (enter(self)) {
        PyBuffer_Release(&data);
        return NULL;
    }
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = put_run(self, data.buf, (size_t)data.len, known, &run);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    self->run_used = run.used;
    return leave(self, error ? NULL
                             : Py_BuildValue("(KKK)", (unsigned long long)run.used, run.files,
                                             run.bytes));
}

static PyObject *method_begin_file(FileSystem *self, PyObject *args)
{
    struct new_file f;
    unsigned long long size;
    if (!PyArg_ParseTuple(args, NEW_ARGS "K", NEW_TARGETS(f), &size) || enter(self))
        return NULL;
    return made(self, &f, begin_new(self, &f, size));
}

static PyObject *method_write(FileSystem *self, PyObject *args)
{
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "y*", &data))
        return NULL;
    if (enter(self)) {
        PyBuffer_Release(&data);
        return NULL;
    }
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = write_content(self, data.buf, (uint64_t)data.len);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return nothing(self, error);
}

static PyObject *method_skip(FileSystem *self, PyObject *args)
{
    unsigned long long length;
    if (!PyArg_ParseTuple(args, "K", &length) || enter(self))
        return NULL;
    return nothing(self, write_content(self, NULL, length));
}

static PyObject *method_end_file(FileSystem *self, PyObject *unused)
{
    (void)unused;
    return enter(self) ? NULL : nothing(self, end_content(self));
}

static int write_target(FileSystem *self, struct new_file *f, const char *target, size_t length)
{
    uint8_t block[BLOCK] = {0};
    f->inode.base.i_size = (uint32_t)length;
    if (length < sizeof f->inode.base.i_block) {
        memcpy(f->inode.base.i_block, target, length);
        return 0;
    }
    struct extents extents = {0};
    uint64_t got;
    blk64_t start;
    memcpy(block, target, length);
    if (allocate(self, 1, 1, &start, &got))
        return -1;
    int result = add_extent(&extents, 0, start, 1);
    if (!result)
        result = map_extents(self, f->ino, &f->inode, &extents);
    free(extents.list);
    errcode_t error = result ? 0 : disk_write_data(&self->disk, start, 1, block);
    return error ? fail_code(error, "writing to the scratch file") : result;
}

static PyObject *method_symlink(FileSystem *self, PyObject *args)
{
    struct new_file f;
    const char *target;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(args, NEW_ARGS "y#", NEW_TARGETS(f), &target, &length) || enter(self))
        return NULL;
    f.attributes.mode = LINUX_S_IFLNK | 0777;
    if (length == 0 || length >= (Py_ssize_t)BLOCK)
        return made(self, &f, fail("limit", "a symbolic link of %zd bytes (1 to 4095)", length));
    return made(self, &f,
                !name_new(self, &f) || write_target(self, &f, target, (size_t)length) ||
                    write_inode(self, f.ino, &f.inode));
}

static PyObject *method_mknod(FileSystem *self, PyObject *args)
{
    struct new_file f;
    unsigned long long major, minor;
    if (!PyArg_ParseTuple(args, NEW_ARGS "KK", NEW_TARGETS(f), &major, &minor) || enter(self))
        return NULL;
    if (type_of(f.attributes.mode) < EXT2_FT_CHRDEV || type_of(f.attributes.mode) > EXT2_FT_FIFO)
        return made(self, &f, fail("format", "neither a device nor a fifo"));
    if (major > 0xfff || minor > 0xfffff)
        return made(self, &f, fail("limit", "device number %llu:%llu", major, minor));
    if (!name_new(self, &f))
        return made(self, &f, -1);
    if (major < 256 && minor < 256)
        f.inode.base.i_block[0] = (uint32_t)(major << 8 | minor);
    else
        f.inode.base.i_block[1] =
            (uint32_t)((minor & 0xff) | major << 8 | (minor & ~0xffull) << 12);
    return made(self, &f, write_inode(self, f.ino, &f.inode));
}

static PyObject *method_link(FileSystem *self, PyObject *args)
{
    unsigned int dir_ino, ino;
    const char *name;
    Py_ssize_t length;
    union inode inode;
    if (!PyArg_ParseTuple(args, "Iy#I", &dir_ino, &name, &length, &ino) || enter(self))
        return NULL;
    struct dir *dir = trim_dirs(self) ? NULL : get_dir(self, dir_ino);
    if (!dir || !valid_ino(self, ino) || read_inode(self, ino, &inode))
        return leave(self, NULL);
    if (LINUX_S_ISDIR(inode.base.i_mode))
        return nothing(self, fail("format", "a hard link to a directory"));
    if (inode.base.i_links_count >= LINK_LIMIT)
        return nothing(self, fail("limit", "more than 65000 hard links to one file"));
    inode.base.i_links_count++;
    return nothing(self, add_entry(self, dir, name, (size_t)length, ino,
                                   type_of(inode.base.i_mode)) ||
                             write_inode(self, ino, &inode));
}

/* --- Taking away */

static PyObject *method_unlink(FileSystem *self, PyObject *args)
{
    unsigned int dir_ino, ino = 0;
    const char *name;
    Py_ssize_t length;
    int type = 0;
    if (!PyArg_ParseTuple(args, "Iy#", &dir_ino, &name, &length) || enter(self))
        return NULL;
    struct dir *dir = trim_dirs(self) ? NULL : get_dir(self, dir_ino);
    if (!dir)
        return leave(self, NULL);
    if (!find_entry(self, dir, name, (size_t)length, &ino, &type) || type == EXT2_FT_DIR)
        return nothing(self, fail("missing", "no such file"));
    return nothing(self, remove_entry(self, dir, name, (size_t)length) || drop_link(self, ino));
}

static PyObject *method_rmdir(FileSystem *self, PyObject *args)
{
    unsigned int dir_ino, ino = 0;
    const char *name;
    Py_ssize_t length;
    int type = 0;
    union inode inode;
    if (!PyArg_ParseTuple(args, "Iy#", &dir_ino, &name, &length) || enter(self))
        return NULL;
    struct dir *dir = trim_dirs(self) ? NULL : get_dir(self, dir_ino);
    if (!dir)
        return leave(self, NULL);
    if (!find_entry(self, dir, name, (size_t)length, &ino, &type) || type != EXT2_FT_DIR)
        return nothing(self, fail("missing", "no such directory"));
    struct dir *gone = get_dir(self, ino);
    if (!gone || gone->live)
        return nothing(self, gone ? fail("format", "the directory is not empty") : -1);
    forget_dir(self, ino);
    if (dir->links > 2)
        dir->links--;
    return nothing(self, remove_entry(self, dir, name, (size_t)length) ||
                             read_inode(self, ino, &inode) ||
                             free_inode(self, ino, &inode, true));
}

/* --- Attributes */

static PyObject *method_set_attributes(FileSystem *self, PyObject *args)
{
    unsigned int ino;
    struct attributes a;
    union inode inode;
    if (!PyArg_ParseTuple(args, "IIIILI", &ino, &a.mode, &a.uid, &a.gid, &a.seconds,
                          &a.nanoseconds) ||
        enter(self))
        return NULL;
    if (!valid_ino(self, ino) || read_inode(self, ino, &inode))
        return leave(self, NULL);
    /* The type stays, and a symbolic link has no permissions to change. */
    unsigned int bits = LINUX_S_ISLNK(inode.base.i_mode) ? inode.base.i_mode : a.mode;
    a.mode = (inode.base.i_mode & LINUX_S_IFMT) | (bits & 07777);
    set_attributes(&inode, &a);
    return nothing(self, write_inode(self, ino, &inode));
}

static PyObject *method_set_xattrs(FileSystem *self, PyObject *args)
{
    unsigned int ino;
    PyObject *attributes;
    int keep;
    if (!PyArg_ParseTuple(args, "IO!p", &ino, &PyDict_Type, &attributes, &keep) || enter(self))
        return NULL;
    return nothing(self, valid_ino(self, ino) ? replace_xattrs(self, ino, attributes, keep) : -1);
}

static PyObject *method_mark_fresh(FileSystem *self, PyObject *args)
{
    unsigned int ino;
    if (!PyArg_ParseTuple(args, "I", &ino) || enter(self))
        return NULL;
    if (!valid_ino(self, ino))
        return leave(self, NULL);
    set_fresh(self, ino, true);
    return nothing(self, 0);
}

/* --- The end of a layer */

static int write_all(FileSystem *self)
{
    if (flush_dirs(self))
        return -1;
    errcode_t error = ext2fs_write_bitmaps(self->fs);
    if (!error) {
        ext2fs_mark_super_dirty(self->fs);
        error = ext2fs_flush2(self->fs, 0);
    }
    if (!error) {
        Py_BEGIN_ALLOW_THREADS
        error = disk_flush(&self->disk);
        Py_END_ALLOW_THREADS
    }
    return error ? fail_code(error, "writing to the scratch file") : 0;
}

static PyObject *method_flush(FileSystem *self, PyObject *unused)
{
    (void)unused;
    return enter(self) ? NULL : nothing(self, write_all(self));
}

static int add_run(PyObject *list, uint64_t start, uint64_t end)
{
    PyObject *run = Py_BuildValue("(KK)", (unsigned long long)start * BLOCK,
                                  (unsigned long long)(end - start) * BLOCK);
    int error = !run || PyList_Append(list, run);
    Py_XDECREF(run);
    return error;
}

static bool is_changed(FileSystem *self, uint64_t block)
{
    return self->disk.written[block >> 3] >> (block & 7) & 1 &&
           (block >= ext2fs_blocks_count(self->fs->super) ||
            ext2fs_test_block_bitmap2(self->fs->block_map, block));
}

/* [(offset, length)] of what is in the scratch file and in use, in bytes. */
static PyObject *method_written(FileSystem *self, PyObject *unused)
{
    (void)unused;
    if (enter(self))
        return NULL;
    PyObject *list = PyList_New(0);
    uint64_t blocks = self->disk.blocks, at = 0;
    while (list && at < blocks) {
        if (at % 8 == 0 && self->disk.written[at >> 3] == 0) {
            at += 8;
            continue;
        }
        uint64_t start = at;
        while (at < blocks && is_changed(self, at))
            at++;
        if (at == start)
            at++;
        else if (add_run(list, start, at))
            Py_CLEAR(list);
    }
    return leave(self, list);
}

/* [(offset, length)] of the blocks that the file system does not use, in bytes. */
static PyObject *method_free(FileSystem *self, PyObject *unused)
{
    (void)unused;
    if (enter(self))
        return NULL;
    PyObject *list = PyList_New(0);
    blk64_t at = self->fs->super->s_first_data_block;
    blk64_t last = ext2fs_blocks_count(self->fs->super) - 1;
    while (list && at <= last) {
        blk64_t start, end;
        if (ext2fs_find_first_zero_block_bitmap2(self->fs->block_map, at, last, &start))
            break;
        if (ext2fs_find_first_set_block_bitmap2(self->fs->block_map, start, last, &end))
            end = last + 1;
        if (add_run(list, start, end))
            Py_CLEAR(list);
        at = end;
    }
    return leave(self, list);
}

/* [(offset, length, zero)]: where new differs from old (None: zeros), block by block. */
static PyObject *compare(PyObject *module, PyObject *args)
{
    static const uint8_t zeros[BLOCK];
    Py_buffer new, old = {0};
    PyObject *below;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*O", &new, &below))
        return NULL;
    PyObject *list = NULL;
    if (below != Py_None && PyObject_GetBuffer(below, &old, PyBUF_SIMPLE))
        goto done;
    if (new.len % BLOCK || (old.obj && old.len != new.len)) {
        PyErr_SetString(PyExc_ValueError, "whole blocks of the same length");
        goto done;
    }
    list = PyList_New(0);
    Py_ssize_t start = 0;
    int before = 0; /* 0: no difference, 1: data, 2: zeros */
    for (Py_ssize_t at = 0; list && at <= new.len; at += BLOCK) {
        int now = 0;
        if (at < new.len) {
            const uint8_t *block = (const uint8_t *)new.buf + at;
            bool zero = memcmp(block, zeros, BLOCK) == 0;
            bool same = old.obj ? memcmp(block, (const uint8_t *)old.buf + at, BLOCK) == 0 : zero;
            now = same ? 0 : zero ? 2 : 1;
        }
        if (now == before && at < new.len)
            continue;
        if (before) {
            PyObject *run = Py_BuildValue("(nnO)", start, at - start,
                                          before == 2 ? Py_True : Py_False);
            if (!run || PyList_Append(list, run))
                Py_CLEAR(list);
            Py_XDECREF(run);
        }
        start = at;
        before = now;
    }
done:
    PyBuffer_Release(&new);
    if (old.obj)
        PyBuffer_Release(&old);
    return list;
}

static PyMethodDef methods[] = {
    {"close", (PyCFunction)method_close, METH_NOARGS, NULL},
    {"format", (PyCFunction)method_format, METH_VARARGS, NULL},
    {"open", (PyCFunction)method_open, METH_NOARGS, NULL},
    {"lookup", (PyCFunction)method_lookup, METH_VARARGS, NULL},
    {"listdir", (PyCFunction)method_listdir, METH_VARARGS, NULL},
    {"stat", (PyCFunction)method_stat, METH_VARARGS, NULL},
    {"readlink", (PyCFunction)method_readlink, METH_VARARGS, NULL},
    {"xattrs", (PyCFunction)method_xattrs, METH_VARARGS, NULL},
    {"mkdir", (PyCFunction)method_mkdir, METH_VARARGS, NULL},
    {"put_file", (PyCFunction)method_put_file, METH_VARARGS, NULL},
    {"put_files", (PyCFunction)method_put_files, METH_VARARGS, NULL},
    {"begin_file", (PyCFunction)method_begin_file, METH_VARARGS, NULL},
    {"write", (PyCFunction)method_write, METH_VARARGS, NULL},
    {"skip", (PyCFunction)method_skip, METH_VARARGS, NULL},
    {"end_file", (PyCFunction)method_end_file, METH_NOARGS, NULL},
    {"symlink", (PyCFunction)method_symlink, METH_VARARGS, NULL},
    {"mknod", (PyCFunction)method_mknod, METH_VARARGS, NULL},
    {"link", (PyCFunction)method_link, METH_VARARGS, NULL},
    {"unlink", (PyCFunction)method_unlink, METH_VARARGS, NULL},
    {"rmdir", (PyCFunction)method_rmdir, METH_VARARGS, NULL},
    {"set_attributes", (PyCFunction)method_set_attributes, METH_VARARGS, NULL},
    {"set_xattrs", (PyCFunction)method_set_xattrs, METH_VARARGS, NULL},
    {"mark_fresh", (PyCFunction)method_mark_fresh, METH_VARARGS, NULL},
    {"flush", (PyCFunction)method_flush, METH_NOARGS, NULL},
    {"written", (PyCFunction)method_written, METH_NOARGS, NULL},
    {"free", (PyCFunction)method_free, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"run_used", T_ULONGLONG, offsetof(FileSystem, run_used), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "An ext4 file system on a disk; see hybrid/build/ext4/native.pyi."},
    {Py_tp_init, init},
    {Py_tp_dealloc, dealloc},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {Py_tp_new, PyType_GenericNew},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "hybrid.build.ext4._native.FileSystem",
    .basicsize = sizeof(FileSystem),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

static PyMethodDef functions[] = {
    {"compare", compare, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_size = -1,
    .m_methods = functions,
};

/* The library would print what it finds damaged to stderr; what matters is raised. */
static void say_nothing(const char *who, errcode_t code, const char *format, va_list arguments)
{
    (void)who, (void)code, (void)format, (void)arguments;
}

PyMODINIT_FUNC PyInit__native(void)
{
    initialize_ext2_error_table();
    set_com_err_hook(say_nothing);
    PyObject *made = PyModule_Create(&module), *type = PyType_FromSpec(&spec);
    native_error = PyErr_NewException("hybrid.build.ext4._native.NativeError", NULL, NULL);
    if (!made || !type || !native_error || PyModule_AddObjectRef(made, "FileSystem", type) ||
        PyModule_AddObjectRef(made, "NativeError", native_error)) {
        Py_XDECREF(made);
        made = NULL;
    }
    Py_XDECREF(type);
    return made;
}
