// json_text.h - the inside of a JSON string. Bytes of UTF-8 stay as they are.
#pragma once
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define JSON_BYTE 6 // characters of a byte at most

// json_byte: one byte at out [JSON_BYTE]. Returns how many characters. Pure.
static inline size_t json_byte(char *out, unsigned char b) {
    static const char digits[] = "0123456789abcdef";
    size_t n = 0;
    if (b < 0x20) {
        memcpy(out, (const char[JSON_BYTE]){'\\', 'u', '0', '0', digits[b >> 4], digits[b & 15]}, JSON_BYTE);
        return JSON_BYTE;
    }
    if (b == '"' || b == '\\') out[n++] = '\\';
    out[n++] = (char)b;
    return n;
}

// json_put: n bytes; errors are the stream's.
static inline void json_put(FILE *f, const char *text, size_t n) {
    char out[JSON_BYTE];
    for (size_t i = 0; i < n; i++) fwrite(out, 1, json_byte(out, (unsigned char)text[i]), f);
}
