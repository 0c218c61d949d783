# as_cuda.awk - from kernels/ops.def the header as_cuda.h: calls of name_cpu become calls of name_cuda, followed by
# device_cuda's sync. Included first (-include), it turns the unit tests of the CPU backend into tests of the kernels.
BEGIN {
    print "// as_cuda.h - made from kernels/ops.def by tests/cuda/as_cuda.awk."
    print "#pragma once"
    print "#define TESTS_CUDA 1 // for what only the CPU promises"
    print "#include \"device.h\""
    print "#include \"ops.h\""
    print "Err as_cuda(Err err); // waits for the device if the call succeeded, and returns what went wrong"
}
/^OP\(/ {
    name = $1
    sub(/^OP\(/, "", name)
    sub(/,.*/, "", name)
    printf "#define %s_cpu(...) as_cuda(%s_cuda(__VA_ARGS__))\n", name, name
}
