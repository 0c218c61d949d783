# lint.awk - the line-by-line part of launch/lint. Arguments: all C files of the tree, by path from its root.

function complain(message) {
    printf "%s:%d: %s\n", FILENAME, FNR, message
    nbad++
}

# room: base, kernels, parallel, data, model, run, tools, tests.
function room_of(path,    part) {
    split(path, part, "/")
    return part[1] == "trainer" ? part[2] : part[1]
}

BEGIN {
    # What each room may include of the others. tests may include everything.
    may["base"] = " base "
    may["kernels"] = " base kernels "
    may["parallel"] = " base parallel "
    may["data"] = " base data "
    may["model"] = " base kernels parallel data model "
    may["run"] = " base kernels parallel data model run "
    may["tools"] = " base kernels parallel data model run tools "
    for (i = 1; i < ARGC; i++) {
        name = ARGV[i]
        sub(/.*\//, "", name)
        home[name] = room_of(ARGV[i])
    }
    # Libraries and where alone they may be included.
    only["cublasLt.h"] = "^(kernels/blas_cuda(_fp8)?\\.|tests/cuda/)"
    only["mpi.h"] = "^parallel/"
    only["nccl.h"] = "^(parallel/comm_nccl\\.c|tests/cuda/nccl_on_cpu\\.(h|cpp))$"
    only["hdf5.h"] = only["zstd.h"] = only["pcre2.h"] = only["jansson.h"] = only["xxhash.h"] = "^(data|tests|tests/fuzz)/[^/]*\\.c$"
    only["yaml.h"] = "^trainer/model/config\\.c$"
    max_lines = 600
    max_function = 85
    max_columns = 120
}

FNR == 1 {
    room = room_of(FILENAME)
    base = FILENAME
    sub(/.*\//, "", base)
    is_test = room == "tests"
    is_header = base ~ /\.h$/
    in_function = 0
    in_comment = 0
    comment = head = ""
    is_head = 1
    if (index($0, "// " base " - ") != 1) complain("the first line must say what the file is for: // " base " - ...")
}

# Text of the line without comments and string literals, for the rules about calls.
{
    code = $0
    gsub(/\\\\|\\"/, "", code)
    gsub(/"[^"]*"/, "\"\"", code)
    sub(/\/\/.*/, "", code)
}

FNR == max_lines + 1 { complain("more than " max_lines " lines") }
length($0) > max_columns && base !~ /\.def$/ { complain("more than " max_columns " columns") }
/[^ -~]/ { complain($0 ~ /\t/ ? "a tab" : "a character outside of ASCII") }
/[ ]$/ { complain("white space at the end") }
/TODO|FIXME|XXX/ && !/mkdtemp|XXXXXX/ { complain("unfinished work belongs in an issue") }

# Includes.
/^#[ ]*include[ ]*"/ {
    split($0, part, "\"")
    name = part[2]
    plain = name
    sub(/.*\//, "", plain)
    if (!is_test && name ~ /\//) complain("headers are included by bare name")
    # Kernels run on the CPU in tests: two headers switch between CUDA and its stand-ins there.
    is_stand_in = FILENAME ~ /^kernels\/(cuda_launch|ptx)\.h$/ && plain ~ /^(simt|tc)\.h$/
    if (!is_test && !is_stand_in && plain in home && index(may[room], " " home[plain] " ") == 0)
        complain(room " may not include " name " of " home[plain])
}
/^#[ ]*include[ ]*[<"]/ {
    name = $0
    gsub(/^#[ ]*include[ ]*[<"]|[>"].*$/, "", name)
    if (name in only && FILENAME !~ only[name]) complain(name " may not be included here")
    if (name ~ /^(cuda|cublas|cooperative_groups)/ && !(name in home) && !is_test &&
        FILENAME !~ /^(kernels\/(.*_cuda(_[a-z0-9]+)?\.|cuda_launch\.h$|ptx\.h$)|base\/device_cuda(_space)?\.c$|parallel\/comm_nccl\.c$)/)
        complain(name " may not be included here")
}

# Calls that only some places may make.
!is_test {
    if (code ~ /(^|[^A-Za-z0-9_.>])(exit|_exit|_Exit|abort|quick_exit)\(/ && FILENAME != "parallel/boot.c")
        complain("nothing below main ends the process")
    if (code ~ /(^|[^A-Za-z0-9_])(printf|puts|putchar|perror)\(|f(printf|puts)\((stdout|stderr)/ &&
        room != "tools" && FILENAME !~ /^base\/(log|fail)\.c$/)
        complain("output goes through log.h")
    if (code ~ /(^|[^A-Za-z0-9_])(getenv|secure_getenv|setenv|putenv)\(/ && FILENAME != "parallel/boot.c")
        complain("no environment variables in C, except the launchers' in parallel/boot.c")
    if (code ~ /(^|[^A-Za-z0-9_])(rand|srand|random|srandom|drand48)\(/) complain("random numbers come from rng.h")
    if (code ~ /(^|[^A-Za-z0-9_])(malloc|calloc|realloc|aligned_alloc|posix_memalign)\(/ &&
        (room == "kernels" || room == "parallel" || room == "model"))
        complain("memory comes from arena.h")
}

# Functions: from a line at the margin that opens a body to the brace at the margin.
!in_function && /^[A-Za-z_].*\)[ ]*\{$/ && !/^(struct|enum|union|typedef)[ ]/ { in_function = FNR }
!in_function && /^[ ]+[A-Za-z_*].*\)[ ]*\{$/ && last ~ /^[A-Za-z_].*,$/ { in_function = FNR - 1 }
in_function && /^\}/ {
    if (FNR - in_function + 1 > max_function)
        complain("a function of " FNR - in_function + 1 " lines, from line " in_function)
    in_function = 0
}
{ last = $0 }

# Contracts of the ranks: the comment above each function of parallel/ says who must call it. A file whose head says
# that everything in it is Local needs no more.
room == "parallel" && is_header {
    if ($0 ~ /^\/\//) {
        comment = in_comment ? comment " " $0 : $0
        in_comment = 1
    } else {
        if (is_head && in_comment) { head = comment; is_head = 0 }
        if ($0 ~ /^$/) comment = ""
        in_comment = 0
        if ($0 ~ /^[A-Za-z].*\(/ && $0 !~ /^(typedef|struct|enum|#)/ && comment !~ /Collective over|Local/ &&
            head !~ /Local/)
            complain("say \"Collective over ...\" or \"Local\" in the comment above")
    }
}

END { exit nbad > 0 }
