#!/bin/sh
# tests/cuda/ptxas_gate.sh NVCC: compiles each file of ptxas_budget.txt for sm_90a, or for the architectures of its
# lines, and reads what ptxas says of its kernels: no register above the budget, no spills, no stack, no C75xx advisory (wgmma serialised, fence injected,
# setmaxnreg ignored), no kernel without a line in the budget. And kernels with Hopper's own instructions, in code that
# cannot have them (compute_90), trap: they never end as if they had done their work. Exit 77 (skipped): no nvcc.
set -eu
cd "$(dirname "$0")/../.."
nvcc=${1:-nvcc}
if ! command -v "$nvcc" >/dev/null 2>&1; then
    echo "ptxas_gate: skipped: no nvcc here"
    exit 77
fi
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
bad=0
pairs=$(awk '!/^#/ && NF { n = split($4 == "" ? "90a" : $4, arch, ","); for (i = 1; i <= n; i++) print $1 ":" arch[i] }' \
    tests/cuda/ptxas_budget.txt | sort -u)
for pair in $pairs; do
    f=${pair%:*} arch=${pair##*:}
    if ! "$nvcc" "-gencode=arch=compute_$arch,code=sm_$arch" -std=c++17 -O3 -fmad=false -Xptxas -v,-warn-spills -Ibase -Ikernels \
        -cubin "$f" -o "$out/kernel.cubin" >"$out/log" 2>&1; then
        cat "$out/log"
        exit 1
    fi
    awk -v file="$f" -v arch="$arch" '
        FNR == NR {
            if ($1 == file && index("," ($4 == "" ? "90a" : $4) ",", "," arch ",")) { budget[$2] = $3; seen[$2] = 0 }
            next
        }
        /C75[0-9][0-9]/ { print file ": " $0; bad = 1 }
        /warning|error/ { print file ": " $0; bad = 1 }
        /Compiling entry function/ { split($0, part, "\047"); kernel = part[2]; spill = 0 }
        /bytes spill stores/ { spill = $0 !~ /^ *0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads/ }
        /Used [0-9]+ registers/ {
            for (i = 1; i < NF; i++) if ($i == "Used") used = $(i + 1)
            name = ""
            for (k in budget) if (index(kernel, k)) name = k
            printf "%s sm_%s %s: %d registers (budget %s), %s\n", file, arch, name == "" ? kernel : name, used,
                name == "" ? "none" : budget[name], spill ? "spills" : "no spills"
            if (name == "" || used > budget[name] || spill) bad = 1
            seen[name]++
        }
        END {
            for (k in budget) if (!seen[k]) { print file ": no kernel is called " k; bad = 1 }
            exit bad
        }' tests/cuda/ptxas_budget.txt "$out/log" || bad=1
done
for f in gemm attn; do
    "$nvcc" -arch=compute_90 -std=c++17 -Ibase -Ikernels -ptx "kernels/${f}_cuda_sm90.cu" -o "$out/kernel.ptx"
    awk -v file="$f" '
        /\.entry/ { is_hopper = /gemm_sm90IL|attn_fwd_sm90IL/; n += is_hopper }
        /trap;/ && is_hopper { ends++; is_hopper = 0 }
        END { printf "%s_cuda_sm90.cu for compute_90: %d of %d kernels trap\n", file, ends, n; exit !(n && ends == n) }
    ' "$out/kernel.ptx" || bad=1
done
[ "$bad" -eq 0 ] && echo "ptxas_gate: all within budget"
exit "$bad"
