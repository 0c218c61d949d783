// versions.c - the libraries of this folder, asked at run time.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "versions.h"

#include <hdf5.h>
#include <jansson.h>
#include <pcre2.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#include "h5_file.h"

void data_versions(char *out, size_t n) {
    unsigned major = 0;
    unsigned minor = 0;
    unsigned patch = 0;
    h5_lock();
    H5get_libversion(&major, &minor, &patch);
    h5_unlock();
    unsigned xxh = XXH_versionNumber();
    char pcre2[64] = "?"; // "10.42 2022-12-11"
    if (pcre2_config(PCRE2_CONFIG_VERSION, NULL) < (int)sizeof pcre2)
        pcre2_config(PCRE2_CONFIG_VERSION, pcre2);
    pcre2[strcspn(pcre2, " ")] = '\0';
    snprintf(out, n, "HDF5 %u.%u.%u, zstd %s, xxHash %u.%u.%u, PCRE2 %s, jansson %s", major, minor,
             patch, ZSTD_versionString(), xxh / 10000, xxh / 100 % 100, xxh % 100, pcre2,
             jansson_version_str());
}
