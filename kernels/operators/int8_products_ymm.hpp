// Products of int8 in vectors of 32 bytes. `Dot` adds to eight sums four products each:
// prepare(panel) loads 32 bytes of a panel, and add(sum, left, right) takes four bytes of a row.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "kernels.hpp"

namespace {

using hat_operators::kPanelColumns;

constexpr int64_t kBlock = 512;  // of the depth: 32 KiB of a panel
constexpr int kLanes = 8;
constexpr int kRows = 4, kVectors = 2;

__m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

template <class Dot, int Rows>
void tile(const uint8_t* x, int64_t stride, const int8_t* panel, int64_t depth, bool first,
          int32_t* sums) {
    __m256i sum[Rows][kVectors];
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j)
            sum[i][j] =
                first ? _mm256_setzero_si256() : load(sums + i * kPanelColumns + kLanes * j);
    }
    for (int64_t k = 0; k < depth; k += 4) {
        typename Dot::Right right[kVectors];
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j)
            right[j] = Dot::prepare(load(panel + k * kPanelColumns + 4 * kLanes * j));
#pragma GCC unroll 4
        for (int i = 0; i < Rows; ++i) {
            int32_t four;
            __builtin_memcpy(&four, x + i * stride + k, sizeof four);
            const __m256i left = _mm256_set1_epi32(four);
#pragma GCC unroll 2
            for (int j = 0; j < kVectors; ++j) sum[i][j] = Dot::add(sum[i][j], left, right[j]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j) {
            int32_t* to = sums + i * kPanelColumns + kLanes * j;
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), sum[i][j]);
        }
    }
}

template <class Dot>
void ymm_products(const uint8_t* x, int64_t rows, int64_t depth, const int8_t* panel,
                  int32_t* sums) {
    constexpr int64_t kColumns = kVectors * kLanes;
    constexpr decltype(&tile<Dot, 1>) kTiles[] = {tile<Dot, 1>, tile<Dot, 2>, tile<Dot, 3>,
                                                  tile<Dot, 4>};
    for (int64_t k = 0; k < depth; k += kBlock) {
        const int64_t length = depth - k < kBlock ? depth - k : kBlock;
        for (int64_t column = 0; column < kPanelColumns; column += kColumns) {
            const int8_t* block = panel + k * kPanelColumns + 4 * column;
            for (int64_t r = 0; r < rows; r += kRows) {
                const int64_t tall = rows - r < kRows ? rows - r : kRows;
                kTiles[tall - 1](x + r * depth + k, depth, block, length, k == 0,
                                 sums + r * kPanelColumns + column);
            }
        }
    }
}

}  // namespace
