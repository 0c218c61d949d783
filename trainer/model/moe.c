// moe.c - the expert half of a block.
//
// Letters: T tokens here, D width, F expert width, E experts, L experts here, K experts per token, R pair rows.
#include "moe.h"

#include "prof.h"
#include "staging.h"

MoeParams moe_params(const Params *p, int64_t layer, int64_t *count) {
    MoeParams m = {0};
    m.norm = params_find(p, P_FFN_NORM, layer);
    m.router = params_find(p, P_ROUTER, layer);
    m.gate = params_find(p, P_EXPERT_GATE, layer);
    m.up = params_find(p, P_EXPERT_UP, layer);
    m.down = params_find(p, P_EXPERT_DOWN, layer);
    m.shared.gate = params_find(p, P_SHARED_GATE, layer);
    m.shared.up = params_find(p, P_SHARED_UP, layer);
    m.shared.down = params_find(p, P_SHARED_DOWN, layer);
    m.bias = p->bias[layer];
    m.count = count;
    return m;
}

static RouteShape route_shape(const Shape *s, int64_t T, double balance_scale) {
    RouteShape r = {T, s->E, s->K, s->ngroup, s->topk_group, s->is_sigmoid, s->normalise, s->route_scale,
                    (float)balance_scale};
    return r;
}

static Groups plan_groups(const ExPlan *plan) {
    Groups g = {plan->start, plan->count, plan->L};
    return g;
}

// route: scores and selection of this rank's tokens, counts, balance loss.
static Err route(const Shape *s, Cx *cx, const MoeParams *p, MoeSaved *a, bool with_balance, double *balance) {
    int64_t T = a->x.rows;
    ARENA_NEW(cx->acts, a->idx, T * s->K);
    ARENA_NEW(cx->acts, a->gate, T * s->K); // behind idx: plan_start reads both at once
    ARENA_NEW(cx->acts, a->score, T * s->E);
    if (with_balance) ARENA_NEW(cx->acts, a->coef, a->nseq * s->E);
    size_t mark = arena_mark(cx->scratch);
    Mat logits;
    TRY(arena_mat(cx->scratch, &logits, DT_F32, T, s->E, "moe.logits"));
    prof_enter(PROF_ROUTE);
    TRY(cx->ops->gemm_nt(&cx->op, logits, a->n, p->router->w, false));
    TRY(cx->ops->route_fwd(&cx->op, a->idx, a->gate, a->score, p->count, logits, p->bias, route_shape(s, T, 0)));
    if (with_balance) {
        TRY(cx->ops->route_seqbal(&cx->op, balance, a->coef, a->score, route_shape(s, T, 0), a->nseq));
    }
    prof_leave();
    arena_release(cx->scratch, mark);
    return OK;
}

// plan_top: where the next array of the plan will lie.
static Err plan_top(Cx *cx, void **first) {
    return arena_push(cx->host_acts, first, 0, "plan");
}

// moved: where in the copy `to` of what begins at `from` p lies.
static void *moved(const void *p, const void *from, void *to) {
    return (char *)to + ((const char *)p - (const char *)from);
}

// plan_sent: the sending half, which begins at `first`, for operations.
static Err plan_sent(Cx *cx, MoeSaved *a, const void *first) {
    const ExPlan *p = &a->plan;
    void *copy = NULL;
    size_t bytes = (size_t)((const char *)(p->tok_row + p->nsend) - (const char *)first);
    TRY(staging_push(cx, cx->acts, &copy, first, bytes, "plan"));
    a->on = *p;
    a->on.tok_first = moved(p->tok_first, first, copy);
    a->on.send_tok = moved(p->send_tok, first, copy);
    a->on.tok_row = moved(p->tok_row, first, copy);
    return OK;
}

// plan_received: the same for the receiving half.
static Err plan_received(Cx *cx, MoeSaved *a, const void *first) {
    const ExPlan *p = &a->plan;
    ExPlan on = *p;
    void *copy = NULL;
    size_t bytes = (size_t)((const char *)(p->pair_gate + p->npair) - (const char *)first);
    TRY(staging_push(cx, cx->acts, &copy, first, bytes, "plan"));
    on.tok_first = a->on.tok_first;
    on.send_tok = a->on.send_tok;
    on.tok_row = a->on.tok_row;
    on.start = moved(p->start, first, copy);
    on.count = moved(p->count, first, copy);
    on.recv_first = moved(p->recv_first, first, copy);
    on.recv_pair = moved(p->recv_pair, first, copy);
    on.pair_recv = moved(p->pair_recv, first, copy);
    on.pair_slot = moved(p->pair_slot, first, copy);
    on.pair_gate = moved(p->pair_gate, first, copy);
    a->on = on;
    return OK;
}

// plan_start: who gets what, from what the router chose: the one wait for the device in a layer's forward.
static Err plan_start(const Shape *s, Cx *cx, MoeSaved *a, ExFlight *meta, int64_t T) {
    void *first = NULL, *idx = NULL;
    size_t bytes = (size_t)((const char *)(a->gate + T * s->K) - (const char *)a->idx); // of idx, and gate behind it
    prof_enter(PROF_EXCHANGE);
    TRY(plan_top(cx, &first));
    TRY(staging_read(cx, &idx, a->idx, bytes));
    const float *gate = moved(a->gate, a->idx, idx);
    TRY(exchange_plan(cx->ep, &a->plan, meta, cx->host_acts, cx->host_scratch, idx, gate, T, s->K, s->L, &cx->bytes));
    TRY(plan_sent(cx, a, first));
    prof_leave();
    return OK;
}

static Err plan_end(Cx *cx, MoeSaved *a, ExFlight *meta) {
    void *first = NULL;
    prof_enter(PROF_EXCHANGE);
    TRY(plan_top(cx, &first));
    TRY(exchange_plan_end(cx->ep, &a->plan, meta, cx->host_acts));
    TRY(plan_received(cx, a, first));
    prof_leave();
    return OK;
}

// Rows on their way over the expert group.
typedef struct Rows {
    void *p;      // what arrives
    void *host;   // where it arrives: p, or memory of the host where ranks send and receive that alone
    size_t bytes; // of it
    int request;  // -1: nothing to wait for
} Rows;

// A group of one rank moves nothing: its rows are where they are needed, in the order of the tokens.
static bool is_alone(const Cx *cx) {
    return cx->ep->nranks == 1;
}

// is_direct: ranks send and receive where operations read and write.
static bool is_direct(const Cx *cx) {
    return staging_is_host(cx) || cx->ep->on_device;
}

static Err rows_wait(Cx *cx, Rows *r) {
    if (r->request < 0) return OK;
    TRY(comm_wait(comm_rows(cx->ep), &r->request));
    return staging_write(cx, r->p, r->host, r->bytes);
}

// rows_room: room on scratch for n rows to arrive in.
static Err rows_room(Cx *cx, Rows *r, int64_t n, int64_t row, const char *what) {
    r->bytes = (size_t)(n * row);
    TRY(arena_push(cx->scratch, &r->p, r->bytes, what));
    r->host = r->p;
    return is_direct(cx) ? OK : staging_room(cx, &r->host, r->p, r->bytes);
}

// rows_to_send: *send where the ranks can take it from.
static Err rows_to_send(Cx *cx, void **send, int64_t n, int64_t row) {
    return is_direct(cx) ? OK : staging_read(cx, send, *send, (size_t)(n * row));
}

// dispatch_start: rows of `o`, of class c, to the experts' ranks, through buffers on scratch that stay until
// dispatch_end. Collective over ep.
static Err dispatch_start(const Shape *s, Cx *cx, const ExPlan *plan, Rows *r, const Operand *o, TensorClass c) {
    int64_t row = operand_row_bytes(s, c, s->D);
    void *send = NULL;
    *r = (Rows){operand_data(s, o), NULL, 0, -1};
    if (is_alone(cx)) return OK;
    TRY(rows_room(cx, r, plan->nrecv, row, "moe.recv"));
    TRY(arena_push(cx->scratch, &send, (size_t)(plan->nsend * row), "moe.send"));
    prof_enter(PROF_EXCHANGE);
    TRY(cx->ops->rows_gather(&cx->op, send, operand_data(s, o), plan->send_tok, plan->nsend, row));
    TRY(rows_to_send(cx, &send, plan->nsend, row));
    TRY(exchange_dispatch(comm_rows(cx->ep), plan, &r->request, r->host, send, row, NULL));
    cx->bytes.dispatch += plan->off_rank_send * operand_payload_bytes(s, c, s->D);
    prof_leave();
    return OK;
}

// dispatch_end: the rows that arrived, in expert order: out [npair] on acts. Collective over ep.
static Err dispatch_end(const Shape *s, Cx *cx, const ExPlan *plan, Operand *out, Rows *r, TensorClass c) {
    int64_t row = operand_row_bytes(s, c, s->D);
    void *rows = NULL;
    TRY(arena_push(cx->acts, &rows, (size_t)(plan->npair * row), "moe.rows"));
    prof_enter(PROF_EXCHANGE);
    TRY(rows_wait(cx, r));
    TRY(cx->ops->rows_gather(&cx->op, rows, r->p, plan->pair_recv, plan->npair, row));
    prof_leave();
    *out = operand_wire(s, c, rows, plan->npair, s->D);
    return OK;
}

// combine_start: pair rows [R,D] summed per received row and sent back, through buffers on scratch that stay until
// combine_end. Collective over ep.
static Err combine_start(const Shape *s, Cx *cx, const ExPlan *plan, Rows *r, Mat pairs) {
    Mat sum;
    TRY(arena_mat(cx->scratch, &sum, s->act, plan->nrecv, s->D, "moe.sum"));
    prof_enter(PROF_EXCHANGE);
    TRY(cx->ops->rows_sum(&cx->op, sum, pairs, plan->recv_first, plan->recv_pair, mat_none(), mat_none()));
    *r = (Rows){sum.p, NULL, 0, -1};
    if (!is_alone(cx)) {
        int64_t row = s->D * (int64_t)dtype_bytes(s->act);
        void *send = sum.p;
        TRY(rows_room(cx, r, plan->nsend, row, "moe.back"));
        TRY(rows_to_send(cx, &send, plan->nrecv, row));
        TRY(exchange_combine(comm_rows(cx->ep), plan, &r->request, r->host, send, row, &cx->bytes));
    }
    prof_leave();
    return OK;
}

// combine_end: y [T,D] = what came back, summed per token on top of add1. Collective over ep.
static Err combine_end(const Shape *s, Cx *cx, const ExPlan *plan, Mat y, Rows *r, Mat add1) {
    prof_enter(PROF_EXCHANGE);
    TRY(rows_wait(cx, r));
    Mat back = mat(r->p, s->act, plan->nsend, s->D);
    TRY(cx->ops->rows_sum(&cx->op, y, back, plan->tok_first, plan->tok_row, add1, mat_none()));
    prof_leave();
    return OK;
}

// gates_start, gates_end: the gradients of the gates dpair [npair] on their way back, and what came: dgate [T,K].
// Collective over ep.
static Err gates_start(Cx *cx, const ExPlan *plan, Rows *r, const float *dpair) {
    int64_t row = plan->K * (int64_t)sizeof(uint32_t);
    uint32_t *here = NULL;
    ARENA_NEW(cx->scratch, here, plan->nrecv * plan->K);
    prof_enter(PROF_EXCHANGE);
    TRY(cx->ops->slots_spread(&cx->op, here, dpair, plan->pair_recv, plan->pair_slot, plan->nrecv, plan->K,
                              plan->npair));
    *r = (Rows){here, NULL, 0, -1};
    if (!is_alone(cx)) {
        void *send = here;
        TRY(rows_room(cx, r, plan->nsend, row, "moe.gates"));
        TRY(rows_to_send(cx, &send, plan->nrecv, row));
        TRY(exchange_gates(comm_rows(cx->ep), plan, &r->request, r->host, send, &cx->bytes));
    }
    prof_leave();
    return OK;
}

static Err gates_end(Cx *cx, const ExPlan *plan, Rows *r, float *dgate) {
    prof_enter(PROF_EXCHANGE);
    TRY(rows_wait(cx, r));
    TRY(cx->ops->slots_join(&cx->op, dgate, r->p, plan->tok_first, plan->tok_row, plan->T, plan->K));
    prof_leave();
    return OK;
}

// experts_fwd: pairs [R,D] = W_down( silu(W_gate xe) * W_up xe * gate ) of the local experts.
static Err experts_fwd(const Shape *s, Cx *cx, const MoeParams *p, MoeSaved *a, Mat pairs) {
    static const GatedSites sites = {SITE_EXPERT_GATE_KEPT, SITE_EXPERT_UP_KEPT,   SITE_EXPERT_DOWN_X,
                                     SITE_EXPERT_DOWN_X_T,  SITE_EXPERT_GATE_DY,   SITE_EXPERT_GATE_DY_T,
                                     SITE_EXPERT_UP_DY,     SITE_EXPERT_UP_DY_T};
    Groups g = plan_groups(&a->on);
    size_t mark = arena_mark(cx->scratch);
    Mat gate, up;
    Operand h;
    TRY(gated_memory(s, cx, &a->mid, sites, &gate, &up, a->plan.npair, s->F));
    TRY(linear_fprop(s, cx, gate, &a->xe, p->gate, g));
    TRY(linear_fprop(s, cx, up, &a->xe, p->up, g));
    TRY(gated_fwd(s, cx, &a->mid, &h, gate, up, a->on.pair_gate));
    TRY(linear_fprop(s, cx, pairs, &h, p->down, g));
    arena_release(cx->scratch, mark);
    return OK;
}

// normed: n = RMSNorm(x), which the router reads, and its operand nq. With recompute.norm n lies on scratch until the
// caller releases it.
static Err normed(const Shape *s, Cx *cx, const MoeParams *p, MoeSaved *a, Mat x) {
    TRY(arena_mat(s->recompute_norm ? cx->scratch : cx->acts, &a->n, s->act, x.rows, x.cols, "moe.n"));
    cx_saved(cx, SAVED_NORM);
    if (is_fused(s, cx)) {
        QuantOut out;
        TRY(operand_room(s, cx, &out, cx->acts, x.rows, x.cols, SITE_FFN_IN_X));
        a->nq.q = out.q;
        prof_enter(PROF_ELEMENTWISE);
        TRY(cx->ops->norm_quant_fwd(&cx->op, out, a->n, a->rstd, x, p->norm->w.p, s->eps));
        prof_leave();
    } else {
        prof_enter(PROF_ELEMENTWISE);
        TRY(cx->ops->norm_rms_fwd(&cx->op, a->n, a->rstd, x, p->norm->w.p, s->eps));
        prof_leave();
        TRY(operand_make(s, cx, &a->nq, cx->acts, a->n, SITE_FFN_IN_X, false));
    }
    cx_saved(cx, SAVED_FFN_IN);
    return OK;
}

// normed_again: n for the backward, on scratch.
static Err normed_again(const Shape *s, Cx *cx, const MoeParams *p, Mat *n, Mat x) {
    TRY(arena_mat(cx->scratch, n, s->act, x.rows, x.cols, "moe.n again"));
    prof_enter(PROF_ELEMENTWISE);
    TRY(cx->ops->norm_rms_fwd(&cx->op, *n, NULL, x, p->norm->w.p, s->eps));
    prof_leave();
    return OK;
}

Err moe_fwd(const Shape *s, Cx *cx, const MoeParams *p, MoeSaved *a, Mat y, Mat x, int64_t nseq, int64_t S,
            bool with_balance, double *balance) {
    int64_t T = x.rows;
    MoeSaved saved = {.nseq = nseq, .S = S, .x = x};
    *a = saved;
    CxMark mark = cx_mark_scratch(cx);
    ARENA_NEW(cx->acts, a->rstd, T);
    TRY(normed(s, cx, p, a, x));
    TRY(route(s, cx, p, a, with_balance, balance));
    Mat shared = mat_none(), pairs, out;
    if (p->shared.gate) TRY(arena_mat(cx->scratch, &shared, DT_F32, T, s->D, "moe.shared"));
    CxMark exchange = cx_mark_scratch(cx);
    ExFlight meta;
    Rows rows;
    TRY(plan_start(s, cx, a, &meta, T));
    cx_saved(cx, SAVED_ROUTING);
    TRY(dispatch_start(s, cx, &a->on, &rows, &a->nq, CLASS_ACTIVATION));
    // The shared expert needs nobody: it computes while metadata and rows travel.
    if (p->shared.gate) TRY(ffn_fwd(s, cx, &p->shared, &a->shared, shared, &a->nq, T));
    cx_saved(cx, SAVED_SWIGLU);
    TRY(plan_end(cx, a, &meta));
    cx_saved(cx, SAVED_ROUTING);
    TRY(dispatch_end(s, cx, &a->on, &a->xe, &rows, CLASS_ACTIVATION));
    cx_saved(cx, SAVED_FFN_IN);
    cx_release_scratch(cx, exchange);
    TRY(arena_mat(cx->scratch, &out, s->act, T, s->D, "moe.out"));
    TRY(arena_mat(cx->scratch, &pairs, s->act, a->plan.npair, s->D, "moe.pairs"));
    TRY(experts_fwd(s, cx, p, a, pairs));
    cx_saved(cx, SAVED_SWIGLU);
    TRY(combine_start(s, cx, &a->on, &rows, pairs));
    TRY(combine_end(s, cx, &a->on, out, &rows, shared));
    prof_enter(PROF_ELEMENTWISE);
    TRY(cx->ops->add(&cx->op, y, x, out));
    prof_leave();
    cx_release_scratch(cx, mark);
    return OK;
}

// experts_bwd: dpairs [R,D] and the gates' gradients [R] from the dispatched output gradients.
static Err experts_bwd(const Shape *s, Cx *cx, const MoeParams *p, MoeSaved *a, Mat dpairs, float *dgate) {
    Groups g = plan_groups(&a->on);
    size_t mark = arena_mark(cx->scratch);
    Mat dh;
    Operand dg, du;
    TRY(arena_mat(cx->scratch, &dh, s->act, a->plan.npair, s->F, "moe.dh"));
    TRY(linear_dgrad(s, cx, dh, &a->dye, p->down, g));
    TRY(gated_bwd(s, cx, &a->mid, &dg, &du, dgate, dh, g));
    TRY(linear_dgrad_pair(s, cx, dpairs, &dg, p->gate, &du, p->up, g));
    arena_release(cx->scratch, mark);
    return OK;
}

// shared_bwd: dsum [T,D] f32 = the shared expert's gradient of the normalised input. Local.
static Err shared_bwd(const Shape *s, Cx *cx, const MoeParams *p, MoeSaved *a, Mat dsum, const Operand *dyq) {
    size_t mark = arena_mark(cx->scratch);
    Operand dg, du;
    TRY(ffn_bwd_core(s, cx, &p->shared, &a->shared, &dg, &du, dyq));
    TRY(linear_dgrad_pair(s, cx, dsum, &dg, p->shared.gate, &du, p->shared.up, groups_none()));
    TRY(cx_progress(cx));
    arena_release(cx->scratch, mark);
    return OK;
}

// router_bwd: dsum [T,D] f32 += the router's gradient of the normalised input (= without a shared expert). Local.
static Err router_bwd(const Shape *s, Cx *cx, const MoeParams *p, MoeSaved *a, Mat dsum, const float *dgate,
                      double balance_scale) {
    TRY(arena_mat(cx->acts, &a->dlogits, DT_F32, dsum.rows, s->E, "moe.dlogits"));
    prof_enter(PROF_ROUTE);
    TRY(cx->ops->route_bwd(&cx->op, a->dlogits, dgate, a->gate, a->score, a->idx, a->coef,
                           route_shape(s, dsum.rows, balance_scale), a->nseq));
    TRY(cx->ops->gemm_nn(&cx->op, dsum, a->dlogits, p->router->w, p->shared.gate != NULL));
    prof_leave();
    return OK;
}

Err moe_bwd_input(const Shape *s, Cx *cx, const MoeParams *p, MoeSaved *a, Mat dx, Mat dy, double balance_scale) {
    int64_t T = dy.rows;
    CxMark mark = cx_mark_scratch(cx);
    Operand dyq;
    Rows rows, gates;
    Mat dsum, dn, dpairs;
    float *dgate_pair = NULL, *dgate = NULL;
    TRY(arena_mat(cx->scratch, &dsum, DT_F32, T, s->D, "moe.dsum"));
    CxMark exchange = cx_mark_scratch(cx);
    if (p->shared.gate)
        TRY(operand_pair(s, cx, &dyq, &a->shared.dy_t, dy, SITE_FFN_OUT_DY, SITE_FFN_DOWN_DY_T, groups_none()));
    else TRY(operand_make(s, cx, &dyq, cx->scratch, dy, SITE_FFN_OUT_DY, false));
    TRY(dispatch_start(s, cx, &a->on, &rows, &dyq, CLASS_GRADIENT));
    if (p->shared.gate) TRY(shared_bwd(s, cx, p, a, dsum, &dyq));
    TRY(dispatch_end(s, cx, &a->on, &a->dye, &rows, CLASS_GRADIENT));
    cx_release_scratch(cx, exchange);

    TRY(arena_mat(cx->scratch, &dn, s->act, T, s->D, "moe.dn"));
    TRY(arena_mat(cx->scratch, &dpairs, s->act, a->plan.npair, s->D, "moe.dpairs"));
    ARENA_NEW(cx->scratch, dgate_pair, a->plan.npair);
    ARENA_NEW(cx->scratch, dgate, T * s->K);
    TRY(experts_bwd(s, cx, p, a, dpairs, dgate_pair));
    TRY(cx_progress(cx));
    TRY(gates_start(cx, &a->on, &gates, dgate_pair));
    TRY(combine_start(s, cx, &a->on, &rows, dpairs));
    TRY(gates_end(cx, &a->on, &gates, dgate));
    TRY(router_bwd(s, cx, p, a, dsum, dgate, balance_scale)); // while the rows travel back
    TRY(combine_end(s, cx, &a->on, dn, &rows, dsum));
    prof_enter(PROF_ELEMENTWISE);
    TRY(cx->ops->norm_rms_bwd(&cx->op, dx, p->norm->grad.p, dn, a->x, p->norm->w.p, a->rstd, dy));
    prof_leave();
    cx_release_scratch(cx, mark);
    return OK;
}

Err moe_bwd_weight(const Shape *s, Cx *cx, const MoeParams *p, MoeSaved *a) {
    Groups g = plan_groups(&a->on), all = groups_none();
    size_t mark = arena_mark(cx->scratch);
    Turned x, dy;
    Mat n = a->n;
    Operand nq = a->nq;
    if (s->recompute_norm) {
        TRY(normed_again(s, cx, p, &n, a->x));
        if (s->mode != MODE_FP8) nq.x = n;
    }
    prof_enter(PROF_ROUTE);
    TRY(cx->ops->gemm_tn(&cx->op, p->router->grad, a->dlogits, n, true));
    prof_leave();
    if (p->shared.gate) {
        TRY(turn_codes(s, cx, &x, &nq, SITE_FFN_IN_X_T, all));
        TRY(ffn_bwd_weight(s, cx, &p->shared, &a->shared, &x));
    }
    arena_release(cx->scratch, mark);
    TRY(gated_turned(s, cx, &a->mid, &x, g));
    TRY(turn_codes(s, cx, &dy, &a->dye, SITE_EXPERT_DOWN_DY_T, g));
    TRY(linear_wgrad(s, cx, p->down, &dy, &x, g));
    arena_release(cx->scratch, mark);
    TRY(turn_codes(s, cx, &x, &a->xe, SITE_EXPERT_IN_X_T, g));
    TRY(linear_wgrad(s, cx, p->gate, &a->mid.dg_t, &x, g));
    TRY(linear_wgrad(s, cx, p->up, &a->mid.du_t, &x, g));
    arena_release(cx->scratch, mark);
    return OK;
}
