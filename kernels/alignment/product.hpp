// Small matrix products and a power of two, in terms of `Vector` (see vector_*.hpp).
//
// As in every header that is compiled once per instruction set, all is in an unnamed namespace and
// nothing of the C++ library is used (see kernel.hpp).
#pragma once

#include <stdint.h>

namespace {

constexpr int kLanes = Vector::lanes;
constexpr int kTileRows = Vector::tile_rows;
constexpr int kTileVectors = Vector::tile_vectors;
constexpr float kLog2E = 1.44269504f;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// 2^x, given x twice: `shifted` = x + 1.5 * 2^23, which leaves round(x) in its low bits, and
// `fraction` = x - round(x). For |round(x)| <= 126. Minimax polynomial of degree 6: relative error
// 1.6e-8 with these float32 coefficients, and at most 1.5 units in the last place with rounding.
constexpr float kShifter = 12582912.0f;
inline Vector power_of_two(Vector shifted, Vector fraction) {
    Vector p = Vector::set(0x1.41d334p-13f);
    p = Vector::multiply_add(p, fraction, Vector::set(0x1.5f456ap-10f));
    p = Vector::multiply_add(p, fraction, Vector::set(0x1.3b2dbcp-7f));
    p = Vector::multiply_add(p, fraction, Vector::set(0x1.c6aed4p-5f));
    p = Vector::multiply_add(p, fraction, Vector::set(0x1.ebfbdap-3f));
    p = Vector::multiply_add(p, fraction, Vector::set(0x1.62e430p-1f));
    p = Vector::multiply_add(p, fraction, Vector::set(1.0f));
    return Vector::times_power(p, shifted);
}

// ---------------------------------------------------------------------------------- product

// c[i, :] = start[i] + sum_k a[i, k] b[k, :] for Rows rows and Vectors vectors of columns, all of
// it in registers. Every element is one chain of multiply-adds in the order of k, so its bits
// don't depend on where in which tile it lies.
template <int Rows, int Vectors>
void tile(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth,
          const float* start, float* c, int64_t c_stride) {
    Vector sum[Rows][Vectors];
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
        const Vector first = Vector::set(start ? start[i] : 0.0f);
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) sum[i][j] = first;
    }
    for (int64_t k = 0; k < depth; ++k) {
        Vector right[Vectors];
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) right[j] = Vector::load(b + j * kLanes);
        b += b_stride;
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i) {
            const Vector left = Vector::set(a[i * a_stride + k]);
#pragma GCC unroll 4
            for (int j = 0; j < Vectors; ++j)
                sum[i][j] = Vector::multiply_add(left, right[j], sum[i][j]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) sum[i][j].store(c + i * c_stride + j * kLanes);
    }
}

using Tile = void (*)(const float*, int64_t, const float*, int64_t, int64_t, const float*, float*,
                      int64_t);

template <int Rows>
Tile tile_of_width(int64_t vectors) {
    if constexpr (kTileVectors >= 3) {
        if (vectors == 3) return tile<Rows, 3>;
    }
    return vectors == 2 ? tile<Rows, 2> : tile<Rows, 1>;
}

template <int Rows = kTileRows>
Tile choose_tile(int64_t rows, int64_t vectors) {
    if constexpr (Rows > 1) {
        if (rows < Rows) return choose_tile<Rows - 1>(rows, vectors);
    }
    return tile_of_width<Rows>(vectors);
}

// Width in vectors of the next panel when `left` vectors of columns are left: as wide as a tile
// may be, except that 3 + 1 becomes 2 + 2, for a single vector keeps the multipliers idle.
inline int64_t panel_vectors(int64_t left) {
    if (kTileVectors == 3 && left == 4) return 2;
    return least(left, kTileVectors);
}

// c = a b (+ start per row); b is packed in panels: [panel][depth][panel's columns].
void product(const float* a, int64_t a_stride, int64_t rows, const float* packed, int64_t columns,
             int64_t depth, const float* start, float* c, int64_t c_stride) {
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
    const int64_t vectors = columns / kLanes;
    for (int64_t v = 0; v < vectors;) {
        const int64_t wide = panel_vectors(vectors - v);
        const float* panel = packed + v * kLanes * depth;
        int64_t row = 0;
        for (int64_t t = 0; t < tiles; ++t) {
            // Rows are spread evenly over the tiles: 9 are 5 + 4, not 8 + 1.
            const int64_t tall = rows / tiles + (t < rows % tiles);
            choose_tile(tall, wide)(a + row * a_stride, a_stride, panel, wide * kLanes, depth,
                                    start ? start + row : nullptr, c + row * c_stride + v * kLanes,
                                    c_stride);
            row += tall;
        }
        v += wide;
    }
}

}  // namespace
