// bytelevel.h - text as bytes and bytes as visible characters.
//
// Byte-level BPE files (GPT-2 and after) write each of the 256 bytes as one printable Unicode
// character: bytes 33-126, 161-172 and 174-255 stand for themselves, the other 68 for U+0100,
// U+0101, ... in byte order. Beside that table: reading and writing single UTF-8 characters, and
// the repair of broken UTF-8 as Python's errors="replace" does it. All functions are Local and
// pure.
#pragma once
#include "fail.h"

#define BYTE_SYMBOL_MAX 324 // one past the largest code point in the table

// bytelevel_symbol: the code point that stands for a byte.
int bytelevel_symbol(uint8_t byte);
// bytelevel_byte: the byte that a code point stands for, -1 if it stands for none.
int bytelevel_byte(int code_point);
// bytelevel_decode: a string of symbols -> bytes (at most n of them). Returns their number, or -1
// if `text` has a character that stands for no byte or is not UTF-8.
int64_t bytelevel_decode(uint8_t *out, const char *text, size_t n);
// bytelevel_encode: bytes -> a string of symbols of at most 2n bytes, not terminated. Returns its
// length.
size_t bytelevel_encode(char *out, const uint8_t *bytes, size_t n);

// utf8_put: write one code point, 1 to 4 bytes. Returns the number.
int utf8_put(char *out, int code_point);
// utf8_get: read the character at p (n bytes are left, n > 0). Returns its length in bytes and sets
// *code_point, or the negative length of the broken part (1 to 3 bytes) that one U+FFFD replaces.
int utf8_get(int *code_point, const char *p, size_t n);
// utf8_valid_bytes: length of the valid UTF-8 at the start of text (n if all of it is valid).
size_t utf8_valid_bytes(const char *text, size_t n);
// utf8_repair: a malloc'ed copy with each broken part replaced by U+FFFD. Errors: E_INTERNAL,
// memory.
Err utf8_repair(char **out, size_t *nout, const char *text, size_t n) MUST_CHECK;
