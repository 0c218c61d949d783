// report_model.c - what a run's folder says of its model: config.yaml, and the biases with which
// the newest checkpoint's routers choose experts.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "arena.h"
#include "checkpoint_dir.h"
#include "log.h"
#include "manifest.h"
#include "read_text.h"
#include "report.h"

enum { PATH_CAP = 4300 };
static const char bias_end[] = ".mlp.gate.e_score_correction_bias";

static Err read_config(ReportRun *r) {
    char path[PATH_CAP];
    Mesh mesh;
    Shape shape;
    snprintf(path, sizeof path, "%s/config.yaml", r->dir);
    if (access(path, F_OK) != 0) {
        log_warn("%s is missing: the model is not shown", path);
        return OK;
    }
    TRY(read_text(path, &r->config_text, &r->config_bytes));
    TRY(config_load(&r->config, path, NULL, 0));
    TRY(mesh_build(&mesh, 1, 0, 1));
    TRY(shape_from_config(&shape, r->config, &mesh));
    r->count = params_count(&shape);
    return OK;
}

static void read_origin(ReportRun *r) {
    char path[PATH_CAP];
    snprintf(path, sizeof path, "%s/origin", r->dir);
    FILE *f = fopen(path, "re");
    if (!f) return;
    if (fgets(r->origin, sizeof r->origin, f)) r->origin[strcspn(r->origin, "\n")] = '\0';
    fclose(f);
}

// layer_of: the number in "model.layers.N.mlp.gate..."; -1: another tensor.
static int64_t layer_of(const char *name) {
    long long layer = -1;
    int n = 0;
    if (sscanf(name, "model.layers.%lld%n", &layer, &n) != 1 || strcmp(name + n, bias_end) != 0)
        return -1;
    return layer;
}

static Err read_rows(ReportRun *r, const Manifest *m, TensorFile *f) {
    int64_t nlayers = 0, nexperts = 0;
    for (int64_t i = 0; i < m->ntensors; i++)
        if (layer_of(m->tensors[i].name) >= 0) {
            int64_t n = manifest_rows(m, i);
            CHECK(nexperts == 0 || n == nexperts, E_INPUT, "%s has %lld biases, other layers %lld",
                  m->tensors[i].name, (long long)n, (long long)nexperts);
            nexperts = n;
            nlayers++;
        }
    if (nlayers == 0) return OK;
    CHECK(nlayers <= 4096 && nexperts <= 65536, E_INPUT, "%lld layers of %lld biases",
          (long long)nlayers, (long long)nexperts);
    MEM_NEW(r->bias, nlayers * nexperts);
    MEM_NEW(r->bias_layer, nlayers);
    r->nexperts = (int)nexperts;
    for (int64_t i = 0; i < m->ntensors; i++) {
        int64_t layer = layer_of(m->tensors[i].name);
        if (layer < 0) continue;
        // In the order of the layers, whatever the file's is.
        int at = r->nlayers++;
        for (; at > 0 && r->bias_layer[at - 1] > layer; at--) {
            r->bias_layer[at] = r->bias_layer[at - 1];
            memcpy(r->bias + at * nexperts, r->bias + (at - 1) * nexperts,
                   (size_t)nexperts * sizeof(float));
        }
        r->bias_layer[at] = layer;
        TRY(tensorfile_read(f, m->tensors[i].name, DT_F32, nexperts, r->bias + at * nexperts));
    }
    return OK;
}

// The file is checked before the library sees it: it may not survive a damaged one.
static Err read_index(ReportRun *r, const Manifest *m, const char *dir) {
    char path[PATH_CAP];
    TensorFile *f = NULL;
    for (int64_t i = 0; i < m->nfiles; i++)
        if (strcmp(m->files[i].name, "index.h5") == 0) TRY(manifest_check_file(m, dir, i));
    snprintf(path, sizeof path, "%s/index.h5", dir);
    TRY(tensorfile_open(&f, path));
    Err err = read_rows(r, m, f);
    tensorfile_drop(&f);
    if (err != OK) r->nlayers = 0;
    return err;
}

static Err read_checkpoint(ReportRun *r) {
    char dir[PATH_CAP], path[PATH_CAP + 40];
    CkEntry *list = NULL;
    Manifest *m = NULL;
    int n = 0;
    snprintf(dir, sizeof dir, "%s/checkpoints", r->dir);
    TRY(ckdir_list(dir, &list, &n));
    if (n > 0) {
        snprintf(r->checkpoint, sizeof r->checkpoint, "%s", list[0].name);
        snprintf(path, sizeof path, "%s/%s", dir, list[0].name);
    }
    free(list);
    if (n == 0) return OK;
    TRY(manifest_read(&m, path));
    r->bias_step = m->step;
    Err err = read_index(r, m, path);
    manifest_free(&m);
    return err;
}

// A report without these is still one.
static Err forgive(Err err, const char *what) {
    if (err != E_INPUT && err != E_CONFIG) return err;
    log_warn("%s; %s", fail_message(), what);
    fail_clear();
    return OK;
}

Err report_read_model(ReportRun *r) {
    read_origin(r);
    TRY(forgive(read_config(r), "the model is not shown"));
    return forgive(read_checkpoint(r), "the routers' biases are not shown");
}

// ---- settings one by one -----------------------------------------------------------------------

enum { SETTINGS = 512, LEVELS = 4, KEY_CAP = 128 };

// put_line: one line of the dump: "key:" opens a section, "key: value" is a setting, two blanks a
// level; "- value" goes on with the last one's list.
static void put_line(ReportSettings *s, char *line, char sections[LEVELS][KEY_CAP], char **names) {
    int blanks = (int)strspn(line, " "), level = blanks / 2;
    char *word = line + blanks, *colon = strchr(word, ':');
    if (*word == '\0' || *word == '#' || *word == '-' || !colon || level >= LEVELS ||
        s->n == SETTINGS)
        return;
    *colon = '\0';
    char *value = colon + 1 + strspn(colon + 1, " ");
    snprintf(sections[level], KEY_CAP, "%s", word);
    if (*value == '\0') return;
    int n = 0;
    char *name = *names;
    for (int i = 0; i <= level; i++) n += sprintf(name + n, "%s%s", i > 0 ? "." : "", sections[i]);
    *names += n + 1;
    s->key[s->n] = name;
    s->value[s->n++] = value;
}

Err report_settings(const ReportRun *r, ReportSettings *out) {
    char sections[LEVELS][KEY_CAP] = {{0}}, *save = NULL;
    *out = (ReportSettings){0};
    if (!r->config_text) return OK;
    MEM_NEW(out->key, SETTINGS);
    MEM_NEW(out->value, SETTINGS);
    MEM_NEW(out->text, r->config_bytes + 1 + SETTINGS * LEVELS * KEY_CAP);
    memcpy(out->text, r->config_text, r->config_bytes);
    char *names = out->text + r->config_bytes + 1;
    for (char *line = strtok_r(out->text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        put_line(out, line, sections, &names);
    return OK;
}

void report_settings_free(ReportSettings *s) {
    mem_free(s->key);
    mem_free(s->value);
    mem_free(s->text);
    *s = (ReportSettings){0};
}

const char *report_setting(const ReportSettings *s, const char *key) {
    for (int i = 0; i < s->n; i++)
        if (strcmp(s->key[i], key) == 0) return s->value[i];
    return "";
}
