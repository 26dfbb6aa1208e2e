#include <immintrin.h>

#include "int8_products.hpp"

namespace hat_operators {

namespace {

constexpr int64_t kBlock = 512;  // of the depth: 32 KiB of a panel
constexpr int kRows = 6;         // by a whole panel: 24 of 32 registers sum

template <int Rows>
void tile(const uint8_t* x, int64_t stride, const int8_t* panel, int64_t depth, bool first,
          int32_t* sums) {
    constexpr int kVectors = kPanelColumns / 16;
    __m512i sum[Rows][kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j)
            sum[i][j] = first ? _mm512_setzero_si512()
                              : _mm512_loadu_si512(sums + i * kPanelColumns + 16 * j);
    }
    for (int64_t k = 0; k < depth; k += 4) {
        __m512i right[kVectors];
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j)
            right[j] = _mm512_loadu_si512(panel + k * kPanelColumns + 64 * j);
#pragma GCC unroll 8
        for (int i = 0; i < Rows; ++i) {
            int32_t four;
            __builtin_memcpy(&four, x + i * stride + k, sizeof four);
            const __m512i left = _mm512_set1_epi32(four);
#pragma GCC unroll 4
            for (int j = 0; j < kVectors; ++j)
                sum[i][j] = _mm512_dpbusd_epi32(sum[i][j], left, right[j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j)
            _mm512_storeu_si512(sums + i * kPanelColumns + 16 * j, sum[i][j]);
    }
}

using Tile = void (*)(const uint8_t*, int64_t, const int8_t*, int64_t, bool, int32_t*);
constexpr Tile kTiles[kRows + 1] = {nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};

}  // namespace

void int8_products_vnni(const uint8_t* x, int64_t rows, int64_t depth, const int8_t* panel,
                        int32_t* sums) {
    const int64_t tiles = (rows + kRows - 1) / kRows;
    for (int64_t k = 0; k < depth; k += kBlock) {
        const int64_t length = depth - k < kBlock ? depth - k : kBlock;
        int64_t row = 0;
        for (int64_t t = 0; t < tiles; ++t) {
            const int64_t tall = rows / tiles + (t < rows % tiles);
            kTiles[tall](x + row * depth + k, depth, panel + k * kPanelColumns, length, k == 0,
                         sums + row * kPanelColumns);
            row += tall;
        }
    }
}

}  // namespace hat_operators
