#!/usr/bin/env python3
"""Check `tessera export --dtype fp8` with torch and transformers; not part of the test suite. See README.md here.

Takes the FP8 and the F32 export of one checkpoint. Names and types must be those of DeepSeek-V3's release, every code
and scale must be what torch makes of the F32 weights, transformers must take config.json, and, where it can read the
shapes, its dequantised weights must be code * scale. With --dump, the dump that tessera makes of an import of the FP8
export, transformers must compute the same logits.

Usage: check_fp8_export.py FP8_DIR F32_DIR [--dump FILE --tokens FILE]
"""
import argparse
import glob
import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import transformers
from safetensors.torch import load_file

BLOCK = 128


def weights(folder):
    files = sorted(glob.glob(os.path.join(folder, "*.safetensors")))
    return {name: t for f in files for name, t in load_file(f).items()}


def is_fp8(name):
    return "_proj" in name and "eh_proj" not in name


def spread(scale, shape):
    return scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[: shape[0], : shape[1]]


def check_tensors(fp8, f32):
    """Everything in the files; returns what they stand for, in F32."""
    expected = set(f32) | {name + "_scale_inv" for name in f32 if is_fp8(name)}
    assert set(fp8) == expected, sorted(set(fp8) ^ expected)[:5]
    values = {}
    for name, w in f32.items():
        q = fp8[name]
        if not is_fp8(name):
            assert q.dtype == (torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16), name
            assert torch.equal(q, w.to(q.dtype)), name
            values[name] = q.float()
            continue
        s = fp8[name + "_scale_inv"]
        assert q.dtype == torch.float8_e4m3fn and s.dtype == torch.float32, name
        assert list(s.shape) == [-(-n // BLOCK) for n in w.shape], (name, s.shape)
        x = w.bfloat16().float()
        padded = torch.zeros(s.shape[0] * BLOCK, s.shape[1] * BLOCK)
        padded[: w.shape[0], : w.shape[1]] = x.abs()
        amax = padded.view(s.shape[0], BLOCK, s.shape[1], BLOCK).amax((1, 3))
        assert torch.equal(s, torch.where(amax > 0, amax / 448, 1.0)), name
        full = spread(s, w.shape)
        assert torch.equal((x / full).to(torch.float8_e4m3fn).view(torch.uint8), q.view(torch.uint8)), name
        values[name] = q.float() * full
    return values


def stacked(values, name):
    """transformers 5 joins the experts of a layer."""
    prefix, kind = name.rsplit(".", 1)
    count = sum(1 for n in values if n.startswith(prefix + ".") and n.endswith(".down_proj.weight"))
    parts = ["gate_proj", "up_proj"] if kind == "gate_up_proj" else [kind]
    return torch.stack([torch.cat([values[f"{prefix}.{e}.{p}.weight"] for p in parts]) for e in range(count)])


def check_model(folder, values):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=transformers.FineGrainedFP8Config(dequantize=True))
    state = model.state_dict()
    for name, got in state.items():
        want = values[name] if name in values else values["model.embed_tokens.weight"] \
            if name == "lm_head.weight" else stacked(values, name)
        assert torch.equal(got.float(), want), name
    print(f"transformers: {len(state)} dequantised tensors are code * scale")
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("fp8")
    parser.add_argument("f32")
    parser.add_argument("--dump")
    parser.add_argument("--tokens")
    args = parser.parse_args()
    print("torch", torch.__version__, "transformers", transformers.__version__)
    fp8, f32 = weights(args.fp8), weights(args.f32)
    values = check_tensors(fp8, f32)
    print(f"{len(fp8)} tensors, {len(fp8) - len(f32)} of them scales: names, types, codes and scales are right")
    config = transformers.AutoConfig.from_pretrained(args.fp8)
    assert config.quantization_config["quant_method"] == "fp8" and config.quantization_config["fmt"] == "e4m3"
    assert config.quantization_config["weight_block_size"] == [BLOCK, BLOCK]
    print(f"transformers: config.json is a {type(config).__name__}")
    # transformers takes rows / scale rows for the size of a block.
    odd = [n for n, w in f32.items() if is_fp8(n) and any(d > BLOCK and d % BLOCK for d in w.shape)]
    if odd:
        print(f"transformers cannot dequantise {len(odd)} matrices with partial last blocks: {odd[0]}, ...")
        return
    model = check_model(args.fp8, values)
    if args.dump:
        with torch.no_grad():
            got = model(load_file(args.tokens)["tokens"].long()).logits
        worst = (got - load_file(args.dump)["logits"]).abs().max().item()
        print(f"logits of transformers and tessera differ by at most {worst:.3g}")
        assert worst < 1e-4


main()
