// checkpoint_dir.c - see checkpoint_dir.h.
#include "checkpoint_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log.h"
#include "manifest.h"

// The step of a name, -1 if it is not a complete checkpoint's.
static int64_t name_step(const char *name) {
    if (strncmp(name, "step_", 5) != 0 || strlen(name) < 13 || strlen(name) > 24) return -1;
    if (strspn(name + 5, "0123456789") != strlen(name + 5)) return -1;
    return strtoll(name + 5, NULL, 10);
}

Err ckdir_expect_step(const char *path, int64_t step) {
    const char *slash = strrchr(path, '/');
    int64_t want = name_step(slash ? slash + 1 : path);
    CHECK(want < 0 || want == step, E_INPUT,
          "%s/%s is not the one that was written here: expected step %lld, found step %lld", path,
          MANIFEST_NAME, (long long)want, (long long)step);
    return OK;
}

// Unreadable ones come first: whoever looks for the newest then hears what is wrong with them.
static int later_first(const void *a, const void *b) {
    const CkEntry *x = a, *y = b;
    int64_t xs = x->serial < 0 ? INT64_MAX : x->serial, ys = y->serial < 0 ? INT64_MAX : y->serial;
    if (xs != ys) return xs > ys ? -1 : 1;
    return x->step > y->step ? -1 : x->step < y->step;
}

Err ckdir_list(const char *dir, CkEntry **list, int *n) {
    *list = NULL;
    *n = 0;
    DIR *d = opendir(dir);
    if (!d && (errno == ENOENT || errno == ENOTDIR)) return OK;
    CHECK(d, E_INPUT, "cannot read %s: %s", dir, strerror(errno));
    Err err = OK;
    int cap = 0;
    for (struct dirent *e; (e = readdir(d));) {
        int64_t step = name_step(e->d_name);
        char path[CKDIR_PATH];
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (step < 0 || stat(path, &st) != 0 || !S_ISDIR(st.st_mode)) continue;
        if (*n == cap) {
            cap = 2 * cap + 16;
            CkEntry *more = realloc(*list, (size_t)cap * sizeof **list);
            CHECK_OR(more, done, E_INTERNAL, "out of memory");
            *list = more;
        }
        CkEntry *c = &(*list)[(*n)++];
        c->step = step;
        c->serial = manifest_peek_serial(path, step);
        snprintf(c->name, sizeof c->name, "%s", e->d_name);
    }
    if (*n > 1) qsort(*list, (size_t)*n, sizeof **list, later_first);
done:
    closedir(d);
    return err;
}

// The name of a new folder on its way to the disk.
static Err sync_parent(const char *path) {
    char parent[CKDIR_PATH];
    snprintf(parent, sizeof parent, "%s", path);
    char *slash = strrchr(parent, '/');
    if (slash) slash[slash == parent] = '\0';
    return tensorfile_sync_folder(slash ? parent : ".");
}

Err ckdir_make(const char *dir) {
    char path[CKDIR_PATH];
    CHECK(strlen(dir) < sizeof path - 64, E_OUTPUT, "path too long: %s", dir);
    snprintf(path, sizeof path, "%s", dir);
    for (char *slash = path + 1;; slash++) {
        slash += strcspn(slash, "/");
        char was = *slash;
        *slash = '\0';
        bool is_new = mkdir(path, 0777) == 0;
        CHECK(is_new || errno == EEXIST, E_OUTPUT, "cannot create the folder %s: %s", path,
              strerror(errno));
        if (is_new) TRY(sync_parent(path)); // what is saved in it shall not hang on a name that is lost
        *slash = was;
        if (!was) break;
    }
    struct stat st;
    CHECK(stat(dir, &st) == 0 && S_ISDIR(st.st_mode), E_OUTPUT, "%s is not a folder", dir);
    return OK;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *where) {
    (void)st;
    (void)kind;
    (void)where;
    return remove(path);
}

Err ckdir_remove(const char *path) {
    struct stat st;
    if (lstat(path, &st) != 0 && (errno == ENOENT || errno == ENOTDIR)) return OK;
    CHECK(nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0, E_OUTPUT, "cannot remove %s: %s",
          path, strerror(errno));
    return OK;
}

void ckdir_clean(const char *dir) {
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        size_t n = strlen(e->d_name);
        bool is_left = n > 13 && strncmp(e->d_name, "step_", 5) == 0 &&
                       strcmp(e->d_name + n - 8, ".partial") == 0;
        if (!is_left) continue;
        char path[CKDIR_PATH];
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (ckdir_remove(path) == OK) {
            log_line("removed    %s: left by a save or a removal that did not finish", path);
            continue;
        }
        log_warn("%s", fail_message());
        fail_clear();
    }
    closedir(d);
}

// A convenience only: the checkpoint is whole and found without it.
static void point_latest(const char *dir, const char *name) {
    char link[CKDIR_PATH], temp[CKDIR_PATH];
    snprintf(link, sizeof link, "%s/latest", dir);
    snprintf(temp, sizeof temp, "%s/latest.partial", dir);
    unlink(temp);
    if (symlink(name, temp) != 0) { // some file systems have no links
        log_warn("cannot create the link %s: %s", link, strerror(errno));
        return;
    }
    if (rename(temp, link) == 0) return; // not where a copy of the folder made a folder of it
    log_warn("cannot replace %s by a link to %s: %s; remove it", link, name, strerror(errno));
    unlink(temp);
}

// An old checkpoint of the same step gives up its name and is removed.
static Err replace(const char *partial, const char *final) {
    if (renameat2(AT_FDCWD, partial, AT_FDCWD, final, RENAME_EXCHANGE) == 0) {
        Err err = sync_parent(final);
        if (err == OK) return ckdir_remove(partial); // only now that the new one's name is on the disk
        if (renameat2(AT_FDCWD, partial, AT_FDCWD, final, RENAME_EXCHANGE) != 0)
            log_warn("cannot rename %s back to %s: %s", partial, final, strerror(errno));
        return err;
    }
    CHECK(errno == EINVAL || errno == ENOSYS || errno == ENOTSUP, E_OUTPUT,
          "cannot rename %s to %s: %s", partial, final, strerror(errno));
    char old[CKDIR_PATH];
    snprintf(old, sizeof old, "%s.replaced.partial", final);
    TRY(ckdir_remove(old));
    CHECK(rename(final, old) == 0, E_OUTPUT, "cannot rename %s to %s: %s", final, old, strerror(errno));
    if (rename(partial, final) != 0) {
        int why = errno;
        if (rename(old, final) != 0) log_warn("cannot rename %s back to %s: %s", old, final, strerror(errno));
        FAIL(E_OUTPUT, "cannot rename %s to %s: %s", partial, final, strerror(why));
    }
    TRY(sync_parent(final));
    return ckdir_remove(old);
}

Err ckdir_commit(const char *dir, const char *name) {
    char final[CKDIR_PATH], partial[CKDIR_PATH];
    struct stat st;
    snprintf(final, sizeof final, "%s/%s", dir, name);
    snprintf(partial, sizeof partial, "%s/%s.partial", dir, name);
    TRY(tensorfile_sync_folder(partial));
    if (lstat(final, &st) == 0) {
        TRY(replace(partial, final));
    } else {
        CHECK(rename(partial, final) == 0, E_OUTPUT, "cannot rename %s to %s: %s", partial, final,
              strerror(errno));
    }
    TRY(tensorfile_sync_folder(dir));
    point_latest(dir, name);
    return tensorfile_sync_folder(dir);
}

// The name goes first, so that a half removed checkpoint is never taken for a whole one.
static Err retire(const char *dir, const char *name) {
    char path[CKDIR_PATH], gone[CKDIR_PATH];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    snprintf(gone, sizeof gone, "%s/%s.partial", dir, name);
    CHECK(rename(path, gone) == 0, E_OUTPUT, "cannot rename %s: %s", path, strerror(errno));
    return ckdir_remove(gone);
}

void ckdir_prune(const char *dir, int64_t keep_last, int64_t keep_every) {
    CkEntry *list = NULL;
    int n = 0, seen = 0;
    Err err = ckdir_list(dir, &list, &n);
    for (int i = 0; i < n && err == OK; i++) {
        if (list[i].serial < 0) continue;
        if (seen++ < keep_last || (keep_every > 0 && list[i].step % keep_every == 0)) continue;
        err = retire(dir, list[i].name);
    }
    free(list);
    if (err == OK) return;
    log_warn("old checkpoints stay: %s", fail_message());
    fail_clear();
}
