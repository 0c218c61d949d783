# gpu_parity.awk - see launch/gpu-check: the losses of a run on a GPU (second file) beside those on the CPU (first file).
BEGIN {
    first = mode == "fp32" ? 1e-5 : mode == "bf16" ? 1e-3 : 2e-3
    all = mode == "fp32" ? 1e-3 : 10 * first
}
function field(key,    at) { at = index($0, "\"" key "\":"); return at ? substr($0, at + length(key) + 3) + 0 : "none" }
FNR == NR { cpu[field("step")] = field("lm_loss"); next }
{
    step = field("step"); n++
    d = field("lm_loss") / cpu[step] - 1; if (d < 0) d = -d
    if (!(d <= (step == 1 ? first : all))) { bad = 1; printf "step %d: off by %g\n", step, d }
    if (d > worst) worst = d
    if (step == 1) one = d
}
END {
    printf "%d steps: the loss of step 1 differs by %.3g (allowed %g), of any by %.3g (allowed %g)\n", n, one, first,
        worst, all
    exit bad || n != 20
}
