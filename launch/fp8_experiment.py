"""The tables, plots and JSON of launch/fp8-experiment, from what its runs wrote.

Usage: fp8_experiment.py RUNS < ARMS; a line of ARMS is: arm, seeds with commas between, settings.
Writes doc/numerics.json (one object per finished run), doc/numerics_*.svg, and the part of doc/numerics.md between
its two "results" marks.
"""
import json
import os
import re
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EMA = 0.98  # weight of the past in the smoothed training loss
GOAL = 0.25  # percent, DeepSeek-V3 report 3.3
MARKS = ("<!-- results: written by launch/fp8-experiment -->", "<!-- end of results -->")
plt.rcParams.update({"svg.hashsalt": "tessera", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})


def read_lines(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


def read_run(folder):
    """The last held-out loss, the training losses by step, tokens; None for a run that is not finished."""
    try:
        metrics = read_lines(f"{folder}/metrics.jsonl")
        events = read_lines(f"{folder}/events.jsonl")
    except OSError:
        return None
    with open(f"{folder}/config.yaml") as f:
        steps = int(re.search(r"^  steps: (\d+)", f.read(), re.M).group(1))
    final = [e for e in events if e["event"] == "eval" and e["step"] == steps]
    if not final or metrics[-1]["step"] != steps:
        return None
    smooth, curve = None, []
    for m in metrics:
        smooth = m["lm_loss"] if smooth is None else EMA * smooth + (1 - EMA) * m["lm_loss"]
        curve.append(smooth)
    speeds = sorted(m["tokens_per_s"] for m in metrics)
    return {
        "final": final[-1]["loss"],
        "bpb": final[-1]["bits_per_byte"],
        "heldout_tokens": final[-1]["tokens"],
        "curve": curve,
        "tokens": metrics[-1]["tokens"],
        "speed": speeds[len(speeds) // 2],
    }


def percent(a, b):
    return 100.0 * (a - b) / b


def collect(home, arms):
    runs = {}
    for arm, seeds, _ in arms:
        for seed in seeds:
            run = read_run(f"{home}/{arm}-{seed}")
            if run:
                runs[arm, seed] = run
    return runs


def spread(values):
    return 100.0 * (max(values) - min(values)) / (sum(values) / len(values))


def objects(runs, base_spread):
    out = []
    for (arm, seed), run in runs.items():
        base = runs.get(("bf16", seed))
        if not base:
            continue
        out.append(
            {
                "arm": arm,
                "seed": seed,
                "final_loss": run["final"],
                "gap_pct": round(percent(run["final"], base["final"]), 4),
                "spread_pct": round(base_spread, 4),
                "bits_per_byte": run["bpb"],
                "train_loss_ema": round(run["curve"][-1], 5),
                "train_gap_pct": round(percent(run["curve"][-1], base["curve"][-1]), 4),
                "tokens": run["tokens"],
            }
        )
    return out


def colours(arms):
    names = [a for a, _, _ in arms]
    table = plt.get_cmap("tab10")
    return {name: ("black" if name == "bf16" else table(i % 10)) for i, name in enumerate(names)}


def plot_losses(runs, arms, path):
    colour, seen = colours(arms), set()
    fig, ax = plt.subplots(figsize=(7, 4))
    for (arm, _), run in runs.items():
        steps = range(1, len(run["curve"]) + 1)
        ax.plot(steps, run["curve"], color=colour[arm], lw=0.9, label=None if arm in seen else arm)
        seen.add(arm)
    ax.set(xlabel="step", ylabel=f"training loss of the next token, EMA {EMA}", title="All runs, every seed")
    ax.set_ylim(top=6.5)
    ax.legend(fontsize=7)
    fig.savefig(path, bbox_inches="tight", metadata={"Date": None})


def plot_gaps(runs, arms, path):
    colour, seen = colours(arms), set()
    base = [run["curve"] for (arm, _), run in runs.items() if arm == "bf16"]
    fig, ax = plt.subplots(figsize=(7, 4))
    n = min(len(c) for c in base)
    if len(base) > 1:
        half = [spread([c[i] for c in base]) / 2 for i in range(n)]
        ax.fill_between(range(1, n + 1), [-h for h in half], half, color="0.88", label="spread of BF16's seeds")
    for (arm, seed), run in runs.items():
        if arm == "bf16" or ("bf16", seed) not in runs:
            continue
        gap = [percent(a, b) for a, b in zip(run["curve"], runs["bf16", seed]["curve"])]
        ax.plot(range(1, len(gap) + 1), gap, color=colour[arm], lw=0.9, label=None if arm in seen else arm)
        seen.add(arm)
    for y in (-GOAL, GOAL):
        ax.axhline(y, color="0.4", ls="--", lw=0.8)
    ax.set(xlabel="step", ylabel="gap to BF16 of the same seed, %", title=f"Smoothed training loss (EMA {EMA}); dashed: 0.25 %")
    ax.legend(fontsize=7)
    fig.savefig(path, bbox_inches="tight", metadata={"Date": None})


def plot_finals(rows, arms, base_spread, path):
    colour = colours(arms)
    names = [a for a, _, _ in arms if a != "bf16" and any(r["arm"] == a for r in rows)]
    fig, ax = plt.subplots(figsize=(7, 0.4 * len(names) + 1.4))
    ax.axvspan(-base_spread / 2, base_spread / 2, color="0.88", label="spread of BF16's seeds")
    for x in (-GOAL, GOAL):
        ax.axvline(x, color="0.4", ls="--", lw=0.8)
    for y, name in enumerate(names):
        gaps = [r["gap_pct"] for r in rows if r["arm"] == name]
        ax.plot(gaps, [y] * len(gaps), "o", color=colour[name], ms=5)
    ax.set_yticks(range(len(names)))
    ax.set_yticklabels(names)
    ax.invert_yaxis()
    ax.set(xlabel="gap of the final held-out loss to BF16 of the same seed, %; dashed: 0.25 %")
    ax.legend(fontsize=7, loc="lower right")
    fig.savefig(path, bbox_inches="tight", metadata={"Date": None})


def table(rows, runs, arms, base_spread):
    lines = ["| arm | settings | seed | held-out loss | bits per byte | gap | gap in training |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for arm, _, settings in arms:
        for r in rows:
            if r["arm"] == arm:
                lines.append(f"| `{arm}` | `{settings}` | {r['seed']} | {r['final_loss']:.4f} | {r['bits_per_byte']:.4f} "
                             f"| {r['gap_pct']:+.3f} % | {r['train_gap_pct']:+.3f} % |")
    n = sum(1 for arm, _ in runs if arm == "bf16")
    run = next(iter(runs.values()))
    lines += ["", f"Spread of BF16's {n} seeds (largest minus smallest, over the mean): {base_spread:.3f} %. "
              f"{run['tokens']:,} tokens a run, {run['heldout_tokens']:,} held-out tokens."]
    for arm, _, _ in arms:
        gaps = [r["gap_pct"] for r in rows if r["arm"] == arm]
        if arm != "bf16" and len(gaps) > 1:
            lines.append(f"Mean gap of `{arm}` over {len(gaps)} seeds: {sum(gaps) / len(gaps):+.3f} %, "
                         f"from {min(gaps):+.3f} % to {max(gaps):+.3f} %.")
    return "\n".join(lines)


def write_results(path, text):
    with open(path) as f:
        doc = f.read()
    before, rest = doc.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    with open(path, "w") as f:
        f.write(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}")


def main():
    home = sys.argv[1]
    arms = []
    for line in sys.stdin:
        arm, seeds, settings = line.split(None, 2)
        arms.append((arm, [int(s) for s in seeds.split(",")], settings.strip()))
    runs = collect(home, arms)
    finals = [run["final"] for (arm, _), run in runs.items() if arm == "bf16"]
    if not finals:
        sys.exit("no BF16 run is finished: there is nothing to compare with")
    base_spread = spread(finals)
    rows = objects(runs, base_spread)
    doc = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "doc")
    with open(f"{doc}/numerics.json", "w") as f:
        f.write("[\n" + ",\n".join("  " + json.dumps(r) for r in rows) + "\n]\n")
    plot_losses(runs, arms, f"{doc}/numerics_losses.svg")
    plot_gaps(runs, arms, f"{doc}/numerics_gaps.svg")
    plot_finals(rows, arms, base_spread, f"{doc}/numerics_finals.svg")
    text = table(rows, runs, arms, base_spread)
    write_results(f"{doc}/numerics.md", text)
    print(text)


main()
