// version.c - what `tessera --version` prints: commit, build options, libraries.
#include "boot.h"
#include "build_config.h"
#include "commands.h"
#include "config.h"
#include "ops.h"
#include "versions.h"

const char *version_line(void) {
    return "tessera " TESSERA_VERSION " (commit " TESSERA_COMMIT ")";
}

void version_print(FILE *out) {
    char data[256];
    data_versions(data, sizeof data);
    fprintf(out, "%s\n", version_line());
    fprintf(out, "build: %s\n", TESSERA_BUILD);
    fprintf(out, "libraries: %s, %s, libyaml %s\n", boot_mpi_version(), data,
            config_yaml_version());
    fprintf(out, "backends: %s (%s)%s\n", ops_cpu()->backend, ops_cpu()->isa, ops_cuda() ? ", cuda" : "");
}
