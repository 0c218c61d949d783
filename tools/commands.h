// commands.h - the subcommands: cmd_<name>.c defines Err cmd_<name>(int argc, char **argv).
//
// argv[0] is the subcommand's own word; the rest is for args_parse. Each returns OK or the exit
// code; main prints the error. To add one: its file, its line here, its line in main.c's table and
// in meson.build.
#pragma once
#include "fail.h"

Err cmd_bench(int argc, char **argv) MUST_CHECK;
Err cmd_doctor(int argc, char **argv) MUST_CHECK;
Err cmd_dump(int argc, char **argv) MUST_CHECK;
Err cmd_eval(int argc, char **argv) MUST_CHECK;
Err cmd_export(int argc, char **argv) MUST_CHECK;
Err cmd_generate(int argc, char **argv) MUST_CHECK;
Err cmd_import(int argc, char **argv) MUST_CHECK;
Err cmd_inspect(int argc, char **argv) MUST_CHECK;
Err cmd_numerics(int argc, char **argv) MUST_CHECK;
Err cmd_prepare(int argc, char **argv) MUST_CHECK;
Err cmd_report(int argc, char **argv) MUST_CHECK;
Err cmd_tokenizer(int argc, char **argv) MUST_CHECK;
Err cmd_train(int argc, char **argv) MUST_CHECK;

// version_line: "tessera 0.1.0 (commit 1a2b3c4)". version_print: that and the build and its
// libraries.
const char *version_line(void);
void version_print(FILE *out);
