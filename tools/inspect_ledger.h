// inspect_ledger.h - `tessera inspect RUN_DIR/ledger`: what each rank was in last.
#pragma once
#include "fail.h"

// inspect_ledgers: the folder of a run's ledgers: one line for each rank, and who holds up the others if somebody does.
// Damaged files are named: E_INPUT after all others have been shown. Local.
Err inspect_ledgers(const char *dir) MUST_CHECK;
// inspect_ledger: one rank's file: its last operations. Local.
Err inspect_ledger(const char *path) MUST_CHECK;
