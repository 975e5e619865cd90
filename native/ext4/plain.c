/* The usual entry of an archive: a regular file that its own header describes, perhaps with a PAX
 * header in front that says its time or its long name. All else, and whatever looks damaged, is left
 * to the reader in Python (hybrid/build/tar): what is taken here means the same there.
 */
#define _POSIX_C_SOURCE 200809L /* strnlen */
#include "plain.h"

#include <string.h>

#define HEADER 512u
#define SIZE_LIMIT (1u << 20) /* as apply.py has it: larger files are written in pieces */
#define PAX_LIMIT 4096u

/* A number as all usual tars write it: octal digits with blanks or NULs around them.
 * Nothing but these is 0. */
static bool octal(const uint8_t *field, size_t length, uint64_t *number)
{
    size_t i = 0;
    *number = 0;
    while (i < length && field[i] == ' ')
        i++;
    for (; i < length && field[i] >= '0' && field[i] <= '7'; i++)
        *number = *number << 3 | (field[i] - '0');
    for (; i < length; i++)
        if (field[i] != 0 && field[i] != ' ')
            return false;
    return true;
}

struct header {
    uint64_t mode, uid, gid, size, seconds;
};

static bool read_header(const uint8_t *block, struct header *header)
{
    uint64_t stated, sum = 8 * ' ';
    if (!octal(block + 100, 8, &header->mode) || !octal(block + 108, 8, &header->uid) ||
        !octal(block + 116, 8, &header->gid) || !octal(block + 124, 12, &header->size) ||
        !octal(block + 136, 12, &header->seconds) || !octal(block + 148, 8, &stated))
        return false;
    for (size_t i = 0; i < HEADER; i++)
        sum += block[i];
    for (size_t i = 148; i < 156; i++)
        sum -= block[i];
    return sum == stated;
}

/* Decimal digits; false unless there are 1 to 15 of them. */
static bool decimal(const char **at, const char *end, long long *number)
{
    const char *start = *at;
    *number = 0;
    while (*at < end && **at >= '0' && **at <= '9' && *at - start < 16)
        *number = *number * 10 + (*(*at)++ - '0');
    return *at > start && *at - start < 16;
}

static bool read_time(const char *at, const char *end, struct plain_file *file)
{
    if (!decimal(&at, end, &file->seconds))
        return false;
    file->nanoseconds = 0;
    if (at == end)
        return true;
    if (*at++ != '.')
        return false;
    unsigned int worth = 100000000;
    for (; at < end; at++, worth /= 10) {
        if (*at < '0' || *at > '9')
            return false;
        file->nanoseconds += (unsigned int)(*at - '0') * worth;
    }
    return true;
}

static bool is_key(const char *key, size_t length, const char *wanted)
{
    return length == strlen(wanted) && memcmp(key, wanted, length) == 0;
}

static bool read_record(const char *key, const char *end, struct plain_file *file, bool *timed)
{
    const char *equals = memchr(key, '=', (size_t)(end - key));
    if (!equals || equals + 1 == end)
        return false;
    size_t length = (size_t)(equals - key);
    if (is_key(key, length, "mtime"))
        return *timed = read_time(equals + 1, end, file);
    if (is_key(key, length, "path")) {
        file->name = equals + 1;
        file->name_length = (size_t)(end - file->name);
        return !memchr(file->name, 0, file->name_length);
    }
    return is_key(key, length, "atime") || is_key(key, length, "ctime");
}

/* LEN key=value\n, repeated; NULs may follow. */
static bool read_records(const char *at, const char *end, struct plain_file *file, bool *timed)
{
    while (at < end && *at) {
        const char *start = at;
        long long length;
        if (!decimal(&at, end, &length) || at == end || *at++ != ' ' || length > end - start ||
            length < at - start + 2 || start[length - 1] != '\n' ||
            !read_record(at, start + length - 1, file, timed))
            return false;
        at = start + length;
    }
    return true;
}

static bool read_name(const uint8_t *block, struct plain_file *file)
{
    const char *text = (const char *)block;
    size_t length = strnlen(text, 100), before = 0;
    if (memcmp(block + 257, "ustar", 6) == 0 && block[345]) {
        if (memcmp(block + 508, "tar", 4) == 0)
            return false; /* star has times in the prefix */
        before = strnlen(text + 345, 155);
        memcpy(file->joined, text + 345, before);
        file->joined[before++] = '/';
    }
    memcpy(file->joined + before, text, length);
    file->name = file->joined;
    file->name_length = before + length;
    return true;
}

static size_t padded(uint64_t size)
{
    return (size_t)((size + HEADER - 1) / HEADER * HEADER);
}

bool read_plain_file(const uint8_t *data, size_t length, struct plain_file *file)
{
    struct header header;
    size_t at = 0;
    bool timed = false;
    file->name = NULL;
    if (length < HEADER || !read_header(data, &header))
        return false;
    if (data[156] == 'x') {
        at = HEADER + padded(header.size);
        if (header.size > PAX_LIMIT || at + HEADER > length ||
            !read_records((const char *)data + HEADER, (const char *)data + HEADER + header.size,
                          file, &timed) ||
            !read_header(data + at, &header))
            return false;
    }
    const uint8_t *block = data + at;
    at += HEADER;
    if ((block[156] != '0' && block[156] != 0) || header.size > SIZE_LIMIT ||
        padded(header.size) > length - at || (!file->name && !read_name(block, file)))
        return false;
    if (!timed) {
        file->seconds = (long long)header.seconds;
        file->nanoseconds = 0;
    }
    file->mode = (unsigned int)header.mode & 07777;
    file->uid = (unsigned int)header.uid;
    file->gid = (unsigned int)header.gid;
    file->data = data + at;
    file->size = (size_t)header.size;
    file->stored = at + padded(header.size);
    return true;
}
