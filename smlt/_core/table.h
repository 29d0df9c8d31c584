/* The table of kernels.h, filled: the one place that includes all the C. */
#ifndef SMLT_TABLE_H
#define SMLT_TABLE_H

#include "frames.h"

static const kernel_table compiled_kernels = {
    .reduce = reduce_streams,
    .add_group = add_streams,
    .round_double = round_wide,
    .cast = cast_tensor,
    .xxh3 = xxh3,
    .probe_chunks = probe_chunks,
    .encode_chunks = encode_chunks,
    .store_smallest = store_smallest,
    .verify = verify_part,
    .decode = decode_part,
    .reduce_frames = reduce_frames,
};

#endif
