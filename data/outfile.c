// outfile.c - see outfile.h.
#include "outfile.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void outfile_drop(OutFile *o) {
    if (o->f) {
        fclose(o->f);
        if (o->temporary) unlink(o->temporary);
    }
    free(o->path);
    free(o->temporary);
    *o = (OutFile){0};
}

Err outfile_check(const char *path) {
    struct stat st;
    bool is_there = stat(path, &st) == 0;
    CHECK(!is_there || !S_ISDIR(st.st_mode), E_OUTPUT, "%s: cannot create: %s", path, strerror(EISDIR));
    if (is_there && !S_ISREG(st.st_mode)) return OK;
    const char *slash = strrchr(path, '/');
    char folder[4096];
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
    CHECK(access(folder, W_OK | X_OK) == 0, E_OUTPUT, "%s: cannot create: %s", path, strerror(errno));
    return OK;
}

Err outfile_open(OutFile *o, const char *path) {
    *o = (OutFile){0};
    Err err = OK;
    struct stat st;
    bool is_there = stat(path, &st) == 0;
    CHECK(!is_there || !S_ISDIR(st.st_mode), E_OUTPUT, "%s: cannot create: %s", path,
          strerror(EISDIR));
    bool is_plain = !is_there || S_ISREG(st.st_mode);
    o->path = is_there && is_plain ? realpath(path, NULL) : strdup(path);
    CHECK_OR(o->path, failed, E_OUTPUT, "%s: cannot create: %s", path, strerror(errno));
    if (is_plain) {
        int n = asprintf(&o->temporary, "%s.partial-%ld", o->path, (long)getpid());
        if (n < 0) o->temporary = NULL;
        CHECK_OR(n >= 0, failed, E_INTERNAL, "%s: out of memory", path);
    }
    o->f = fopen(o->temporary ? o->temporary : o->path, "wbe");
    CHECK_OR(o->f, failed, E_OUTPUT, "%s: cannot create: %s", path, strerror(errno));
    return OK;
failed:
    outfile_drop(o);
    return err;
}

Err outfile_finish(OutFile *o, bool is_sync) {
    Err err = OK;
    CHECK_OR(fflush(o->f) == 0 && !ferror(o->f), done, E_OUTPUT, "%s: cannot write: %s", o->path,
             strerror(errno));
    // A pipe has nothing to sync.
    CHECK_OR(!is_sync || !o->temporary || fsync(fileno(o->f)) == 0, done, E_OUTPUT,
             "%s: cannot write: %s", o->path, strerror(errno));
    int rc = fclose(o->f);
    int why = errno;
    o->f = NULL;
    if (rc == 0 && o->temporary && rename(o->temporary, o->path) != 0) {
        rc = -1;
        why = errno;
    }
    if (rc != 0 && o->temporary) unlink(o->temporary);
    CHECK_OR(rc == 0, done, E_OUTPUT, "%s: cannot write: %s", o->path, strerror(why));
done:
    outfile_drop(o);
    return err;
}
