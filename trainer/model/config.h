// config.h - a run's settings: the struct that config.def generates, and how it is read and
// written.
//
// YAML files (libyaml's document API), --set section.key=value and the stored dump go through one
// function that knows names, types and ranges. After loading, the struct is const; layers and
// operations get numbers.
#pragma once
#include "fail.h"

enum { MODE_FP32, MODE_BF16, MODE_FP8 };
enum { SCORING_SIGMOID, SCORING_SOFTMAX };
enum { TOPK_NOAUX_TC, TOPK_GROUP_LIMITED_GREEDY, TOPK_GREEDY };
enum { SCALING_TILE, SCALING_ROW, SCALING_TENSOR, SCALING_STATIC };
enum { SCALE_FORMAT_POW2, SCALE_FORMAT_FP32 };
enum { WEIGHT_SCALE_FORMAT_FP32, WEIGHT_SCALE_FORMAT_POW2 };
enum { GRAD_SCALE_FORMAT_SAME, GRAD_SCALE_FORMAT_POW2, GRAD_SCALE_FORMAT_FP32 };
enum { GRAD_TILE_1X128, GRAD_TILE_128X128 };
enum { GRAD_FORMAT_E4M3, GRAD_FORMAT_E5M2 };
enum { ACCUMULATE_PROMOTE128, ACCUMULATE_FP32, ACCUMULATE_HOPPER14, ACCUMULATE_PROMOTE128_HOPPER14 };
enum { CACHE_ATTN_OUT_E5M6, CACHE_ATTN_OUT_CODES };
enum { CACHE_SWIGLU_FP8, CACHE_SWIGLU_BF16 };
enum { COMM_AUTO, COMM_SELF, COMM_MPI, COMM_NCCL };
enum { BALANCE_BIAS, BALANCE_NONE };
enum { NONFINITE_ABORT, NONFINITE_SKIP, NONFINITE_ROLLBACK };
enum { ON_ERROR_STOP, ON_ERROR_CONTINUE };

typedef struct PathList {
    int n;
    char **v;
} PathList;
typedef struct RealList {
    int n;
    double *v;
} RealList;
typedef struct IntList {
    int n;
    int64_t *v;
} IntList;

#define SECTION(s) struct {
#define END(s)                                                                                     \
    }                                                                                              \
    s;
#define INT(key, ...) int64_t key;
#define REAL(key, ...) double key;
#define BOOL(key, ...) bool key;
#define ENUM(key, ...) int key;
#define PATHS(key, ...) PathList key;
#define PATH(key, ...) char *key; // NULL = not given
#define REALS(key, ...) RealList key;
#define INTS(key, ...) IntList key;
#define NEST(n) bool has_##n;
#define NREAL(n, key, ...) double n##_##key;
typedef struct Config {
#include "config.def"
} Config;
#undef SECTION
#undef END
#undef INT
#undef REAL
#undef BOOL
#undef ENUM
#undef PATHS
#undef PATH
#undef REALS
#undef INTS
#undef NEST
#undef NREAL

// config_load: defaults, then the YAML file (NULL: none), then each "section.key=value" of sets;
// then every range and cross-key rule that needs no world size (config_check). Relative paths in
// the file become absolute, relative to the file's folder; in --set relative to the current
// directory. Errors: E_CONFIG naming file, line, key, value, the range or the nearest known key.
// Local.
Err config_load(Config **out, const char *path, const char *const *sets, int nsets) MUST_CHECK;
void config_free(Config *c);
// config_check: the cross-key rules, one line each, with the equation that fails in the message.
// E_CONFIG.
Err config_check(const Config *c) MUST_CHECK;
// config_check_train: what training needs beyond config_check: data.train. E_CONFIG.
Err config_check_train(const Config *c) MUST_CHECK;
// config_check_world: the rules that need the number of ranks (ep divides world, world*micro_batch
// divides global_batch / batch_quantum / batch_start, ep divides experts). E_CONFIG.
Err config_check_world(const Config *c, int world) MUST_CHECK;
// config_dump: all keys, one YAML text that config_load reads back to the same struct (absolute
// paths, doubles with 17 digits). *text from malloc.
Err config_dump(const Config *c, char **text) MUST_CHECK;
// config_compare_resume: `now` against the `stored` config of a checkpoint: E_CONFIG naming both
// values for a changed `same` key; changed `may` keys are passed to `changed(section.key, old,
// new)`. Paths under data.* are not compared here (fingerprints are).
Err config_compare_resume(const Config *stored, const Config *now,
                          void (*changed)(const char *key, const char *was,
                                          const char *is)) MUST_CHECK;
// config_help: every key with type, default, range, unit and help, as text for --help.
void config_help(FILE *out);
// config_choice: the value of an ENUM setting as --set takes it ("fp8", "accumulate" -> "promote128");
// "" if there is no such setting.
typedef struct ConfigChoice {
    char s[32];
} ConfigChoice;
ConfigChoice config_choice(const Config *c, const char *section, const char *name);
// config_name: the stem of a config file's name ("configs/tiny.yaml" -> "tiny"), for the run
// directory.
void config_name(char *out, size_t n, const char *path);
// config_yaml_version: the version of libyaml that is loaded.
const char *config_yaml_version(void);
