// read_text.h - the text that a command is to work on.
#pragma once
#include "fail.h"

// read_text: all bytes of a file, or of standard input for "-": *text from malloc, [*n] and a zero byte. Errors:
// E_INPUT, E_INTERNAL. Local.
Err read_text(const char *path, char **text, size_t *n) MUST_CHECK;
