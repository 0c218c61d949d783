// hf_config.c - Hugging Face's config.json and our section `model`, in both directions.
//
// The keys have the same names, so reading walks our table of settings and looks each one up.
#include "hf.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config_keys.h"
#include "json_flat.h"
#include "json_text.h"
#include "log.h"
#include "tokenizer.h"

#define MAX_SETS 64
#define MAX_SEQ_LEN 4096 // of an imported config, until a run's own config says otherwise

// The --set texts that an import collects.
typedef struct Sets {
    char *v[MAX_SETS];
    int n;
} Sets;

static Err PRINTF_LIKE(2, 3) sets_add(Sets *s, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    CHECK(s->n < MAX_SETS, E_INTERNAL, "import: more than %d settings", MAX_SETS);
    int n = vasprintf(&s->v[s->n], fmt, ap);
    va_end(ap);
    CHECK(n >= 0, E_INTERNAL, "import: out of memory");
    s->n++;
    return OK;
}

static void sets_free(Sets *s) {
    for (int i = 0; i < s->n; i++) free(s->v[i]);
    s->n = 0;
}

// The item if it is there and not null.
static const JsonItem *given(const JsonFlat *j, const char *key) {
    const JsonItem *i = json_flat_find(j, key);
    return i && i->kind != JSON_NONE ? i : NULL;
}

static bool text_is(const JsonFlat *j, const char *key, const char *text) {
    const JsonItem *i = given(j, key);
    return i && !strcmp(i->text, text);
}

// Settings of the file that we can only accept at one value: anything else is another model.
static Err check_supported(const JsonFlat *j, const char *path) {
    static const struct {
        const char *key, *only;
    } fixed[] = {
        {"hidden_act", "silu"},
        {"attention_bias", "false"},
        {"mlp_bias", "false"},
        {"rope_interleave", "true"},
        {"moe_layer_freq", "1"},
        {"quantization_config.quant_method", "fp8"},
        {"quantization_config.fmt", "e4m3"},
        {"quantization_config.weight_block_size", "[128,128]"},
    };
    const JsonItem *type = given(j, "model_type");
    bool is_known = type && (!strcmp(type->text, "deepseek_v3") || !strcmp(type->text, "deepseek_v2"));
    CHECK(is_known, E_INPUT, "%s: model_type is %s; supported are deepseek_v3 and deepseek_v2", path,
          type ? type->text : "missing");
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) {
        const JsonItem *v = given(j, fixed[i].key);
        CHECK(!v || !strcmp(v->text, fixed[i].only), E_INPUT, "%s: %s is %s; supported is %s", path, fixed[i].key,
              v->text, fixed[i].only);
    }
    const JsonItem *dropout = given(j, "attention_dropout");
    CHECK(!dropout || strtod(dropout->text, NULL) == 0, E_INPUT, "%s: attention_dropout is %s; supported is 0",
          path, dropout->text);
    const JsonItem *heads = given(j, "num_attention_heads"), *kv = given(j, "num_key_value_heads");
    CHECK(!heads || !kv || !strcmp(heads->text, kv->text), E_INPUT,
          "%s: num_key_value_heads is %s, num_attention_heads %s; multi-head latent attention needs them equal",
          path, kv->text, heads->text);
    return OK;
}

// YaRN: rope_scaling {type|rope_type: yarn, ...}, or rope_parameters of newer files, which also hold rope_theta.
static Err read_rope(Sets *sets, const JsonFlat *j, const char *path) {
    static const char *const nests[] = {"rope_scaling", "rope_parameters"};
    bool is_yarn = false;
    for (int n = 0; n < 2 && !is_yarn; n++) {
        char key[64];
        const JsonItem *flat = given(j, nests[n]);
        CHECK(!flat, E_INPUT, "%s: %s is %s; expected an object or null", path, nests[n], flat->text);
        snprintf(key, sizeof key, "%s.factor", nests[n]);
        bool has_factor = given(j, key) != NULL;
        snprintf(key, sizeof key, "%s.rope_theta", nests[n]);
        if (given(j, key)) TRY(sets_add(sets, "model.rope_theta=%s", given(j, key)->text));
        snprintf(key, sizeof key, "%s.rope_type", nests[n]);
        const JsonItem *type = given(j, key);
        snprintf(key, sizeof key, "%s.type", nests[n]);
        if (!type) type = given(j, key);
        CHECK(type || !has_factor, E_INPUT, "%s: %s has a factor but no type; supported is yarn", path, nests[n]);
        if (!type || !strcmp(type->text, "default")) continue;
        CHECK(!strcmp(type->text, "yarn"), E_INPUT, "%s: %s is %s; supported are yarn and none", path, type->key,
              type->text);
        is_yarn = true;
        size_t length = strlen(nests[n]);
        for (int i = 0; i < j->n; i++) {
            const JsonItem *v = &j->items[i];
            if (strncmp(v->key, nests[n], length) != 0 || v->key[length] != '.' || v->kind == JSON_NONE) continue;
            const char *leaf = v->key + length + 1;
            if (!strcmp(leaf, "type") || !strcmp(leaf, "rope_type") || !strcmp(leaf, "rope_theta")) continue;
            CHECK(keys_find("model", "rope_scaling", leaf) >= 0, E_INPUT, "%s: %s is not supported", path, v->key);
            TRY(sets_add(sets, "model.rope_scaling.%s=%s", leaf, v->text));
        }
    }
    return OK;
}

// Router settings that DeepSeek's classes imply where the file is silent. Not all of them are our own defaults, and
// none of them shows in the weights.
static Err read_router(Sets *sets, const JsonFlat *j) {
    bool is_v2 = text_is(j, "model_type", "deepseek_v2");
    if (!is_v2 && !given(j, "routed_scaling_factor")) TRY(sets_add(sets, "model.routed_scaling_factor=2.5"));
    if (!given(j, "topk_method")) TRY(sets_add(sets, "model.topk_method=%s", is_v2 ? "greedy" : "noaux_tc"));
    if (!given(j, "scoring_func")) TRY(sets_add(sets, "model.scoring_func=%s", is_v2 ? "softmax" : "sigmoid"));
    if (!given(j, "norm_topk_prob")) TRY(sets_add(sets, "model.norm_topk_prob=%s", is_v2 ? "false" : "true"));
    bool is_greedy = text_is(j, "topk_method", "greedy") || (is_v2 && !given(j, "topk_method"));
    if (is_greedy) TRY(sets_add(sets, "model.n_group=1"));
    else if (!is_v2 && !given(j, "n_group")) TRY(sets_add(sets, "model.n_group=8"));
    if (is_greedy) TRY(sets_add(sets, "model.topk_group=1"));
    else if (!is_v2 && !given(j, "topk_group")) TRY(sets_add(sets, "model.topk_group=4"));
    bool has_bias = text_is(j, "topk_method", "noaux_tc") || (!is_v2 && !given(j, "topk_method"));
    if (!has_bias) TRY(sets_add(sets, "balance.method=none"));
    return OK;
}

// How many of the promised MTP modules the weights hold.
static int64_t mtp_modules(const JsonFlat *j, const Safetensors *st, const char *path) {
    const JsonItem *layers = given(j, "num_hidden_layers"), *promised = given(j, "num_nextn_predict_layers");
    int64_t n = promised ? strtoll(promised->text, NULL, 10) : 0, found = 0;
    for (char name[96]; layers && found < n; found++) {
        snprintf(name, sizeof name, "model.layers.%lld.eh_proj.weight",
                 strtoll(layers->text, NULL, 10) + (long long)found);
        if (!safetensors_find(st, name)) break;
    }
    if (found < n) {
        log_warn(
            "%s: num_nextn_predict_layers is %lld, but the weights hold %lld MTP modules; the others are left out",
            path, (long long)n, (long long)found);
    }
    return found;
}

// The tokenizer beside the weights, if it is one that we can use.
static Err read_tokenizer(Sets *sets, const char *dir) {
    char path[PATH_MAX], quoted[2 * PATH_MAX];
    size_t n = 0;
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    if (access(path, F_OK) != 0) return OK;
    Tokenizer *t = NULL;
    if (tokenizer_load(&t, path) != OK) {
        log_warn("the tokenizer is left out: %s", fail_message());
        fail_clear();
        return OK;
    }
    tokenizer_free(&t);
    for (const char *p = path; *p; p++) { // YAML: inside single quotes only the quote itself is doubled
        if (*p == '\'') quoted[n++] = *p;
        quoted[n++] = *p;
    }
    quoted[n] = '\0';
    return sets_add(sets, "data.tokenizer='%s'", quoted);
}

static Err read_sets(Sets *sets, const JsonFlat *j, const Safetensors *st, const char *dir, const char *path) {
    TRY(check_supported(j, path));
    const Key *k;
    for (int i = 0; (k = keys_at(i)); i++) {
        if (strcmp(k->section, "model") != 0 || k->nest || k->kind == KEY_NEST) continue;
        const JsonItem *v = json_flat_find(j, k->name);
        if (!v || (v->kind == JSON_NONE && !k->is_nullable)) {
            CHECK(!k->is_required, E_INPUT, "%s: %s is missing", path, k->name);
            continue;
        }
        TRY(sets_add(sets, "model.%s=%s", k->name, v->text));
    }
    if (!given(j, "n_shared_experts")) TRY(sets_add(sets, "model.n_shared_experts=0"));
    TRY(read_router(sets, j));
    TRY(read_rope(sets, j, path));
    TRY(sets_add(sets, "model.num_nextn_predict_layers=%lld", (long long)mtp_modules(j, st, path)));
    const JsonItem *context = given(j, "max_position_embeddings");
    int64_t seq = context ? strtoll(context->text, NULL, 10) : MAX_SEQ_LEN;
    TRY(sets_add(sets, "train.seq_len=%lld", (long long)(seq > MAX_SEQ_LEN || seq < 2 ? MAX_SEQ_LEN : seq)));
    TRY(sets_add(sets, "train.steps=1"));
    TRY(sets_add(sets, "train.global_batch=1"));
    return read_tokenizer(sets, dir);
}

Err hf_import_config(Config **out, const char *dir, const Safetensors *st) {
    *out = NULL;
    char path[PATH_MAX];
    JsonFlat j = {0};
    Sets sets = {0};
    snprintf(path, sizeof path, "%s/config.json", dir);
    TRY(json_flat_read(&j, path));
    Err err = read_sets(&sets, &j, st, dir, path);
    if (err == OK) {
        err = config_load(out, NULL, (const char *const *)sets.v, sets.n);
        // Not the user's command line: the file that was imported is at fault.
        if (err == E_CONFIG) err = fail_at(E_INPUT, __FILE__, __LINE__, "%s: %s", path, fail_message());
    }
    sets_free(&sets);
    json_flat_free(&j);
    return err;
}

// One JSON object being written.
typedef struct Writer {
    FILE *f;
    const char *path;
    int n; // entries so far
    int depth;
} Writer;

static Err writer_open(Writer *w, const char *dir, const char *name, char *path, size_t npath) {
    snprintf(path, npath, "%s/%s", dir, name);
    w->path = path;
    w->n = 0;
    w->depth = 1;
    w->f = fopen(path, "we");
    CHECK(w->f, E_OUTPUT, "cannot write %s: %s", path, strerror(errno));
    fputc('{', w->f);
    return OK;
}

static void PRINTF_LIKE(3, 4) put(Writer *w, const char *key, const char *fmt, ...) {
    va_list ap;
    fprintf(w->f, "%s\n%*s\"%s\": ", w->n++ ? "," : "", 2 * w->depth, "", key);
    va_start(ap, fmt);
    vfprintf(w->f, fmt, ap);
    va_end(ap);
}

static void put_int(Writer *w, const char *key, int64_t v) {
    put(w, key, "%lld", (long long)v);
}

// A real as JSON: shortest of 15 and 17 digits that reads back the same, with a point so that Python makes a float.
static void put_real(Writer *w, const char *key, double v) {
    char text[40];
    snprintf(text, sizeof text, "%.15g", v);
    if (strtod(text, NULL) != v) snprintf(text, sizeof text, "%.17g", v);
    put(w, key, "%s%s", text, strpbrk(text, ".en") ? "" : ".0");
}

static void put_bool(Writer *w, const char *key, bool v) {
    put(w, key, "%s", v ? "true" : "false");
}

static Err writer_close(Writer *w) {
    fprintf(w->f, "\n}\n");
    bool is_bad = ferror(w->f);
    if (fflush(w->f) != 0 || fsync(fileno(w->f)) != 0) is_bad = true;
    int saved = errno;
    if (fclose(w->f) != 0) is_bad = true;
    CHECK(!is_bad, E_OUTPUT, "cannot write %s: %s", w->path, strerror(saved));
    return OK;
}

// Ids that generation needs. -1: none.
typedef struct SpecialIds {
    int bos, eos, pad;
} SpecialIds;

static void put_rope_scaling(Writer *w, const Config *c) {
    if (!c->model.has_rope_scaling) {
        put(w, "rope_scaling", "null");
        return;
    }
    put(w, "rope_scaling", "{");
    w->depth++;
    w->n = 0;
    put(w, "type", "\"yarn\"");
    put_real(w, "factor", c->model.rope_scaling_factor);
    put_int(w, "original_max_position_embeddings", (int64_t)c->model.rope_scaling_original_max_position_embeddings);
    put_real(w, "beta_fast", c->model.rope_scaling_beta_fast);
    put_real(w, "beta_slow", c->model.rope_scaling_beta_slow);
    put_real(w, "mscale", c->model.rope_scaling_mscale);
    put_real(w, "mscale_all_dim", c->model.rope_scaling_mscale_all_dim);
    w->depth--;
    fprintf(w->f, "\n%*s}", 2 * w->depth, "");
}

// How the published FP8 weights of DeepSeek-V3 describe themselves.
static void put_quantization(Writer *w) {
    put(w, "quantization_config", "{");
    w->depth++;
    w->n = 0;
    put(w, "activation_scheme", "\"dynamic\"");
    put(w, "fmt", "\"e4m3\"");
    put(w, "quant_method", "\"fp8\"");
    put(w, "weight_block_size", "[%d, %d]", TILE, TILE);
    w->depth--;
    fprintf(w->f, "\n%*s}", 2 * w->depth, "");
}

// warn_rope: some versions of transformers stretch by the ratio of the two lengths, whatever the factor is; those
// before and after them by the factor, as we do.
static void warn_rope(const Config *c) {
    double original = c->model.rope_scaling_original_max_position_embeddings, factor = c->model.rope_scaling_factor;
    int64_t length = c->model.max_position_embeddings;
    if (!c->model.has_rope_scaling || llround(original * factor) == length) return;
    log_warn("model.max_position_embeddings (%lld) is not model.rope_scaling.factor * original_max_position_embeddings "
             "(%.6g * %.9g): versions of transformers that take the ratio of the lengths for the factor make another "
             "model of this export",
             (long long)length, factor, original);
}

static void put_ids(Writer *w, SpecialIds ids) {
    put_int(w, "bos_token_id", ids.bos);
    put_int(w, "eos_token_id", ids.eos);
    if (ids.pad >= 0)
        put_int(w, "pad_token_id", ids.pad);
    else
        put(w, "pad_token_id", "null");
}

static Err write_config(const char *dir, const Config *c, const Shape *s, const HfExport *how, SpecialIds ids) {
    char path[PATH_MAX];
    static const char *const methods[] = {"noaux_tc", "group_limited_greedy", "greedy"};
    bool is_v2 = !s->is_sigmoid && !s->has_bias;
    if (s->is_sigmoid != s->has_bias) {
        log_warn("transformers has no router with scoring_func %s and topk_method %s: the exported model is only "
                 "the same in "
                 "programs that read these keys",
                 s->is_sigmoid ? "sigmoid" : "softmax", methods[c->model.topk_method]);
    }
    warn_rope(c);
    Writer writer, *w = &writer;
    TRY(writer_open(w, dir, "config.json", path, sizeof path));
    put(w, "architectures", "[\"%s\"]", is_v2 ? "DeepseekV2ForCausalLM" : "DeepseekV3ForCausalLM");
    put(w, "model_type", "\"%s\"", is_v2 ? "deepseek_v2" : "deepseek_v3");
    put(w, "torch_dtype", "\"%s\"", how->dtype == HF_F32 ? "float32" : "bfloat16");
    put_int(w, "vocab_size", s->V);
    put_int(w, "hidden_size", s->D);
    put_int(w, "intermediate_size", s->Fd);
    put_int(w, "moe_intermediate_size", s->F);
    put_int(w, "num_hidden_layers", s->nlayers);
    put_int(w, "num_nextn_predict_layers", how->without_mtp ? 0 : s->nmtp);
    put_int(w, "num_attention_heads", s->H);
    put_int(w, "num_key_value_heads", s->H);
    put_int(w, "n_shared_experts", c->model.n_shared_experts);
    put_int(w, "n_routed_experts", s->E);
    put_real(w, "routed_scaling_factor", c->model.routed_scaling_factor);
    put_int(w, "kv_lora_rank", s->Rkv);
    if (s->Rq)
        put_int(w, "q_lora_rank", s->Rq);
    else
        put(w, "q_lora_rank", "null");
    put_int(w, "qk_rope_head_dim", s->Dr);
    put_int(w, "v_head_dim", s->Dv);
    put_int(w, "qk_nope_head_dim", s->Dn);
    put_int(w, "n_group", s->ngroup);
    put_int(w, "topk_group", s->topk_group);
    put_int(w, "num_experts_per_tok", s->K);
    put_int(w, "first_k_dense_replace", s->ndense);
    put_bool(w, "norm_topk_prob", s->normalise);
    put(w, "hidden_act", "\"silu\"");
    put_int(w, "max_position_embeddings", c->model.max_position_embeddings);
    put_real(w, "initializer_range", c->model.initializer_range);
    put_real(w, "rms_norm_eps", c->model.rms_norm_eps);
    put_bool(w, "use_cache", true);
    put_ids(w, ids);
    put_bool(w, "tie_word_embeddings", s->is_tied);
    put_real(w, "rope_theta", c->model.rope_theta);
    put_rope_scaling(w, c);
    put_bool(w, "rope_interleave", true);
    put_bool(w, "attention_bias", false);
    put_real(w, "attention_dropout", 0);
    put(w, "scoring_func", "\"%s\"", s->is_sigmoid ? "sigmoid" : "softmax");
    put(w, "topk_method", "\"%s\"", methods[c->model.topk_method]);
    put_int(w, "moe_layer_freq", 1);
    put_int(w, "ep_size", 1);
    put_real(w, "aux_loss_alpha", c->balance.seq_alpha);
    put_bool(w, "seq_aux", true);
    if (how->dtype == HF_FP8) put_quantization(w);
    return writer_close(w);
}

static Err write_generation(const char *dir, SpecialIds ids) {
    char path[PATH_MAX];
    Writer w;
    TRY(writer_open(&w, dir, "generation_config.json", path, sizeof path));
    put_bool(&w, "_from_model_config", true);
    put_ids(&w, ids);
    return writer_close(&w);
}

static void put_token(Writer *w, const char *key, const Tokenizer *t, int id) {
    size_t n = 0;
    const char *text = id >= 0 ? tokenizer_bytes(t, id, &n) : NULL;
    if (!text) {
        put(w, key, "null");
        return;
    }
    put(w, key, "\"");
    json_put(w->f, text, n);
    fputc('"', w->f);
}

static Err write_tokenizer_config(const char *dir, const Tokenizer *t, const Config *c) {
    char path[PATH_MAX];
    Writer w;
    TRY(writer_open(&w, dir, "tokenizer_config.json", path, sizeof path));
    put(&w, "tokenizer_class", "\"PreTrainedTokenizerFast\"");
    put_token(&w, "bos_token", t, tokenizer_bos(t));
    put_token(&w, "eos_token", t, tokenizer_eos(t));
    put_token(&w, "pad_token", t, tokenizer_pad(t) >= 0 ? tokenizer_pad(t) : tokenizer_eos(t));
    put_bool(&w, "add_bos_token", false);
    put_bool(&w, "add_eos_token", false);
    put_bool(&w, "clean_up_tokenization_spaces", false);
    put_int(&w, "model_max_length", c->model.max_position_embeddings);
    return writer_close(&w);
}

static Err copy_file(const char *from, const char *to) {
    char buffer[1 << 16];
    FILE *in = fopen(from, "re");
    CHECK(in, E_INPUT, "cannot read %s: %s", from, strerror(errno));
    FILE *out = fopen(to, "we");
    int saved = errno;
    bool is_bad = !out;
    for (size_t n; !is_bad && (n = fread(buffer, 1, sizeof buffer, in)) > 0;) {
        if (fwrite(buffer, 1, n, out) != n) is_bad = true;
    }
    bool is_unread = ferror(in);
    fclose(in);
    if (out && (fflush(out) != 0 || fsync(fileno(out)) != 0)) is_bad = true;
    if (out) saved = errno;
    if (out && fclose(out) != 0) is_bad = true;
    CHECK(!is_unread, E_INPUT, "cannot read %s", from);
    CHECK(!is_bad, E_OUTPUT, "cannot write %s: %s", to, strerror(saved));
    return OK;
}

Err hf_write_config(const char *dir, const Config *c, const Shape *s, const HfExport *how) {
    SpecialIds ids = {0, 1, -1};
    Tokenizer *t = NULL;
    Err err = OK;
    if (how->tokenizer) {
        char path[PATH_MAX];
        TRY(tokenizer_load(&t, how->tokenizer));
        if (tokenizer_bos(t) >= 0) ids.bos = tokenizer_bos(t);
        if (tokenizer_eos(t) >= 0) ids.eos = tokenizer_eos(t);
        ids.pad = tokenizer_pad(t);
        snprintf(path, sizeof path, "%s/tokenizer.json", dir);
        TRY_OR(copy_file(how->tokenizer, path), done);
        TRY_OR(write_tokenizer_config(dir, t, c), done);
    }
    TRY_OR(write_config(dir, c, s, how, ids), done);
    TRY_OR(write_generation(dir, ids), done);
done:
    tokenizer_free(&t);
    return err;
}
