// h5_zstd.h - HDF5 filter 32015 (zstd), as registered with The HDF Group. Private to data/.
//
// One chunk = one zstd frame with its content size and a content checksum, so that a flipped bit is
// an error and not a number. cd_values[0] = level. The same source is built as the plugin
// libh5zstd.so, so that h5py and h5dump (HDF5_PLUGIN_PATH) read our files; therefore it uses
// libzstd and libc only.
#pragma once

#define H5_ZSTD_FILTER 32015

// h5_zstd_class: the H5Z_class2_t for H5Zregister.
const void *h5_zstd_class(void);
