// Products of rows of uint8 with panels of int8, summed exactly in 32 bits; see Int8Products.
//
// Sums of integers don't depend on their order: every way gives the same. None sums products in 16
// bits, which would saturate, unless the weights are too small for that.
#pragma once

#include <stdint.h>

#include "kernels.hpp"

namespace hat_operators {

void int8_products_scalar(const uint8_t* x, int64_t rows, int64_t depth, const int8_t* panel,
                          int32_t* sums);
#ifdef HAT_ALIGNMENT_BUILD_X86
void int8_products_avx2(const uint8_t* x, int64_t rows, int64_t depth, const int8_t* panel,
                        int32_t* sums);
// For weights up to kSmallWeights.
void int8_products_avx2_small(const uint8_t* x, int64_t rows, int64_t depth, const int8_t* panel,
                              int32_t* sums);
void int8_products_avxvnni(const uint8_t* x, int64_t rows, int64_t depth, const int8_t* panel,
                           int32_t* sums);
void int8_products_vnni(const uint8_t* x, int64_t rows, int64_t depth, const int8_t* panel,
                        int32_t* sums);
void int8_products_amx(const uint8_t* x, int64_t rows, int64_t depth, const int8_t* panel,
                       int32_t* sums);
#endif

// The fastest way on this CPU that the path of the other kernels allows (AMX and VNNI in 64 bytes
// go with AVX-512) for weights of a magnitude up to `largest`. HAT_EXPORT_INT8_PRODUCTS asks for
// one by name: amx, vnni, avxvnni, avx2-small, avx2 or scalar; throws InputError where it can't be
// had.
Int8Products int8_products_here(int32_t path, int64_t largest);

}  // namespace hat_operators
