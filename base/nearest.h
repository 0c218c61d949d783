// nearest.h - "did you mean": the known word most like a mistyped one.
//
// Used by the command line and the configuration, so that both suggest by the same rule.
#pragma once

#define NEAREST_MAX 64 // longer words get no suggestion

// word_nearest: the candidate with the smallest edit distance to `word`, at most a third of its
// length plus one and never more than 3; NULL if none is that near. Local.
const char *word_nearest(const char *word, const char *const *candidates, int n);
