/* Extended attributes, by the full names that Linux has for them. libext2fs puts them into the inode
 * or into a block, and turns POSIX ACLs into the form that ext4 keeps them in.
 */
#include "filesystem.h"

static int open_handle(FileSystem *self, ext2_ino_t ino, struct ext2_xattr_handle **handle)
{
    errcode_t error = ext2fs_xattrs_open(self->fs, ino, handle);
    if (!error) {
        error = ext2fs_xattrs_read(*handle);
        if (error)
            ext2fs_xattrs_close(handle);
    }
    return error ? fail_code(error, "reading extended attributes") : 0;
}

static int add_name(char *name, char *value, size_t length, void *list)
{
    (void)value, (void)length;
    PyObject *text = PyBytes_FromString(name);
    int failed = !text || PyList_Append(list, text);
    Py_XDECREF(text);
    return failed ? XATTR_ABORT : 0;
}

/* A new list of the names in the handle. */
static PyObject *names_of(struct ext2_xattr_handle *handle)
{
    PyObject *names = PyList_New(0);
    if (names)
        ext2fs_xattrs_iterate(handle, add_name, names);
    if (PyErr_Occurred())
        Py_CLEAR(names);
    return names;
}

static int remove_others(struct ext2_xattr_handle *handle, PyObject *wanted)
{
    PyObject *names = names_of(handle);
    int result = names ? 0 : -1;
    for (Py_ssize_t i = 0; !result && i < PyList_GET_SIZE(names); i++) {
        PyObject *name = PyList_GET_ITEM(names, i);
        int keep = PyDict_Contains(wanted, name);
        if (keep < 0) {
            result = -1;
        } else if (!keep) {
            errcode_t error = ext2fs_xattr_remove(handle, PyBytes_AS_STRING(name));
            if (error)
                result = fail_code(error, "removing an extended attribute");
        }
    }
    Py_XDECREF(names);
    return result;
}

int replace_xattrs(FileSystem *self, ext2_ino_t ino, PyObject *attributes, bool keep_others)
{
    struct ext2_xattr_handle *handle;
    PyObject *name, *value;
    Py_ssize_t at = 0;
    if (open_handle(self, ino, &handle))
        return -1;
    int result = keep_others ? 0 : remove_others(handle, attributes);
    while (!result && PyDict_Next(attributes, &at, &name, &value)) {
        if (!PyBytes_Check(name) || !PyBytes_Check(value)) {
            PyErr_SetString(PyExc_TypeError, "attributes are bytes");
            result = -1;
            break;
        }
        errcode_t error = ext2fs_xattr_set(handle, PyBytes_AS_STRING(name),
                                           PyBytes_AS_STRING(value),
                                           (size_t)PyBytes_GET_SIZE(value));
        if (error == EINVAL)
            result = fail("format", "invalid value of the extended attribute %s",
                          PyBytes_AS_STRING(name));
        else if (error)
            result = fail_code(error, "writing an extended attribute");
    }
    ext2fs_xattrs_close(&handle);
    return result;
}

PyObject *list_xattrs(FileSystem *self, ext2_ino_t ino)
{
    struct ext2_xattr_handle *handle;
    if (open_handle(self, ino, &handle))
        return NULL;
    PyObject *found = PyDict_New(), *names = found ? names_of(handle) : NULL;
    if (!names)
        Py_CLEAR(found);
    for (Py_ssize_t i = 0; found && i < PyList_GET_SIZE(names); i++) {
        PyObject *name = PyList_GET_ITEM(names, i), *bytes = NULL;
        void *value = NULL;
        size_t length = 0;
        errcode_t error = ext2fs_xattr_get(handle, PyBytes_AS_STRING(name), &value, &length);
        if (error)
            fail_code(error, "reading an extended attribute");
        else
            bytes = PyBytes_FromStringAndSize(value, (Py_ssize_t)length);
        if (!bytes || PyDict_SetItem(found, name, bytes))
            Py_CLEAR(found);
        Py_XDECREF(bytes);
        if (value)
            ext2fs_free_mem(&value);
    }
    Py_XDECREF(names);
    ext2fs_xattrs_close(&handle);
    return found;
}
