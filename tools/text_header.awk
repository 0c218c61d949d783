# text_header.awk - makes a C header with one string constant of a text file, -v name=NAME.
BEGIN { printf "// Generated; see tools/meson.build.\n#pragma once\nstatic const char %s[] =\n", name }
{
    printf "    \""
    for (i = 1; i <= length($0); i++) {
        c = substr($0, i, 1)
        if (c == "\\" || c == "\"") printf "\\"
        printf "%s", c
    }
    print "\\n\""
}
END { print "    ;" }
