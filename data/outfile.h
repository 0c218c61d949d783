// outfile.h - a file that appears whole or not at all.
//
// It is written beside its place and renamed, so that an error leaves what was there before. A
// symbolic link is followed; a device or pipe (/dev/stdout, /dev/null) is written to directly and
// never replaced or removed.
#pragma once
#include <stdio.h>

#include "fail.h"

typedef struct OutFile {
    FILE *f;         // to write to; NULL when closed
    char *path;      // where it will be
    char *temporary; // where it is written; NULL: directly
} OutFile;

// outfile_check: could outfile_open succeed? Makes and changes nothing. Errors: E_OUTPUT. Local.
Err outfile_check(const char *path) MUST_CHECK;
// outfile_open: start writing. Errors: E_OUTPUT, E_INTERNAL; nothing has to be freed then. Local.
Err outfile_open(OutFile *o, const char *path) MUST_CHECK;
// outfile_finish: close, with is_sync after an fsync, and give it its name; *o is freed in any
// case. Errors: E_OUTPUT (also one of an earlier write); what was there before is untouched. Local.
Err outfile_finish(OutFile *o, bool is_sync) MUST_CHECK;
// outfile_drop: give up; does nothing after outfile_finish. Local.
void outfile_drop(OutFile *o);
