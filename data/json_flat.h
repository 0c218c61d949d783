// json_flat.h - a small JSON object as a list of "key.nested" = text pairs.
//
// For files that other programs write and whose keys we look up one by one, as Hugging Face's config.json:
// the rest of the program needs neither a JSON library nor a tree. Lists become one entry of kind JSON_LIST
// whose text is the list as JSON.
#pragma once
#include "fail.h"

typedef enum JsonKind { JSON_NONE, JSON_FLAG, JSON_WHOLE, JSON_FRACTION, JSON_TEXT, JSON_LIST } JsonKind;

typedef struct JsonItem {
    char *key;     // nested objects: "rope_scaling.factor"
    JsonKind kind; // null, true/false, integer, real, string, list
    char *text;    // "null", "true", "42", "1e-06" (17 digits), the string itself, the list as JSON
} JsonItem;

typedef struct JsonFlat {
    JsonItem *items; // in the order of the file
    int n;
} JsonFlat;

// json_flat_read: a file that holds one JSON object of at most 16 MiB, nested at most 8 deep. Errors: E_INPUT:
// missing, not JSON (with line and column), duplicate keys, not an object. *out is then empty. Local.
Err json_flat_read(JsonFlat *out, const char *path) MUST_CHECK;
// json_flat_free: frees the items; accepts an empty list.
void json_flat_free(JsonFlat *j);
// json_flat_find: the item with this key, NULL if absent.
const JsonItem *json_flat_find(const JsonFlat *j, const char *key);
