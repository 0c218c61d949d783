# gpu_parity.awk - the losses of configs/tiny.yaml on a GPU beside those on the CPU:
#     awk -v mode=fp32|bf16|fp8 [-v steps=20] -f launch/gpu_parity.awk CPU/metrics.jsonl GPU/metrics.jsonl
# Prints the largest difference with its limit and their ratio, and ends with 1 if one is over its limit. The limits:
#
# Both devices have the same weights at step 1 and compute the same operations. Where they add in another order (class
# REDUCE: up to 2 n 2^-24 of the magnitudes added, n terms), a value that is then rounded may fall to the other side; so
# the model of the difference is that every rounding of one device is independent of the other's. A rounding of unit u
# (2^-24, BF16 2^-8, E4M3 2^-4) is off by at most u of the value, evenly spread: sqrt(1/3) u rms, two of them
# sqrt(2/3) u. Differences of matrices in series add as squares; nothing on the way enlarges a relative difference
# (random weights keep it, norms and sums with the stream of residuals do not raise it). The values in series:
#   a block: attention's norm, q_a, its norm, q_b, kv_a, its norm, kv_b, p, o of the heads, the output, the sum; norm, gate,
#   up, h, down, the sum: 17 roundings; as codes before its linears: 5 and h. With 3 blocks and the last norm:
#     bf16  52 of u = 2^-8        fp8  18 of 2^-4 more
#     fp32  each sum of n terms is n roundings: 2100 a block (256 + 256 + 96 + 96 + 256 + 64 + 64 + 48 + 128 + 128 + 256 +
#           256 + 320 and small ones), 256 for the logits
# which is eps, the relative difference of what the head sees. (Hopper's 14-bit sums are off by 2^-13 of the largest
# product, far less than a code's unit: what they move lies within these independent roundings.)
# The loss of a token moves by eps times the rms of its logits, sqrt(256) 0.02 = 0.32 at the start; independent over
# tokens, the mean of T moves by 1/sqrt(T) of that.
# Experts: the second and third of 8 scores lie 0.38 of their rms apart on average; scores differ by sqrt(2) eps, so a token
# takes another expert with 0.8 sqrt(2) / 0.38 eps = 3 eps, in each of 2 blocks: n = min(1, 3 eps) 2 T tokens. That changes
# its state by up to 0.3 of itself (half an expert's output beside embedding and attention) and its loss by 0.3 * 0.32.
# As they are few (none, mostly, in fp32), n + 4 sqrt(n) + 1 are allowed for.
# All that at 4 standard deviations is the limit of step 1.
#
# Later: the gradients differ by sqrt(3) eps (forward, backward, their product), and Adam makes of that a difference phi of
# its steps: where a gradient's sign differs a weight moves 2 lr the other way, of 4/pi sqrt(3) eps of the squares:
# phi = sqrt(4 / pi sqrt(3) eps). Weights that differ by lr phi at random change the loss by |gradient| lr phi; lr and the
# gradient's norm are those of the run: 4 |g_n| phi (lr_1 + .. + lr_(n-1)) is added to the limit of step 1.
#
# The gradient's norm at step 1, which shows the backward: d = sqrt(3) eps of each token's part, at random, moves it by
# d / sqrt(T) and raises it by d^2 / 2; the tokens at other experts move it by 0.3 of their parts.
BEGIN {
    if (!steps) steps = 20
    variance["fp32"] = (3 * 2100 + 256) * 2 ^ -48
    variance["bf16"] = 52 * 2 ^ -16
    variance["fp8"] = variance["bf16"] + 18 * 2 ^ -8
    if (!(mode in variance)) { print "gpu_parity: no mode " mode; exit 64 }
    eps = sqrt(2 / 3 * variance[mode])
    phi = sqrt(4 / 3.14159 * sqrt(3) * eps)
    logits = 0.32
}
function field(key,    at) { at = index($0, "\"" key "\":"); return at ? substr($0, at + length(key) + 3) + 0 : "none" }
# limit: of the loss's relative difference at this step.
function limit(loss, norm,    n, rounded, switched) {
    n = (3 * eps < 1 ? 3 * eps : 1) * 2 * T
    rounded = logits * eps / sqrt(T)
    switched = 0.3 * logits * sqrt(n + 4 * sqrt(n) + 1) / T
    return 4 * (sqrt(rounded ^ 2 + switched ^ 2) + norm * phi * moved) / loss
}
# limit_norm: of the relative difference of the gradient's norm at step 1.
function limit_norm(    n, d) {
    n = (3 * eps < 1 ? 3 * eps : 1) * 2 * T
    d = sqrt(3) * eps
    return 4 * sqrt(d ^ 2 / T + 0.3 ^ 2 * (n + 4 * sqrt(n) + 1) / T ^ 2) + d ^ 2 / 2
}
function off(a, b,    d) {
    if (!(b > 0)) return 1
    d = a / b - 1
    return d < 0 ? -d : d
}
FNR == NR {
    step = field("step")
    if (step == 1) { T = field("tokens"); norm = field("grad_norm") }
    cpu[step] = field("lm_loss")
    allowed[step] = T && cpu[step] > 0 ? limit(cpu[step], field("grad_norm")) : 0
    moved += field("lr")
    next
}
{
    step = field("step"); n++
    d = off(field("lm_loss"), cpu[step])
    if (!(d <= allowed[step])) { bad = 1; printf "FAIL step %d: loss off by %.3g, allowed %.3g\n", step, d, allowed[step] }
    if (step == 1) {
        one = d
        norm = off(field("grad_norm"), norm)
        if (!(norm <= limit_norm())) { bad = 1; printf "FAIL step 1: gradient off by %.3g, allowed %.3g\n", norm, limit_norm() }
    }
    if (allowed[step] > 0 && d / allowed[step] >= worst) { worst = d / allowed[step]; at = step }
}
END {
    if (n != steps || !T) { bad = 1; printf "FAIL %d steps, expected %d\n", n, steps; exit 1 }
    printf "step 1: loss off by %.3g, allowed %.3g (ratio %.3g), gradient by %.3g, allowed %.3g (%.3g); nearest of %d steps: %d, ratio %.3g of %.3g\n",
        one, allowed[1], one / allowed[1], norm, limit_norm(), norm / limit_norm(), n, at, worst, allowed[at]
    exit bad
}
