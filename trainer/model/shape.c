// shape.c - from settings to numbers.
#include "shape.h"

Err shape_from_config(Shape *s, const Config *c, const Mesh *mesh) {
    Shape r = {0};
    r.V = c->model.vocab_size;
    r.D = c->model.hidden_size;
    r.H = c->model.num_attention_heads;
    r.Dn = c->model.qk_nope_head_dim;
    r.Dr = c->model.qk_rope_head_dim;
    r.Dv = c->model.v_head_dim;
    r.Rq = c->model.q_lora_rank;
    r.Rkv = c->model.kv_lora_rank;
    r.Fd = c->model.intermediate_size;
    r.F = c->model.moe_intermediate_size;
    r.Fs = c->model.n_shared_experts * r.F;
    r.E = c->model.n_routed_experts;
    r.K = c->model.num_experts_per_tok;
    TRY(mesh_experts(mesh, r.E, &r.expert0, &r.L));
    r.ngroup = c->model.n_group;
    r.topk_group = c->model.topk_group;
    if (c->model.topk_method == TOPK_GREEDY) r.ngroup = r.topk_group = 1;
    r.nlayers = c->model.num_hidden_layers;
    r.ndense = c->model.first_k_dense_replace;
    r.nmtp = c->model.num_nextn_predict_layers;
    r.S = c->train.seq_len;
    r.B = c->train.micro_batch;
    r.eps = (float)c->model.rms_norm_eps;
    r.rope_theta = c->model.rope_theta;
    if (c->model.has_rope_scaling) {
        r.yarn.factor = c->model.rope_scaling_factor;
        r.yarn.original_max_position = c->model.rope_scaling_original_max_position_embeddings;
        r.yarn.beta_fast = c->model.rope_scaling_beta_fast;
        r.yarn.beta_slow = c->model.rope_scaling_beta_slow;
        r.yarn.mscale = c->model.rope_scaling_mscale;
        r.yarn.mscale_all_dim = c->model.rope_scaling_mscale_all_dim;
    }
    r.softmax_scale = (float)rope_softmax_scale(r.Dn + r.Dr, r.yarn);
    r.is_sigmoid = c->model.scoring_func == SCORING_SIGMOID;
    r.has_bias = c->model.topk_method == TOPK_NOAUX_TC;
    r.normalise = c->model.norm_topk_prob;
    r.is_tied = c->model.tie_word_embeddings;
    r.document_mask = c->train.document_mask;
    r.route_scale = (float)c->model.routed_scaling_factor;
    r.mode = c->precision.mode;
    r.act = r.mode == MODE_FP32 ? DT_F32 : DT_BF16;
    r.recipe = recipe_from_config(c);
    r.cache_o_e5m6 = r.mode == MODE_FP8 && c->fp8.cache_attn_out == CACHE_ATTN_OUT_E5M6;
    r.cache_swiglu_fp8 = r.mode == MODE_FP8 && c->fp8.cache_swiglu == CACHE_SWIGLU_FP8;
    r.shadow_every = r.mode == MODE_FP8 ? c->fp8.shadow_every : 0;
    r.is_unfused = c->debug.unfused;
    r.recompute_norm = c->recompute.norm;
    r.recompute_up = c->recompute.mla_up;
    r.recompute_swiglu = c->recompute.swiglu;
    r.init_std = c->model.initializer_range;
    r.seed = (uint64_t)c->train.seed;
    *s = r;
    return OK;
}
