// versions.h - which libraries read and write our files, for `tessera --version` and `tessera
// doctor`.
#pragma once
#include "fail.h"

// data_versions: "HDF5 1.10.8, zstd 1.5.4, xxHash 0.8.1, PCRE2 10.42, jansson 2.14": the versions
// that are loaded now, not those of the headers. Local.
void data_versions(char *out, size_t n);
