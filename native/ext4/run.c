/* Runs of plain files, from the archive to the file system in one call, without the GIL. */
#include "filesystem.h"
#include "plain.h"

#define MAX_NAME 4096u /* longer ones are none of these */

/* The directory that a name is in, if Python's Resolver knows it: 0 if not. */
static int known_directory(PyObject *known, const char *head, size_t length, ext2_ino_t *ino)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *key = PyBytes_FromStringAndSize(head, (Py_ssize_t)length);
    PyObject *found = key ? PyDict_GetItemWithError(known, key) : NULL;
    *ino = found ? (ext2_ino_t)PyLong_AsUnsignedLong(found) : 0;
    Py_XDECREF(key);
    int result = PyErr_Occurred() ? -1 : 0;
    PyGILState_Release(gil);
    return result;
}

/* The directory of the last file: neighbours follow each other. */
struct place {
    ext2_ino_t ino; /* 0: none */
    size_t length;
    char head[MAX_NAME];
};

/* 1: last is to be a new name in place->ino. 0: that is not so easy. */
static int find_place(FileSystem *self, PyObject *known, const struct plain_file *file,
                      struct place *place, const char **last)
{
    size_t head = file->name_length;
    while (head && file->name[head - 1] != '/')
        head--;
    *last = file->name + head;
    size_t length = file->name_length - head;
    if (head)
        head--;
    if (length == 0 || (length <= 2 && memcmp(*last, "..", length) == 0) || head > MAX_NAME ||
        memmem(file->name, file->name_length, ".wh.", 4))
        return 0;
    if (!place->ino || place->length != head || memcmp(place->head, file->name, head) != 0) {
        if (known_directory(known, file->name, head, &place->ino))
            return -1;
        if (!place->ino)
            return 0;
        memcpy(place->head, file->name, head);
        place->length = head;
    }
    ext2_ino_t ino;
    int type;
    struct dir *dir = trim_dirs(self) ? NULL : get_dir(self, place->ino);
    return dir ? !find_entry(self, dir, *last, length, &ino, &type) : -1;
}

int put_run(FileSystem *self, const uint8_t *data, size_t length, PyObject *known, struct run *run)
{
    struct plain_file file;
    struct place place;
    struct new_file new;
    place.ino = 0;
    while (read_plain_file(data + run->used, length - run->used, &file)) {
        int result = find_place(self, known, &file, &place, &new.name);
        if (result <= 0)
            return result;
        new.dir = place.ino;
        new.length = file.name + file.name_length - new.name;
        new.attributes = (struct attributes){
            .mode = file.mode, .uid = file.uid, .gid = file.gid,
            .seconds = file.seconds, .nanoseconds = file.nanoseconds,
        };
        if (begin_new(self, &new, file.size) || write_content(self, file.data, file.size) ||
            end_content(self))
            return -1;
        run->used += file.stored;
        run->bytes += file.size;
        run->files++;
    }
    return 0;
}
