# as_cuda.awk - from kernels/ops.def the header as_cuda.h: name_cpu becomes name_mirror (tests/cuda/mirror.h). Included
# first (-include), it turns the unit tests of the CPU backend into tests of the kernels. With ON_DEVICE the calls of
# name_cuda are mirrored instead, for tests that compare both backends.
BEGIN {
    print "// as_cuda.h - made from kernels/ops.def by tests/cuda/as_cuda.awk."
    print "#pragma once"
    print "#include \"device.h\""
    print "#include \"ops.h\""
    print "#define OP(name, tolerance, args) Err name##_mirror args;"
    print "#include \"ops.def\""
    print "#undef OP"
    print "#ifndef ON_DEVICE"
    print "#define TESTS_CUDA 1 // for what only the CPU promises"
}
/^OP\(/ {
    name = $1
    sub(/^OP\(/, "", name)
    sub(/,.*/, "", name)
    names[++n] = name
}
END {
    for (i = 1; i <= n; i++) printf "#define %s_cpu %s_mirror\n", names[i], names[i]
    print "#else"
    for (i = 1; i <= n; i++) printf "#define %s_cuda %s_mirror\n", names[i], names[i]
    print "#endif"
}
