"""PyTorch's own numbers on this GPU, for launch/gpu-check: products, attention, a copy.

    python3 launch/gpu_torch.py FILE.jsonl

One JSON object per case, as `tessera bench --json` writes them, with op "torch_...". Ends with 77 where there is no
PyTorch or it sees no GPU. Times are medians between events, behind a write of 256 MiB.
"""
import json
import sys

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    print("SKIP: there is no PyTorch here")
    sys.exit(77)
if not torch.cuda.is_available():
    print("SKIP: PyTorch sees no GPU")
    sys.exit(77)

flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")


def median(fn, n=30):
    for _ in range(3):
        fn()
    pairs = []
    for _ in range(n):
        flush.zero_()
        pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        pair[0].record()
        fn()
        pair[1].record()
        pairs.append(pair)
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in pairs)[n // 2]


def report(out, op, ms, flops=0.0, moved=0.0, **shape):
    row = dict(op="torch_" + op, backend="torch " + torch.__version__, device=torch.cuda.get_device_name(), **shape)
    row["ms"] = ms
    if flops:
        row["gflops"] = flops / ms * 1e-6
    if moved:
        row["gb_per_s"] = moved / ms * 1e-6
    out.write(json.dumps(row) + "\n")
    rate = f"{flops / ms * 1e-9:8.1f} TFLOP/s" if flops else f"{moved / ms * 1e-6:8.1f} GB/s"
    print(f"{row['op']:22} {shape} {ms:9.3f} ms {rate}", flush=True)


def attempt(what, fn):
    try:
        fn()
    except Exception as e:  # a version of PyTorch that has it not
        print(f"{what}: not measured: {type(e).__name__}: {str(e)[:120]}", flush=True)


def bf16(out, m, n, k):
    a, b = (torch.randn(r, k, device="cuda", dtype=torch.bfloat16) for r in (m, n))
    report(out, "bf16", median(lambda: a @ b.T), 2.0 * m * n * k, m=m, n=n, k=k)


def fp8(out, m, n, k):
    a, b = (torch.randn(r, k, device="cuda").to(torch.float8_e4m3fn) for r in (m, n))
    sa, sb = torch.rand(m, 1, device="cuda"), torch.rand(1, n, device="cuda")
    report(out, "fp8_rows", median(lambda: torch._scaled_mm(a, b.T, sa, sb, out_dtype=torch.bfloat16)),
           2.0 * m * n * k, m=m, n=n, k=k)


def attention(out, s, heads):
    q, k = (torch.randn(1, heads, s, 192, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    v = torch.randn(1, heads, s, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    do = torch.randn_like(o)
    flops = float(heads) * s * s
    report(out, "attn_fwd", median(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)), flops * 320,
           seq_len=s, heads=heads)
    report(out, "attn_bwd", median(lambda: torch.autograd.grad(o, (q, k, v), do, retain_graph=True)), flops * 832,
           seq_len=s, heads=heads)


with open(sys.argv[1], "w") as out:
    x = torch.randn(1 << 28, device="cuda")
    y = torch.empty_like(x)
    report(out, "copy", median(lambda: y.copy_(x)), moved=2.0 * 4 * (1 << 28))
    del x, y
    bf16(out, 8192, 8192, 8192)
    for m, n, k in [(4096, 2112, 7168), (4096, 24576, 1536), (4096, 32768, 512), (4096, 7168, 16384),
                    (4096, 4096, 7168), (4096, 7168, 2048)]:
        attempt(f"bf16 {m} {n} {k}", lambda: bf16(out, m, n, k))
        attempt(f"fp8 {m} {n} {k}", lambda: fp8(out, m, n, k))
    for s, heads in [(2048, 128), (4096, 128), (2048, 16)]:
        attempt(f"attention {s} {heads}", lambda: attention(out, s, heads))
print("PyTorch " + torch.__version__ + " measured")
