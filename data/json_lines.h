// json_lines.h - a file of one JSON object per line, read from its beginning to its end: metrics, events.
//
// For files of any length: one line is in memory at a time. A line that is no JSON object is counted and passed over;
// what a process that is still writing, or was killed, left behind the last newline is no line yet.
#pragma once
#include "fail.h"

// A member of an object or an element of a list. Good until the next line.
typedef struct JsonField {
    const char *key;   // of elements NULL
    const void *value; // NULL: there is none
} JsonField;

typedef struct JsonLines JsonLines;

// What was found beside the objects.
typedef struct JsonDamage {
    int64_t lines, first; // lines that are no objects; the number of the first of them, 0: none
    bool is_torn;         // the file does not end with a newline
} JsonDamage;

// json_lines_open: Errors: E_INPUT: not there or not readable; E_INTERNAL. Local.
Err json_lines_open(JsonLines **out, const char *path) MUST_CHECK;
// json_lines_close: accepts NULL in *j.
void json_lines_close(JsonLines **j);
// json_lines_next: go to the next object; *is_there false: there is none. Fields of the one before are gone. Errors:
// E_INPUT: cannot be read. Local.
Err json_lines_next(JsonLines *j, bool *is_there) MUST_CHECK;
// json_lines_line: the number of the line it is in, from 1. json_lines_damage: so far.
int64_t json_lines_line(const JsonLines *j);
JsonDamage json_lines_damage(const JsonLines *j);
// json_lines_field: a member of the object, of its own or ("fp8_health.site") of one inside of it; value NULL: it has
// none of this name.
JsonField json_lines_field(const JsonLines *j, const char *key);
// json_lines_each: the member behind f, one that this returned, in the order of the line; the first if f.key is NULL;
// value NULL behind the last.
JsonField json_lines_each(const JsonLines *j, JsonField f);

// json_field_number: NAN if it is none (null, say). Pure.
double json_field_number(JsonField f);
// json_field_text: a string as it is, anything else as JSON; cut to n bytes, "" if it is not there.
void json_field_text(JsonField f, char *out, size_t n);
// json_field_element: element i of a list; value NULL behind the last, and of what is no list. Pure.
JsonField json_field_element(JsonField list, size_t i);
