#include <immintrin.h>

#include "int8_products.hpp"

namespace hat_operators {

namespace {

constexpr int64_t kBlock = 512;  // of the depth: 32 KiB of a panel
constexpr int64_t kTileRows = kInt8Rows, kTileBytes = 64;
constexpr int64_t kSumsStride = kPanelColumns * sizeof(int32_t);
constexpr int64_t kPanelStride = kPanelColumns * 4;  // bytes of four values of every column

// All eight tiles of 16 rows of 64 bytes: 0 to 3 sum, 4 and 5 hold rows, 6 and 7 columns.
struct alignas(64) TileConfig {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

// 32 rows (or 16) by 32 columns.
template <bool Two>
void tiles(const uint8_t* x, int64_t stride, const int8_t* panel, int64_t depth, bool first,
           int32_t* sums) {
    int32_t* below = sums + kTileRows * kPanelColumns;
    if (first) {
        _tile_zero(0);
        _tile_zero(1);
        if constexpr (Two) {
            _tile_zero(2);
            _tile_zero(3);
        }
    } else {
        _tile_loadd(0, sums, kSumsStride);
        _tile_loadd(1, sums + 16, kSumsStride);
        if constexpr (Two) {
            _tile_loadd(2, below, kSumsStride);
            _tile_loadd(3, below + 16, kSumsStride);
        }
    }
    for (int64_t k = 0; k < depth; k += kTileBytes) {
        _tile_loadd(6, panel + k * kPanelColumns, kPanelStride);
        _tile_loadd(4, x + k, stride);
        _tile_dpbusd(0, 4, 6);
        _tile_loadd(7, panel + k * kPanelColumns + kTileBytes, kPanelStride);
        _tile_dpbusd(1, 4, 7);
        if constexpr (Two) {
            _tile_loadd(5, x + kTileRows * stride + k, stride);
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
        }
    }
    _tile_stored(0, sums, kSumsStride);
    _tile_stored(1, sums + 16, kSumsStride);
    if constexpr (Two) {
        _tile_stored(2, below, kSumsStride);
        _tile_stored(3, below + 16, kSumsStride);
    }
}

}  // namespace

void int8_products_amx(const uint8_t* x, int64_t rows, int64_t depth, const int8_t* panel,
                       int32_t* sums) {
    TileConfig config;
    for (int i = 0; i < 8; ++i) {
        config.bytes[i] = kTileBytes;
        config.rows[i] = kTileRows;
    }
    _tile_loadconfig(&config);
    for (int64_t k = 0; k < depth; k += kBlock) {
        const int64_t length = depth - k < kBlock ? depth - k : kBlock;
        for (int64_t column = 0; column < kPanelColumns; column += 32) {
            const int8_t* block = panel + k * kPanelColumns + 4 * column;
            for (int64_t row = 0; row < rows; row += 2 * kTileRows) {
                const auto run = rows - row > kTileRows ? tiles<true> : tiles<false>;
                run(x + row * depth + k, depth, block, length, k == 0,
                    sums + row * kPanelColumns + column);
            }
        }
    }
    _tile_release();
}

}  // namespace hat_operators
