// What the interface hands to an instruction set's kernel, and what it gets back.
//
// Only plain data here: this header is included by translation units with different compile flags,
// and an inline function shared between them could be emitted with instructions that the CPU lacks.
#pragma once

#include <stdint.h>

#include "alignment.h"

namespace hat_alignment {

struct Plan {
    const hat_alignment_request* request;
    const int64_t* gram_start;  // [captions + 1], in doubles
    int64_t images_per_group;   // images whose regions share one packed matrix
    int64_t rows_per_block;     // words that are multiplied at a time, at least longest_caption
    int64_t longest_caption;    // in words
};

struct Kernel {
    // Floats of scratch memory that one thread needs.
    int64_t (*workspace)(const Plan& plan);
    // Scores the images of one group with captions [first, last). `workspace` is 64-byte aligned.
    void (*run)(const Plan& plan, float* workspace, int64_t group, int64_t first, int64_t last);
};

extern const Kernel scalar_kernel;
#ifdef HAT_ALIGNMENT_BUILD_X86
extern const Kernel avx2_kernel;
extern const Kernel avx512_kernel;
#endif
#ifdef HAT_ALIGNMENT_BUILD_NEON
extern const Kernel neon_kernel;
#endif

}  // namespace hat_alignment
