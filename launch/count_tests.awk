# count_tests.awk - counts single tests in Meson's testlog.json, one JSON object a line.
# cmocka programs count by their own summary; scripts may print a last line "N passed, N failed, N skipped";
# any other program is one test. A program that failed without naming a test counts one failure; so does a
# build failure (-v rc=1 with no failed test). -v absent=N: N suites were not there to run. Ends with 1 if anything failed.

# sum: add up the numbers inside all places that match.
function sum(text, mark,    total, piece) {
    total = 0
    while (match(text, mark)) {
        piece = substr(text, RSTART, RLENGTH)
        gsub(/[^0-9]/, "", piece)
        total += piece
        text = substr(text, RSTART + RLENGTH)
    }
    return total
}

{
    if (!match($0, /"result": *"[A-Z]+"/)) next
    result = substr($0, RSTART, RLENGTH)
    gsub(/"result": *"|"/, "", result)
    p = sum($0, "\\[  PASSED  \\] [0-9]+ test\\(s\\)")
    f = sum($0, "\\[  FAILED  \\] [0-9]+ test\\(s\\), listed")
    s = sum($0, "\\[  SKIPPED \\] [0-9]+ test\\(s\\), listed")
    if (p + f + s == 0 && match($0, /[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped/)) {
        split(substr($0, RSTART, RLENGTH), part, /[^0-9]+/)
        p = part[1]; f = part[2]; s = part[3]
    }
    is_bad = result != "OK" && result != "SKIP" && result != "EXPECTEDFAIL"
    if (p + f + s == 0 && result == "SKIP") s = 1
    if (p + f + s == 0 && !is_bad) p = 1
    if (is_bad && f == 0) f = 1
    passed += p; failed += f; skipped += s
}

END {
    if (rc != 0 && failed == 0) failed = 1
    skipped += absent
    printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
    exit failed > 0
}
