// run_dir.c - see run_dir.h.
#include "run_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "arena.h"
#include "checkpoint_dir.h"
#include "log.h"

struct RunLock {
    int fd;
};

Err run_dir_make(const char *path) {
    TRY(ckdir_make(path));
    CHECK(access(path, W_OK | X_OK) == 0, E_OUTPUT, "cannot write into the run directory %s: %s",
          path, strerror(errno));
    return OK;
}

static bool has(const char *dir, const char *name) {
    char path[CKDIR_PATH + 32];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return access(path, F_OK) == 0;
}

// A complete checkpoint, or something that cannot even be read.
static bool has_checkpoint(const char *path) {
    char dir[CKDIR_PATH];
    CkEntry *list = NULL;
    int n = 0;
    snprintf(dir, sizeof dir, "%s/checkpoints", path);
    Err err = ckdir_list(dir, &list, &n);
    free(list);
    if (err != OK) fail_clear();
    return n > 0 || err != OK;
}

bool run_dir_is_occupied(const char *path) {
    return has(path, "config.yaml") || has(path, "metrics.jsonl") || has_checkpoint(path);
}

static FILE *open_origin(const char *path, const char *mode) {
    char file[CKDIR_PATH + 16];
    snprintf(file, sizeof file, "%s/origin", path);
    return fopen(file, mode);
}

Err run_dir_set_origin(const char *path, const char *from) {
    char *real = realpath(from, NULL);
    FILE *f = open_origin(path, "we");
    bool ok = f && fprintf(f, "%s\n", real ? real : from) > 0;
    if (f) ok = fclose(f) == 0 && ok;
    free(real);
    CHECK(ok, E_OUTPUT, "cannot write %s/origin: disk full or no permission", path);
    return OK;
}

bool run_dir_is_begun_from(const char *path, const char *from) {
    FILE *f = has_checkpoint(path) ? NULL : open_origin(path, "re");
    if (!f) return false;
    char origin[CKDIR_PATH] = "", *real = realpath(from, NULL);
    bool ok = fgets(origin, sizeof origin, f) != NULL;
    fclose(f);
    origin[strcspn(origin, "\n")] = '\0';
    ok = ok && real && strcmp(origin, real) == 0;
    free(real);
    return ok;
}

Err run_dir_refuse(const char *path) {
    char dir[CKDIR_PATH];
    CkEntry *list = NULL;
    int n = 0;
    snprintf(dir, sizeof dir, "%s/checkpoints", path);
    Err err = ckdir_list(dir, &list, &n); // what cannot be looked into is not known to hold a run
    free(list);
    CHECK(err == OK, E_OUTPUT, "--run-dir %s cannot be used: %s", path, fail_message());
    FAIL(E_USAGE,
         "%s already holds a run: continue it with --resume auto, or name another folder with "
         "--run-dir",
         path);
}

// Who holds the lock, as the holder wrote it.
static void read_holder(int fd, char *out, size_t n) {
    ssize_t got = pread(fd, out, n - 1, 0);
    out[got > 0 ? got : 0] = '\0';
    out[strcspn(out, "\n")] = '\0';
    if (!out[0]) snprintf(out, n, "another process");
}

static void write_holder(int fd) {
    char host[64] = "?", text[160], when[32];
    time_t now = time(NULL);
    struct tm utc;
    gethostname(host, sizeof host - 1);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    int n = snprintf(text, sizeof text, "process %d on %s, since %s\n", (int)getpid(), host, when);
    // The text is a courtesy: the lock holds without it.
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)n, 0) != n)
        log_warn("cannot write the lock file's text");
}

Err run_lock_take(RunLock **lock, const char *path) {
    *lock = NULL;
    char file[CKDIR_PATH + 16];
    snprintf(file, sizeof file, "%s/lock", path);
    int fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    CHECK(fd >= 0, E_OUTPUT, "cannot create %s: %s", file, strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        int why = errno;
        char holder[160];
        read_holder(fd, holder, sizeof holder);
        if (why == EWOULDBLOCK) {
            close(fd);
            FAIL(E_PEER,
                 "%s is in use by another run (%s): wait for it, or name another folder with "
                 "--run-dir",
                 path, holder);
        }
        // Some network file systems have no locks: better no guard than no run.
        log_warn("cannot lock %s (%s): nothing stops a second run in this folder", file,
                 strerror(why));
    }
    Err err = mem_alloc((void **)lock, sizeof **lock, "run lock");
    if (err != OK) {
        close(fd);
        return err;
    }
    (*lock)->fd = fd;
    write_holder(fd);
    return OK;
}

void run_lock_drop(RunLock **lock) {
    if (!*lock) return;
    close((*lock)->fd);
    mem_free(*lock);
    *lock = NULL;
}
