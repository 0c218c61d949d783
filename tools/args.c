// args.c - parsing of long flags against a table, with messages that say what to type.
#include "args.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "nearest.h"

#define MAX_FLAGS 64   // of one command, for the table of names in args_nearest
#define HELP_WIDTH 80  // columns of the help
#define HELP_COLUMN 24 // room for a flag and its value left of its text

const char *args_nearest(const char *word, const char *const *candidates, int n) {
    return word_nearest(word, candidates, n);
}

static const Flag *flag_find(const Command *c, const char *name, size_t length) {
    for (int i = 0; i < c->nflags; i++) {
        if (strlen(c->flags[i].name) == length && !memcmp(c->flags[i].name, name, length)) {
            return &c->flags[i];
        }
    }
    return NULL;
}

// Prints a word that stays whole; on a new line at `indent` if it does not fit. *at is the column.
static void put_word(FILE *out, int *at, int indent, const char *word, int n) {
    bool is_first = *at <= indent;
    if (!is_first && *at + 1 + n > HELP_WIDTH) {
        fprintf(out, "\n%*s", indent, "");
        *at = indent;
        is_first = true;
    }
    *at += fprintf(out, "%s%.*s", is_first ? "" : " ", n, word);
}

// Prints a text whose words may stand on several lines, each from `indent` on.
static void put_text(FILE *out, int *at, int indent, const char *text) {
    for (const char *p = text; *p;) {
        int n = (int)strcspn(p, " \n");
        if (n > 0) put_word(out, at, indent, p, n);
        p += n + (p[n] != '\0');
    }
}

// The usage: required flags first as they must be typed, then the rest in brackets.
static void put_usage(const Command *c, FILE *out) {
    char word[HELP_WIDTH];
    int indent = (int)strlen("usage: "), at = indent;
    fprintf(out, "usage: ");
    put_text(out, &at, indent, c->name);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < c->nflags; i++) {
            const Flag *f = &c->flags[i];
            bool is_required = f->is & FLAG_REQUIRED;
            if (is_required != (pass == 0)) continue;
            int n = snprintf(word, sizeof word, "%s--%s%s%s%s%s", is_required ? "" : "[", f->name,
                             f->value ? " " : "", f->value ? f->value : "", is_required ? "" : "]",
                             f->is & FLAG_REPEAT ? "..." : "");
            put_word(out, &at, indent, word, n);
        }
    }
    put_text(out, &at, indent, c->operands);
    fprintf(out, "\n");
}

// A flag that is too long for its column has its text on the next line.
static void put_flag(const Flag *f, int width, FILE *out) {
    int column = width + 6;
    int at = fprintf(out, "  --%s%s%s", f->name, f->value ? " " : "", f->value ? f->value : "");
    if (at + 2 > column) {
        fprintf(out, "\n");
        at = 0;
    }
    fprintf(out, "%*s", column - at, "");
    at = column;
    put_text(out, &at, column, f->help);
    if (f->is & FLAG_REQUIRED) put_text(out, &at, column, "(required)");
    if (f->is & FLAG_REPEAT) put_text(out, &at, column, "(may be repeated)");
    if (f->fallback) {
        put_text(out, &at, column, "(default");
        at += fprintf(out, " %s)", f->fallback);
    }
    fprintf(out, "\n");
}

void args_help(const Command *c, FILE *out) {
    int width = (int)strlen("help"), at = 0;
    put_usage(c, out);
    fprintf(out, "\n");
    put_text(out, &at, 0, c->about);
    fprintf(out, "\n\n");
    for (int i = 0; i < c->nflags; i++) {
        const Flag *f = &c->flags[i];
        int n = (int)strlen(f->name) + (f->value ? 1 + (int)strlen(f->value) : 0);
        if (n > width && n <= HELP_COLUMN) width = n;
    }
    for (int i = 0; i < c->nflags; i++) put_flag(&c->flags[i], width, out);
    fprintf(out, "  --help%*s  this text; --isa, of every command: 'tessera --help'\n",
            width - (int)strlen("help"), "");
}

// Is `text` one of the words of "a|b|c"? A word in capitals stands for any text.
static bool choice_has(const char *choices, const char *text) {
    size_t n = strlen(text);
    for (const char *p = choices; p; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL) {
        if (*p >= 'A' && *p <= 'Z') return true;
        if (strcspn(p, "|") == n && !memcmp(p, text, n)) return true;
    }
    return false;
}

static Err unknown_flag(const Command *c, const char *name, size_t length) {
    const char *names[MAX_FLAGS + 1];
    int n = 0;
    for (; n < c->nflags && n < MAX_FLAGS; n++) names[n] = c->flags[n].name;
    names[n++] = "help";
    char word[NEAREST_MAX + 2];
    snprintf(word, sizeof word, "%.*s", (int)length, name);
    const char *near = args_nearest(word, names, n);
    CHECK(near, E_USAGE, "%s: unknown flag --%s; see '%s --help'", c->name, word, c->name);
    FAIL(E_USAGE, "%s: unknown flag --%s; did you mean --%s? See '%s --help'", c->name, word, near,
         c->name);
}

// One word that begins with "--"; *i moves on if the value is the next word.
static Err parse_flag(Args *a, int argc, char **argv, int *i) {
    const Command *c = a->command;
    const char *name = argv[*i] + 2;
    size_t length = strcspn(name, "=");
    const Flag *f = flag_find(c, name, length);
    CHECK(f || length != 4 || memcmp(name, "help", 4) != 0, E_USAGE,
          "%s: --help takes no value, found '%s'", c->name, argv[*i]);
    if (!f) return unknown_flag(c, name, length);
    const char *text = NULL;
    if (!f->value) {
        CHECK(name[length] == '\0', E_USAGE, "%s: --%s takes no value, found '%s'", c->name,
              f->name, argv[*i]);
    } else if (name[length] == '=') {
        text = name + length + 1;
    } else {
        bool has_next = *i + 1 < argc && strncmp(argv[*i + 1], "--", 2) != 0;
        CHECK(has_next, E_USAGE, "%s: --%s needs a value: type --%s %s", c->name, f->name, f->name,
              f->value);
        text = argv[++*i];
    }
    if (f->value && strchr(f->value, '|')) {
        CHECK(choice_has(f->value, text), E_USAGE, "%s: --%s must be one of %s, found '%s'",
              c->name, f->name, f->value, text);
    }
    if (f->value && !(f->is & FLAG_REPEAT) && args_has(a, f->name)) {
        CHECK(!strcmp(args_get(a, f->name), text), E_USAGE,
              "%s: --%s is given twice, as '%s' and as '%s'; leave one out", c->name, f->name,
              args_get(a, f->name), text);
    }
    a->values[a->nvalues++] = (ArgValue){f, text};
    return OK;
}

static Err parse_words(Args *a, int argc, char **argv) {
    const Command *c = a->command;
    bool has_ended = false;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (!has_ended && !strcmp(word, "--")) {
            has_ended = true;
        } else if (!has_ended && !strncmp(word, "--", 2)) {
            TRY(parse_flag(a, argc, argv, &i));
        } else {
            bool is_short = !has_ended && word[0] == '-' && isalpha((unsigned char)word[1]);
            CHECK(!is_short, E_USAGE, "%s: unknown flag %s; flags are long, as in --help", c->name,
                  word);
            a->operands[a->noperands++] = word;
        }
    }
    for (int i = 0; i < c->nflags; i++) {
        const Flag *f = &c->flags[i];
        CHECK(!(f->is & FLAG_REQUIRED) || args_has(a, f->name), E_USAGE,
              "%s: --%s is missing: type --%s %s; see '%s --help'", c->name, f->name, f->name,
              f->value ? f->value : "", c->name);
    }
    CHECK(a->noperands >= c->min_operands, E_USAGE, "%s: expected %s, found %d; see '%s --help'",
          c->name, c->operands, a->noperands, c->name);
    CHECK(c->max_operands < 0 || a->noperands <= c->max_operands, E_USAGE,
          "%s: unexpected '%s'; see '%s --help'", c->name, a->operands[c->max_operands], c->name);
    return OK;
}

Err args_parse(Args *a, const Command *command, int argc, char **argv) {
    *a = (Args){.command = command};
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            args_help(command, stdout);
            a->is_help = true;
            return OK;
        }
    }
    a->operands = calloc((size_t)argc + 1, sizeof *a->operands);
    a->values = calloc((size_t)argc + 1, sizeof *a->values);
    Err err = OK;
    CHECK_OR(a->operands && a->values, failed, E_INTERNAL, "out of memory: command line");
    TRY_OR(parse_words(a, argc, argv), failed);
    return OK;
failed:
    args_free(a);
    return err;
}

void args_free(Args *a) {
    free(a->operands);
    free(a->values);
    a->operands = NULL;
    a->values = NULL;
    a->noperands = a->nvalues = 0;
}

int args_count(const Args *a, const char *name) {
    int n = 0;
    for (int i = 0; i < a->nvalues; i++) n += !strcmp(a->values[i].flag->name, name);
    return n;
}

const char *args_nth(const Args *a, const char *name, int nth) {
    for (int i = 0; i < a->nvalues; i++) {
        if (!strcmp(a->values[i].flag->name, name) && nth-- == 0) return a->values[i].text;
    }
    return NULL;
}

Err args_all(const Args *a, const char *name, const char **out, int max, int *n) {
    int count = args_count(a, name);
    CHECK(count <= max, E_USAGE, "--%s was given %d times; the most is %d", name, count, max);
    for (int i = 0; i < count; i++) out[i] = args_nth(a, name, i);
    *n = count;
    return OK;
}

bool args_has(const Args *a, const char *name) {
    return args_count(a, name) > 0;
}

const char *args_get(const Args *a, const char *name) {
    int n = args_count(a, name);
    if (n > 0) return args_nth(a, name, n - 1);
    const Flag *f = flag_find(a->command, name, strlen(name));
    return f ? f->fallback : NULL;
}

Err args_int(const Args *a, const char *name, int64_t min, int64_t max, int64_t *out) {
    const char *text = args_get(a, name);
    if (!text) return OK;
    char *end = NULL;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    bool is_number = text[0] && !*end && errno == 0;
    CHECK(is_number && value >= min && value <= max, E_USAGE,
          "%s: --%s must be a whole number from %lld to %lld, found '%s'", a->command->name, name,
          (long long)min, (long long)max, text);
    *out = value;
    return OK;
}

Err args_float(const Args *a, const char *name, double min, double max, double *out) {
    const char *text = args_get(a, name);
    if (!text) return OK;
    char *end = NULL;
    double value = strtod(text, &end);
    bool is_number = text[0] && !*end && isfinite(value);
    CHECK(is_number && value >= min && value <= max, E_USAGE,
          "%s: --%s must be a number from %g to %g, found '%s'", a->command->name, name, min, max,
          text);
    *out = value;
    return OK;
}

// read_digits: a number of digits with at most one point, nothing else that strtod knows. *rest: behind it.
static bool read_digits(const char *text, double *value, const char **rest) {
    char *end = NULL;
    size_t n = strspn(text, "0123456789.");
    *value = n > 0 ? strtod(text, &end) : 0.0;
    *rest = text + n;
    return n > 0 && end == text + n;
}

// colon_seconds: "[D-]H:M:S" or "M:S". Returns -1 if the text is neither.
static double colon_seconds(const char *text) {
    double days = 0.0, part[3] = {0};
    int n = 0;
    bool has_days = strchr(text, '-') != NULL;
    if (has_days) {
        if (!read_digits(text, &days, &text) || *text != '-') return -1.0;
        text++;
    }
    for (;; text++) {
        if (n == 3 || !read_digits(text, &part[n], &text)) return -1.0;
        n++;
        if (*text != ':') break;
    }
    if (*text || n < 2 || (has_days && n < 3)) return -1.0;
    double s = part[0];
    for (int i = 1; i < n; i++) {
        if (part[i] >= 60.0) return -1.0;
        s = 60.0 * s + part[i];
    }
    return 86400.0 * days + s;
}

// unit_seconds: "3600", "90m", "1h30m", "2d". Returns -1 if the text is none of these.
static double unit_seconds(const char *text) {
    static const char units[] = "dhms";
    static const double seconds[] = {86400.0, 3600.0, 60.0, 1.0};
    double sum = 0.0, n = 0.0;
    int next = 0; // units come in this order
    if (read_digits(text, &n, &text) && !*text) return n;
    for (;; next++) {
        const char *unit = *text ? strchr(units + next, *text) : NULL;
        if (!unit) return -1.0;
        next = (int)(unit - units);
        sum += n * seconds[next];
        if (!*++text) return sum;
        if (!read_digits(text, &n, &text)) return -1.0;
    }
}

Err args_seconds(const Args *a, const char *name, double min, double max, double *out) {
    const char *text = args_get(a, name);
    if (!text) return OK;
    double value = strchr(text, ':') ? colon_seconds(text) : unit_seconds(text);
    CHECK(value >= min && value <= max, E_USAGE,
          "%s: --%s must be a duration from %g to %g seconds, such as 3600, 90m or 1:30:00, found '%s'",
          a->command->name, name, min, max, text);
    *out = value;
    return OK;
}
