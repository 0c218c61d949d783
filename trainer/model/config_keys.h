// config_keys.h - config.def as a table, for the files of the configuration only.
//
// One Key per setting: where it stands in the struct, what it may hold, what it is called. The
// reader (config.c), the texts (config_text.c) and the tests walk this table, so none of them names
// a setting.
#pragma once
#include "config.h"

typedef enum KeyKind {
    KEY_INT,
    KEY_REAL,
    KEY_BOOL,
    KEY_ENUM,
    KEY_PATHS,
    KEY_PATH,
    KEY_REALS,
    KEY_INTS,
    KEY_NEST, // a map of further keys, or null; its value in the struct is the bool has_<name>
} KeyKind;

typedef struct Key {
    const char *section;
    const char *nest; // the KEY_NEST this key stands in, NULL for the others
    const char *name;
    KeyKind kind;
    size_t offset; // in Config
    bool is_required, is_nullable, is_same;
    double fallback, low, high; // of INT, REAL, BOOL, ENUM
    const char *values;         // of ENUM, separated by '|'
    const char *unit;
    const char *help;
} Key;

typedef struct KeyName {
    char s[96];
} KeyName;

// keys_count / keys_at: the settings in the order of config.def; KEY_NEST stands before its own
// keys.
int keys_count(void);
const Key *keys_at(int i);
// keys_find: the index of section.name or, with nest, of section.nest.name; -1 if there is none.
int keys_find(const char *section, const char *nest, const char *name);
// keys_name: "section.name" or "section.nest.name".
KeyName keys_name(const Key *k);
// keys_value: where a key stands in the struct.
void *keys_value(const Config *c, const Key *k);
// keys_defaults: fill a zeroed struct.
void keys_defaults(Config *c);
// keys_nest_reset: the keys inside a KEY_NEST get their defaults again.
void keys_nest_reset(Config *c, const Key *nest);
// keys_write: the value as YAML that the reader reads back to the same bits.
void keys_write(FILE *out, const Config *c, const Key *k);
// keys_enum_value: the i-th of "a|b|c"; returns its length and sets *at, or 0 if there is none.
int keys_enum_value(const char *values, int i, const char **at);
// keys_expected: "a whole number from 1 to 4096", "true or false", "one of fp32|bf16|fp8".
void keys_expected(char *out, size_t n, const Key *k);
