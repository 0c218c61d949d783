// bytelevel.c - the byte <-> symbol table of byte-level BPE, and UTF-8 one character at a time.
#include "bytelevel.h"

#include <stdlib.h>
#include <string.h>

static bool is_printable(int byte) {
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

int bytelevel_symbol(uint8_t byte) {
    if (is_printable(byte)) return byte;
    // The others in order: 0-32, 127-160, 173.
    if (byte <= 32) return 256 + byte;
    if (byte <= 160) return 256 + 33 + (byte - 127);
    return 256 + 33 + 34;
}

int bytelevel_byte(int code_point) {
    if (code_point < 0 || code_point >= BYTE_SYMBOL_MAX) return -1;
    if (code_point < 256) return is_printable(code_point) ? code_point : -1;
    int i = code_point - 256;
    if (i < 33) return i;
    if (i < 33 + 34) return 127 + i - 33;
    return 173;
}

int64_t bytelevel_decode(uint8_t *out, const char *text, size_t n) {
    int64_t count = 0;
    for (size_t i = 0; i < n;) {
        int code_point = 0;
        int length = utf8_get(&code_point, text + i, n - i);
        int byte = length > 0 ? bytelevel_byte(code_point) : -1;
        if (byte < 0) return -1;
        out[count++] = (uint8_t)byte;
        i += (size_t)length;
    }
    return count;
}

size_t bytelevel_encode(char *out, const uint8_t *bytes, size_t n) {
    size_t length = 0;
    for (size_t i = 0; i < n; i++)
        length += (size_t)utf8_put(out + length, bytelevel_symbol(bytes[i]));
    return length;
}

int utf8_put(char *out, int c) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 63));
        out[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 63));
    out[2] = (char)(0x80 | (c >> 6 & 63));
    out[3] = (char)(0x80 | (c & 63));
    return 4;
}

// The Unicode standard, table 3-7: the second byte's range depends on the first, so that overlong
// forms, surrogates and values above U+10FFFF end at the byte that makes them impossible.
int utf8_get(int *code_point, const char *text, size_t n) {
    const uint8_t *p = (const uint8_t *)text;
    int first = p[0];
    if (first < 0x80) {
        *code_point = first;
        return 1;
    }
    if (first < 0xC2 || first > 0xF4) return -1;
    int length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    int low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    int high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    int value = first & (0x7F >> length);
    for (int i = 1; i < length; i++) {
        if ((size_t)i >= n || p[i] < low || p[i] > high) return -i;
        value = value << 6 | (p[i] & 63);
        low = 0x80;
        high = 0xBF;
    }
    *code_point = value;
    return length;
}

size_t utf8_valid_bytes(const char *text, size_t n) {
    size_t i = 0;
    while (i < n) {
        uint64_t eight = 0;
        if (i + 8 <= n) memcpy(&eight, text + i, 8);
        if (i + 8 <= n && !(eight & 0x8080808080808080u)) { // eight ASCII bytes at once
            i += 8;
            continue;
        }
        int code_point = 0;
        int length = utf8_get(&code_point, text + i, n - i);
        if (length < 0) break;
        i += (size_t)length;
    }
    return i;
}

Err utf8_repair(char **out, size_t *nout, const char *text, size_t n) {
    char *copy = malloc(3 * n + 1); // a broken byte becomes three at most
    CHECK(copy, E_INTERNAL, "out of memory: repairing %zu bytes of text", n);
    size_t used = 0;
    for (size_t i = 0; i < n;) {
        size_t good = utf8_valid_bytes(text + i, n - i);
        memcpy(copy + used, text + i, good);
        used += good;
        i += good;
        if (i == n) break;
        int code_point = 0;
        i += (size_t)-utf8_get(&code_point, text + i, n - i);
        used += (size_t)utf8_put(copy + used, 0xFFFD);
    }
    copy[used] = '\0';
    *out = copy;
    *nout = used;
    return OK;
}
