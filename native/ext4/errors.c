#include "filesystem.h"

#include <errno.h>
#include <stdarg.h>

PyObject *native_error;

static void set_error(const char *kind, const char *format, va_list arguments)
{
    PyObject *text = PyUnicode_FromFormatV(format, arguments);
    PyObject *value = text ? Py_BuildValue("(sN)", kind, text) : NULL;
    if (value) {
        PyErr_SetObject(native_error, value);
        Py_DECREF(value);
    }
}

int fail(const char *kind, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    PyGILState_STATE gil = PyGILState_Ensure();
    if (!PyErr_Occurred()) /* else the cause is there already */
        set_error(kind, format, arguments);
    PyGILState_Release(gil);
    va_end(arguments);
    return -1;
}

int misuse(const char *text)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    PyErr_SetString(PyExc_ValueError, text);
    PyGILState_Release(gil);
    return -1;
}

static int fail_memory(void)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    PyErr_NoMemory();
    PyGILState_Release(gil);
    return -1;
}

int fail_code(errcode_t code, const char *doing)
{
    switch (code) {
    case EXT2_ET_BLOCK_ALLOC_FAIL:
        return fail("full", "no blocks are left");
    case EXT2_ET_INODE_ALLOC_FAIL:
        return fail("full", "no inodes are left");
    case EXT2_ET_EA_NO_SPACE:
        return fail("limit", "extended attributes of more than 4 KiB");
    case EXT2_ET_SHORT_READ:
    case EXT2_ET_SHORT_WRITE:
        return fail("format", "%s: a block lies outside the disk", doing);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return fail("scratch", "%s: %s", doing, strerror((int)code));
    case ENOMEM:
    case EXT2_ET_NO_MEMORY:
        return fail_memory();
    case EOVERFLOW:
        return fail("format", "%s: impossible numbers in the file system", doing);
    default:
        /* Numbers of the library's own table say that the file system is damaged. */
        return fail(code < 1000 ? "system" : "format", "%s: %s", doing, error_message(code));
    }
}
