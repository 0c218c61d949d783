// tensorboard.h - scalars for TensorBoard, in its own event files, written without any library.
//
// A file is a sequence of TFRecords: u64 length, masked CRC32C of the length, payload, masked
// CRC32C of the payload (little endian). A payload is one protocol buffer message Event. Only rank
// 0 writes.
#pragma once
#include "fail.h"

typedef struct TbWriter TbWriter;

// tb_open: a new event file in `dir` (created if needed). With first_step > 0 readers are told that
// points at or after this step in older files of the folder are void (a resumed run). Local.
// Errors: E_OUTPUT.
Err tb_open(TbWriter **out, const char *dir, int64_t first_step) MUST_CHECK;
void tb_close(TbWriter **w);
// tb_scalar: add one point of the step that is being collected. Local.
void tb_scalar(TbWriter *w, const char *tag, double value);
// tb_flush: write the collected points as one event of this step. Errors: E_OUTPUT. Local.
Err tb_flush(TbWriter *w, int64_t step) MUST_CHECK;

// tb_crc32c: CRC-32C (Castagnoli, reflected polynomial 0x82F63B78) of n bytes. Pure.
uint32_t tb_crc32c(const void *p, size_t n);
