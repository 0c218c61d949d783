// test_hf.c - Hugging Face directories: round trips bit for bit, other layouts, and every refusal.
//
// The committed golden cases are the material; damaged copies are made by reading one, changing one thing and
// writing it again.
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "hf_loaded.h"
#include "json_flat.h"
#include "log.h"

static int setup(void **state) {
    log_init(1, 2); // no lines
    return scratch_setup(state);
}

static char *read_text(const char *path) {
    FILE *f = fopen(path, "r");
    if (!f) fail_msg("cannot open %s", path);
    char *text = calloc(1, 1 << 20);
    assert_non_null(text);
    size_t n = fread(text, 1, (1 << 20) - 1, f);
    text[n] = '\0';
    fclose(f);
    return text;
}

static void same_model_settings(const Config *a, const Config *b) {
    char *x = NULL, *y = NULL;
    MUST_OK(config_dump(a, &x));
    MUST_OK(config_dump(b, &y));
    assert_string_equal(x, y);
    free(x);
    free(y);
}

static void round_trip(const char *name, HfExport how, bool is_sharded) {
    char from[256];
    Loaded l, again;
    clean();
    snprintf(from, sizeof from, GOLDEN "%s", name);
    MUST_OK(load(&l, from));
    MUST_OK(export(&l, at("out"), how));
    same_tensors(from, at("out"));
    assert_int_equal(access(at("out/model.safetensors.index.json"), F_OK) == 0, is_sharded);
    MUST_OK(load(&again, at("out")));
    same_model_settings(l.c, again.c);
    unload(&l);
    unload(&again);
}

static void exports_what_it_imported(void **state) {
    (void)state;
    round_trip("plain", (HfExport){.dtype = HF_F32}, false);
    round_trip("groups", (HfExport){.dtype = HF_F32, .shard_bytes = 30000}, true);
    round_trip("mtp1", (HfExport){.dtype = HF_F32, .shard_bytes = 200000}, true);
    round_trip("shared2", (HfExport){0}, false);
    round_trip("dense2", (HfExport){.shard_bytes = 1}, true); // one tensor per file
    round_trip("yarn_mscale", (HfExport){0}, false);
    round_trip("v2_lite", (HfExport){0}, false);
    round_trip("mtp2", (HfExport){0}, false);
}

static void leaves_out_what_was_asked(void **state) {
    (void)state;
    Loaded l;
    Safetensors *st = NULL;
    Config *c = NULL;
    clean();
    MUST_OK(load(&l, GOLDEN "mtp1"));
    MUST_OK(export(&l, at("out"), (HfExport){.dtype = HF_F32, .without_mtp = true}));
    MUST_OK(safetensors_open(&st, at("out")));
    assert_null(safetensors_find(st, "model.layers.2.eh_proj.weight"));
    assert_null(safetensors_find(st, "model.layers.2.embed_tokens.weight"));
    assert_non_null(safetensors_find(st, "model.layers.1.mlp.gate.weight"));
    MUST_OK(hf_import_config(&c, at("out"), st));
    assert_int_equal(c->model.num_nextn_predict_layers, 0);
    config_free(c);
    safetensors_close(&st);
    unload(&l);

    MUST_OK(load(&l, GOLDEN "tied"));
    MUST_OK(export(&l, at("tied"), (HfExport){.dtype = HF_F32}));
    MUST_OK(safetensors_open(&st, at("tied")));
    assert_null(safetensors_find(st, "lm_head.weight"));
    safetensors_close(&st);
    unload(&l);
}

static void decodes_fp8_blocks(void **state) {
    (void)state;
    Loaded l;
    MUST_OK(load(&l, GOLDEN "fp8"));
    const char *name = "model.layers.1.mlp.experts.2.down_proj.weight"; // [144, 136]: four blocks
    const StTensor *codes, *scale;
    MUST_OK(safetensors_get(l.st, name, &codes));
    MUST_OK(safetensors_get(l.st, "model.layers.1.mlp.experts.2.down_proj.weight_scale_inv", &scale));
    assert_int_equal(codes->dtype, ST_F8_E4M3);
    assert_int_equal(scale->shape[0] * scale->shape[1], 4);
    float *plain = malloc((size_t)(codes->rows * codes->cols) * sizeof *plain), s[4];
    MUST_OK(safetensors_read_f32(l.st, codes->name, 0, codes->rows, plain));
    memcpy(s, scale->data, sizeof s);
    assert_true(s[0] != s[3]);
    const Param *p = params_find(model_params(l.solo.model), P_EXPERT_DOWN, 1);
    for (int64_t r = 0; r < 144; r++) {
        for (int64_t col = 0; col < 136; col++) {
            float want = plain[r * 136 + col] * s[r / 128 * 2 + col / 128];
            float got = *(float *)mat_at(p->master, 2 * 144 + r, col);
            assert_memory_equal(&want, &got, sizeof want);
        }
    }
    free(plain);
    unload(&l);
}

// Rows that a rank of several owns are the rows of the whole.
static void ranks_read_their_rows(void **state) {
    (void)state;
    Loaded whole;
    MUST_OK(load(&whole, GOLDEN "groups"));
    for (int rank = 0; rank < 4; rank++) {
        Cx cx = {.ops = ops_cpu(), .dev = device_cpu()};
        Shape s;
        Params *p = NULL;
        MUST_OK(mesh_build(&cx.mesh, 4, rank, 2));
        MUST_OK(comm_null(&cx.world, "world", rank, 4));
        MUST_OK(comm_null(&cx.ep, "ep", cx.mesh.ep_rank, 2));
        MUST_OK(comm_null(&cx.edp, "edp", cx.mesh.dp_rank, 2));
        MUST_OK(arena_create(&cx.params, "params", 64 << 20, false));
        MUST_OK(arena_create(&cx.state, "state", 64 << 20, false));
        MUST_OK(shape_from_config(&s, whole.c, &cx.mesh));
        MUST_OK(params_create(&p, &s, &cx, false, false));
        MUST_OK(import_weights(whole.st, GOLDEN "groups", p, &s));
        for (int i = 0; i < p->n; i++) {
            const Param *e = &p->p[i], *w = params_find(model_params(whole.solo.model), e->family, e->layer);
            if (e->own.nrows == 0) continue;
            const float *from = mat_at(w->master, e->mat0 * e->rows + e->own.row0, 0);
            assert_memory_equal(from, e->master.p, (size_t)(e->own.nrows * e->cols) * sizeof(float));
        }
        assert_memory_equal(p->bias[1], model_params(whole.solo.model)->bias[1], (size_t)s.E * sizeof(float));
        params_free(&p);
        arena_destroy(&cx.params);
        arena_destroy(&cx.state);
        comm_destroy(&cx.world);
        comm_destroy(&cx.ep);
        comm_destroy(&cx.edp);
    }
    unload(&whole);
}

static void overwrites_nothing(void **state) {
    (void)state;
    Loaded l;
    clean();
    MUST_OK(load(&l, GOLDEN "plain"));
    assert_int_equal(mkdir(at("out"), 0777), 0);
    MUST_OK(export(&l, at("out/"), (HfExport){0})); // empty is fine
    MUST_FAIL(export(&l, at("out"), (HfExport){0}), E_USAGE, "not empty");
    scratch_write_text(at("file"), "x");
    MUST_FAIL(export(&l, at("file"), (HfExport){0}), E_USAGE, "file");
    MUST_FAIL(export(&l, at("missing/out"), (HfExport){0}), E_OUTPUT, "missing/out");
    MUST_FAIL(export(&l, at("bad"), (HfExport){.tokenizer = at("file")}), E_INPUT, "file");
    DIR *d = opendir(scratch_dir); // nothing half-written is left
    for (struct dirent *e; (e = readdir(d));) assert_null(strstr(e->d_name, "partial"));
    closedir(d);
    unload(&l);
}

// What to change in a copy of a case's weights.
typedef struct Change {
    const char *drop; // tensor to leave out
    const char *rename, *to;
    const char *poke; // tensor whose element `index` becomes `value` (F32 tensors)
    int64_t index;
    float value;
    const char *reshape; // tensor [a,b] that becomes [b,a], [a] that becomes [1,a]
    const char *retype;  // F32 tensor declared as I32
} Change;

static void copy_weights(const char *from, const Change *ch) {
    Safetensors *st = NULL;
    SafetensorsWriter *w = NULL;
    StDecl decl[512];
    const StTensor *src[512];
    int64_t n = 0;
    MUST_OK(safetensors_open(&st, from));
    for (int64_t i = 0; i < safetensors_count(st); i++) {
        const StTensor *t = safetensors_at(st, i);
        if (ch->drop && !strcmp(t->name, ch->drop)) continue;
        StDecl d = {.name = t->name, .dtype = t->dtype, .ndim = t->ndim};
        memcpy(d.shape, t->shape, sizeof d.shape);
        if (ch->rename && !strcmp(t->name, ch->rename)) d.name = ch->to;
        if (ch->retype && !strcmp(t->name, ch->retype)) d.dtype = ST_I32;
        if (ch->reshape && !strcmp(t->name, ch->reshape)) {
            d.ndim = 2;
            d.shape[0] = t->ndim == 1 ? 1 : t->shape[1];
            d.shape[1] = t->shape[0];
        }
        src[n] = t;
        decl[n++] = d;
    }
    assert_int_equal(access(at("in"), F_OK) && mkdir(at("in"), 0777), 0);
    MUST_OK(safetensors_create(&w, at("in/model.safetensors"), decl, n));
    for (int64_t i = 0; i < n; i++) {
        char *bytes = malloc(src[i]->bytes + 1);
        memcpy(bytes, src[i]->data, src[i]->bytes);
        if (ch->poke && !strcmp(src[i]->name, ch->poke)) memcpy(bytes + 4 * ch->index, &ch->value, 4);
        MUST_OK(safetensors_put(w, decl[i].name, bytes, src[i]->bytes));
        free(bytes);
    }
    MUST_OK(safetensors_finish(&w, false));
    safetensors_close(&st);
}

// A copy of a case in root/in, its config.json with one text replaced (`was` NULL: as it is).
static void copy_case(const char *name, Change ch, const char *was, const char *is) {
    char from[256];
    clean();
    snprintf(from, sizeof from, GOLDEN "%s", name);
    copy_weights(from, &ch);
    snprintf(from, sizeof from, GOLDEN "%s/config.json", name);
    char *text = read_text(from);
    if (was) {
        char *found = strstr(text, was);
        if (!found) fail_msg("no '%s' in %s", was, from);
        char *changed = malloc(strlen(text) + strlen(is) + 1);
        sprintf(changed, "%.*s%s%s", (int)(found - text), text, is, found + strlen(was));
        free(text);
        text = changed;
    }
    scratch_write_text(at("in/config.json"), text);
    free(text);
}

static void refuses(const char *name, Change ch, const char *was, const char *is, const char *words) {
    Loaded l;
    copy_case(name, ch, was, is);
    MUST_FAIL(load(&l, at("in")), E_INPUT, words);
    unload(&l);
}

static void refuses_other_weights(void **state) {
    (void)state;
    const char *q = "model.layers.0.self_attn.q_proj.weight", *norm = "model.norm.weight";
    refuses("plain", (Change){.drop = q}, NULL, NULL, "q_proj.weight is missing");
    refuses("plain", (Change){.reshape = q}, NULL, NULL, "expected shape [96, 48], found [48, 96]");
    refuses("plain", (Change){.reshape = norm}, NULL, NULL, "expected shape [48], found [1, 48]");
    refuses("plain", (Change){.poke = q, .index = 77, .value = NAN}, NULL, NULL,
            "q_proj.weight: element 77 is not finite");
    refuses("plain", (Change){.retype = q}, NULL, NULL, "q_proj.weight");
    refuses("plain", (Change){.rename = q, .to = "model.layers.0.self_attn.q_proj.bias"}, NULL, NULL,
            "q_proj.weight");
    refuses("plain", (Change){.drop = "model.layers.1.mlp.gate.e_score_correction_bias"}, NULL, NULL,
            "e_score_correction_bias is missing");
    refuses("plain", (Change){0}, "\"n_routed_experts\": 6", "\"n_routed_experts\": 4", "mlp.gate.weight");
    refuses("plain", (Change){0}, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", "model.layers.1");
    refuses("fp8", (Change){.drop = "model.layers.0.mlp.up_proj.weight_scale_inv"}, NULL, NULL,
            "weight_scale_inv is missing");
    refuses("fp8", (Change){.reshape = "model.layers.0.self_attn.q_a_proj.weight_scale_inv"}, NULL, NULL,
            "q_a_proj.weight_scale_inv: expected shape [1, 2]");
    refuses("mtp1", (Change){.poke = "model.layers.2.embed_tokens.weight", .index = 50, .value = 7.5f}, NULL, NULL,
            "must be a copy of model.embed_tokens.weight, but row 1, column 2");
    refuses("mtp1", (Change){.poke = "model.layers.2.shared_head.head.weight", .index = 0, .value = 7.5f}, NULL,
            NULL, "must be a copy of lm_head.weight");
    refuses("mtp1", (Change){0}, "\"num_nextn_predict_layers\": 1", "\"num_nextn_predict_layers\": 0",
            "model.layers.2");
    refuses("tied", (Change){.rename = "model.layers.0.mlp.up_proj.weight", .to = "lm_head.weight"}, NULL, NULL,
            "up_proj.weight is missing");
}

static void accepts_what_is_harmless(void **state) {
    (void)state;
    Loaded l;
    copy_case("mtp1", (Change){.drop = "model.layers.2.embed_tokens.weight"}, NULL, NULL); // a copy is not needed
    MUST_OK(load(&l, at("in")));
    assert_int_equal(l.solo.shape.nmtp, 1);
    unload(&l);
    copy_case("plain", (Change){0}, "\"num_nextn_predict_layers\": 0", "\"num_nextn_predict_layers\": 1");
    MUST_OK(load(&l, at("in"))); // promised modules that transformers dropped
    assert_int_equal(l.solo.shape.nmtp, 0);
    unload(&l);
    copy_case("v2_lite", (Change){0}, "\"n_group\": 1", "\"n_group\": null");
    MUST_OK(load(&l, at("in")));
    assert_int_equal(l.c->model.n_group, 1);
    assert_int_equal(l.c->balance.method, BALANCE_NONE);
    unload(&l);
    copy_case("plain", (Change){0}, "\"topk_method\": \"noaux_tc\",", ""); // what the class implies
    MUST_OK(load(&l, at("in")));
    assert_true(l.solo.shape.has_bias && l.solo.shape.is_sigmoid);
    unload(&l);
    copy_case("plain", (Change){0}, "\"routed_scaling_factor\": 1.0,", "");
    MUST_OK(load(&l, at("in")));
    assert_true(l.solo.shape.route_scale == 2.5f);
    unload(&l);
    copy_case("groups", (Change){0}, "\"n_group\": 4,\n \"topk_group\": 2,", "");
    MUST_OK(load(&l, at("in")));
    assert_true(l.solo.shape.ngroup == 8 && l.solo.shape.topk_group == 4);
    unload(&l);
    copy_case("v2_groups", (Change){0}, "\"routed_scaling_factor\": 16.0,", "");
    MUST_OK(load(&l, at("in")));
    assert_true(l.solo.shape.route_scale == 1.0f);
    unload(&l);
}

static void refuses_other_settings(void **state) {
    (void)state;
    const struct {
        const char *was, *is, *words;
    } t[] = {
        {"\"model_type\": \"deepseek_v3\"", "\"model_type\": \"llama\"", "model_type is llama"},
        {"\"model_type\": \"deepseek_v3\"", "\"model\": 1", "model_type is missing"},
        {"\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"", "hidden_act is gelu"},
        {"\"attention_bias\": false", "\"attention_bias\": true", "attention_bias is true"},
        {"\"rope_interleave\": true", "\"rope_interleave\": false", "rope_interleave is false"},
        {"\"attention_dropout\": 0.0", "\"attention_dropout\": 0.1", "attention_dropout is 0.1"},
        {"\"num_key_value_heads\": 4", "\"num_key_value_heads\": 2", "num_key_value_heads is 2"},
        {"\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}", "linear"},
        {"\"rope_scaling\": null", "\"rope_scaling\": {\"factor\": 2}", "has a factor but no type"},
        {"\"rope_scaling\": null", "\"rope_scaling\": \"yarn\"", "expected an object or null"},
        {"\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2, \"truncate\": false}",
         "truncate"},
        {"\"hidden_size\": 48,", "", "hidden_size is missing"},
        {"\"hidden_size\": 48", "\"hidden_size\": \"wide\"", "hidden_size"},
        {"\"hidden_size\": 48", "\"hidden_size\": -48", "hidden_size"},
        {"\"topk_method\": \"noaux_tc\"", "\"topk_method\": \"best\"", "topk_method"},
        {"\"hidden_size\": 48", "\"hidden_size\": 48, \"hidden_size\": 48", "not valid JSON"},
        {"{", "[", "not valid JSON"},
    };
    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++)
        refuses("plain", (Change){0}, t[i].was, t[i].is, t[i].words);
    Loaded l;
    copy_case("plain", (Change){0}, NULL, NULL);
    unlink(at("in/config.json"));
    MUST_FAIL(load(&l, at("in")), E_INPUT, "config.json");
    unload(&l);
    MUST_FAIL(load(&l, at("nowhere")), E_INPUT, "nowhere");
    unload(&l);
}

// Newer files: rope_parameters in place of rope_theta and rope_scaling.
static void reads_new_rope_keys(void **state) {
    (void)state;
    Loaded l;
    copy_case(
        "plain", (Change){0}, "\"rope_theta\": 10000.0,\n \"rope_scaling\": null",
        "\"rope_parameters\": {\"rope_type\": \"yarn\", \"rope_theta\": 500.0, \"factor\": 4.0, \"beta_fast\": 16, "
        "\"mscale\": 1.0, \"original_max_position_embeddings\": 32}");
    MUST_OK(load(&l, at("in")));
    assert_true(l.c->model.has_rope_scaling);
    assert_true(l.c->model.rope_theta == 500 && l.c->model.rope_scaling_factor == 4);
    assert_true(l.c->model.rope_scaling_beta_fast == 16 && l.c->model.rope_scaling_beta_slow == 1);
    assert_true(l.c->model.rope_scaling_mscale == 1 && l.c->model.rope_scaling_mscale_all_dim == 0);
    unload(&l);
    copy_case("plain", (Change){0}, "\"rope_theta\": 10000.0,\n \"rope_scaling\": null",
              "\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 700.0}");
    MUST_OK(load(&l, at("in")));
    assert_true(!l.c->model.has_rope_scaling && l.c->model.rope_theta == 700);
    unload(&l);
}

// export_warns: what the log says while the copy at in/ is exported, or NULL.
static char *export_warns(void) {
    Loaded l;
    MUST_OK(load(&l, at("in")));
    log_init(0, 1);
    MUST_OK(log_open(at("log")));
    MUST_OK(export(&l, at("out"), (HfExport){0}));
    log_close();
    log_init(1, 2);
    unload(&l);
    char *text = read_text(at("log"));
    if (strstr(text, "warning")) return text;
    free(text);
    return NULL;
}

static void warns_of_other_rotations(void **state) {
    (void)state;
    copy_case("yarn_mscale", (Change){0}, NULL, NULL);
    assert_null(export_warns());
    copy_case("yarn_mscale", (Change){0}, "\"max_position_embeddings\": 128", "\"max_position_embeddings\": 163840");
    char *text = export_warns();
    assert_non_null(text);
    assert_non_null(strstr(text, "max_position_embeddings (163840) is not"));
    assert_non_null(strstr(text, "(8 * 16)"));
    free(text);
}

static void json_is_taken_apart(void **state) {
    (void)state;
    JsonFlat j;
    clean();
    scratch_write_text(at("a.json"),
               "{\"a\": 1, \"b\": {\"c\": -2.5e-3, \"d\": {\"e\": null}}, \"f\": [1, [2]], \"g\": true, "
               "\"h\": \"x\\u00e9\\\"\", \"i\": {}}");
    MUST_OK(json_flat_read(&j, at("a.json")));
    assert_int_equal(j.n, 6);
    assert_string_equal(json_flat_find(&j, "a")->text, "1");
    assert_int_equal(json_flat_find(&j, "a")->kind, JSON_WHOLE);
    assert_true(strtod(json_flat_find(&j, "b.c")->text, NULL) == -2.5e-3);
    assert_int_equal(json_flat_find(&j, "b.d.e")->kind, JSON_NONE);
    assert_string_equal(json_flat_find(&j, "f")->text, "[1,[2]]");
    assert_string_equal(json_flat_find(&j, "g")->text, "true");
    assert_string_equal(json_flat_find(&j, "h")->text, "x\xc3\xa9\"");
    assert_null(json_flat_find(&j, "b"));
    json_flat_free(&j);
    scratch_write_text(at("a.json"), "[1]");
    MUST_FAIL(json_flat_read(&j, at("a.json")), E_INPUT, "expected a JSON object");
    scratch_write_text(at("a.json"), "{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{}}}}}}}}}}");
    MUST_FAIL(json_flat_read(&j, at("a.json")), E_INPUT, "nested more than");
    MUST_FAIL(json_flat_read(&j, scratch_dir), E_INPUT, "not a regular file");
    MUST_FAIL(json_flat_read(&j, at("none.json")), E_INPUT, "No such file");
    char *text = read_text(GOLDEN "plain/config.json"); // cut anywhere: an error, never a crash
    for (size_t n = 0, all = strlen(text); n + 2 < all; n += 7) {
        FILE *f = fopen(at("a.json"), "w");
        fwrite(text, 1, n, f);
        fclose(f);
        assert_int_equal(json_flat_read(&j, at("a.json")), E_INPUT);
        assert_int_equal(j.n, 0);
    }
    fail_clear();
    free(text);
}

// A tokenizer with the 256 bytes, two letters merged, and special tokens: taken along and described.
static void takes_a_tokenizer_along(void **state) {
    (void)state;
    Loaded l, again;
    JsonFlat j;
    clean();
    FILE *f = fopen(at("tokenizer.json"), "w");
    assert_non_null(f);
    fprintf(
        f,
        "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":0,\"content\":\"<|begin_of_text|>\",\"special\":true,"
        "\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false},{\"id\":1,\"content\":"
        "\"<|end_of_text|>\",\"special\":true,\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
        "\"normalized\":false}],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":"
        "false,\"trim_offsets\":true,\"use_regex\":false},\"post_processor\":null,\"decoder\":{\"type\":"
        "\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},\"model\":{\"type\":"
        "\"BPE\",\"dropout\":null,\"unk_token\":null,\"vocab\":{\"<|begin_of_text|>\":0,\"<|end_of_text|>\":1");
    for (int b = 0, extra = 0; b < 256; b++) {
        bool is_self = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        fprintf(f, ",\"\\u%04x\":%d", is_self ? b : 256 + extra++, b + 2);
    }
    fprintf(f, "},\"merges\":[]}}\n");
    fclose(f);
    MUST_OK(load(&l, GOLDEN "plain"));
    MUST_OK(export(&l, at("out"), (HfExport){.tokenizer = at("tokenizer.json")}));
    char *was = read_text(at("tokenizer.json")), *is = read_text(at("out/tokenizer.json"));
    assert_string_equal(was, is);
    free(was);
    free(is);
    MUST_OK(json_flat_read(&j, at("out/tokenizer_config.json")));
    assert_string_equal(json_flat_find(&j, "bos_token")->text, "<|begin_of_text|>");
    assert_string_equal(json_flat_find(&j, "eos_token")->text, "<|end_of_text|>");
    json_flat_free(&j);
    MUST_OK(json_flat_read(&j, at("out/generation_config.json")));
    assert_string_equal(json_flat_find(&j, "eos_token_id")->text, "1");
    json_flat_free(&j);
    MUST_OK(load(&again, at("out")));
    assert_non_null(again.c->data.tokenizer);
    assert_non_null(strstr(again.c->data.tokenizer, "out/tokenizer.json"));
    unload(&again);
    scratch_write_text(at("out/tokenizer.json"), "{}"); // one we cannot use does not stop an import
    MUST_OK(load(&again, at("out")));
    assert_null(again.c->data.tokenizer);
    unload(&again);
    unload(&l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exports_what_it_imported), cmocka_unit_test(leaves_out_what_was_asked),
        cmocka_unit_test(decodes_fp8_blocks),       cmocka_unit_test(ranks_read_their_rows),
        cmocka_unit_test(overwrites_nothing),       cmocka_unit_test(refuses_other_weights),
        cmocka_unit_test(accepts_what_is_harmless), cmocka_unit_test(refuses_other_settings),
        cmocka_unit_test(reads_new_rope_keys),      cmocka_unit_test(warns_of_other_rotations),
        cmocka_unit_test(json_is_taken_apart),      cmocka_unit_test(takes_a_tokenizer_along),
    };
    return cmocka_run_group_tests(tests, setup, scratch_teardown);
}
