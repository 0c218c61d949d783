// must.h - calls of the project's own functions inside a cmocka test that have to succeed, or to be
// refused with certain words. What went wrong is said in the error's own words.
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "fail.h"

// MUST_OK: ends the test with the call, its code and its message if it fails.
#define MUST_OK(call)                                                                              \
    do {                                                                                           \
        Err must_err = (call);                                                                     \
        if (must_err != OK) fail_msg("%s: error %d: %s", #call, (int)must_err, fail_message());    \
    } while (0)

// MUST_FAIL: the code, and words that the message must hold.
#define MUST_FAIL(call, code, words)                                                               \
    do {                                                                                           \
        assert_int_equal((call), (code));                                                          \
        if (!strstr(fail_message(), words)) fail_msg("'%s' not in '%s'", words, fail_message());   \
        fail_clear();                                                                              \
    } while (0)
