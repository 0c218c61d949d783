# bench_table.awk - see launch/bench-table: flat JSON objects, one per line, to Markdown tables.

# field: the value of a key of this line, without quotes; "" if it is not there.
function field(key,    at, rest) {
    at = index($0, "\"" key "\":")
    if (!at) return ""
    rest = substr($0, at + length(key) + 3)
    if (substr(rest, 1, 1) == "\"") {
        rest = substr(rest, 2)
        return substr(rest, 1, index(rest, "\"") - 1)
    }
    match(rest, /^[-+0-9.eE]+/)
    return substr(rest, 1, RLENGTH)
}

# table: a line of the section of this name, which appears in the order of first use.
function table(name, head, line) {
    if (!(name in rows)) {
        order[++ntables] = name
        heads[name] = head
    }
    rows[name] = rows[name] "| " line " |\n"
}

function percent(x) { return x == "" ? "" : sprintf("%.0f %%", 100 * x) }

# products: "FP8 Fprop", "BF16 Wgrad", from gemm_fp8, ggemm_bf16_wgrad.
function product(op,    what, pass) {
    what = op ~ /fp8/ ? "FP8" : op ~ /bf16/ ? "BF16" : "FP32"
    pass = op ~ /dgrad/ ? "Dgrad" : op ~ /wgrad/ ? "Wgrad" : "Fprop"
    return what " " pass
}

{ op = field("op") }

op == "peak" || op == "peak_processor" {
    table("The machine", "what | threads | measured", \
        (op == "peak" ? "peak of " field("isa") : "peak of the best instruction set") " | " field("threads") \
        " | FP32 " field("f32_gflops") ", BF16 " field("bf16_gflops") " GFLOP/s")
}
op ~ /^(copy|memcpy)_/ {
    what = op ~ /^copy/ ? "plain copy in memory" : op ~ /cache/ ? "memcpy in cache" : "memcpy in memory"
    table("The machine", "what | threads | measured", \
        what " | " field("threads") " | " field("gb_per_s") " GB/s read and written")
}
op == "peer" {
    table("Against another program, in turn", "config | peer | ours, ms | peer, ms | ratio | idle", \
        field("config") " | " field("peer") " | " field("ms") " | " field("peer_ms") " | " field("ratio") " | " \
        percent(field("idle")))
}
op ~ /^g?gemm_/ {
    shape = field("m") ", " field("n") ", " field("k")
    if (field("groups") > 0) shape = shape " (" field("groups") ")"
    table("Matrix products, " field("isa") ", " field("threads") " threads", \
        "product | outputs M, N over K (groups) | ms | GFLOP/s | of peak | spread", \
        product(op) " | " shape " | " sprintf("%.3f", field("ms")) " | " sprintf("%.0f", field("gflops")) " | " percent(field("fraction_of_peak")) \
        " | " percent(field("spread")))
}
field("gelem_per_s") != "" {
    table("Quantisers, " field("isa") ", " field("threads") " threads", \
        "operation | rows, columns | values | in | Gvalue/s | GB/s | of memcpy | spread", \
        op " | " field("m") ", " field("n") " | " field("type") " | " field("where") " | " field("gelem_per_s") " | " \
        field("gb_per_s") " | " percent(field("fraction_of_peak")) " | " percent(field("spread")))
}
op ~ /^attn_/ {
    table("Attention, " field("isa") ", " field("threads") " threads", \
        "operation | shape | sequences x length, heads, qk, v | ms | GFLOP/s | of peak | spread", \
        op " | " field("shape") " | " field("sequences") " x " field("seq_len") ", " field("heads") ", " \
        field("qk_dim") ", " field("v_dim") " | " sprintf("%.2f", field("ms")) " | " sprintf("%.0f", field("gflops")) \
        " | " \
        percent(field("fraction_of_peak")) " | " percent(field("spread")))
}
field("parameters") != "" {
    table("Optimizer, " field("isa") ", " field("threads") " threads", \
        "operation | parameters | ms | Gparam/s | GB/s | of a plain copy | spread", \
        op " | " field("parameters") " | " field("ms") " | " field("gparam_per_s") " | " field("gb_per_s") " | " \
        percent(field("fraction_of_peak")) " | " percent(field("spread")))
}
field("top_k") != "" {
    table("Expert exchange, " field("ranks") " ranks of " field("threads") " threads", \
        "operation | shape | rows sent | ms | GB/s of a rank | of memcpy | spread", \
        op " | " field("shape") " | " field("rows") " | " field("ms") " | " field("gb_per_s") " | " \
        percent(field("fraction_of_peak")) " | " percent(field("spread")))
}
op == "step" {
    name = field("config")
    sub(/.*\//, "", name)
    sub(/\.yaml$/, "", name)
    table("Training steps", \
        "config | mode | ranks x threads | kernels | ms | tokens/s | GFLOP/s | of peak | allocations | page faults", \
        name " | " field("mode") " | " field("ranks") " x " field("threads") " | " field("isa") " | " \
        sprintf("%.1f", field("ms")) " | " sprintf("%.0f", field("tokens_per_s")) " | " \
        sprintf("%.0f", field("gflops")) " | " percent(field("fraction_of_peak")) " | " \
        field("allocations") " | " field("page_faults"))
    n = split("linear expert head attention quant elementwise embed route exchange reduce optimizer other", region, " ")
    all = 0
    for (i = 1; i <= n; i++) all += field(region[i] "_ms")
    line = name " | " field("mode") " | " sprintf("%.1f", all)
    head = "config | mode | mean ms"
    for (i = 1; i <= n; i++) {
        line = line " | " percent(all > 0 ? field(region[i] "_ms") / all : "")
        head = head " | " region[i]
    }
    table("Where the time of a step goes", head, line)
}

END {
    for (i = 1; i <= ntables; i++) {
        bars = heads[order[i]]
        gsub(/[^|]+/, " --- ", bars)
        printf "\n%s\n\n| %s |\n|%s|\n%s", order[i], heads[order[i]], bars, rows[order[i]]
    }
}
