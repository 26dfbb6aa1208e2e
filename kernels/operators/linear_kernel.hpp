// A linear layer with its bias and GELU, in terms of `Vector` (../alignment/vector_*.hpp).
//
// The weight comes packed in panels of 64 columns, [panel][depth][64], so that a thread reads it
// from front to back once for many rows. A block of a panel stays close while every tile of input
// rows is multiplied with it; meanwhile the block that comes next is fetched: with few rows, a
// network's weights come from memory in every call, and waiting for them would take as long as the
// products.
#pragma once

#include <stdint.h>

#include "../alignment/product.hpp"
#include "kernels.hpp"

namespace {

using hat_operators::kPanelColumns;
using hat_operators::LinearPlan;

// Rows of a panel that form a block. With few rows of input the block must come from the
// first-level cache (32 KiB); with many, longer blocks are worth more, since sums are loaded and
// stored once per block.
constexpr int64_t kFewRows = 32, kShortBlock = 128, kLongBlock = 384;
constexpr int64_t kRowBlock = 144;  // rows of a task
constexpr int kLinearRows = 6;      // with the vectors below: as many accumulators as there are
                                    // registers for, after one row of the panel and an input
constexpr int kLinearVectors = kTileRows * kTileVectors >= 24 ? 4 : 2;
constexpr int64_t kLineFloats = 16;  // of a cache line
constexpr int64_t kRowLines = kPanelColumns / kLineFloats;

// x Phi(x), Phi the normal distribution. Phi(-a) = exp(-a^2 / 2) R(a) for a >= 0, where R is a
// polynomial in 1 / (1 + 0.38 a): minimax, within 5.2e-9 of Phi. Results are within 1.5e-7 |x|.
inline Vector gelu(Vector x) {
    const Vector one = Vector::set(1.0f), zero = Vector::set(0.0f);
    const Vector magnitude = Vector::max(zero - x, x);
    const Vector t = one / Vector::multiply_add(magnitude, Vector::set(0x1.851eb8p-2f), one);
    Vector tail = Vector::set(0x1.c7093ep-5f);
    tail = Vector::multiply_add(tail, t, Vector::set(-0x1.211b82p-2f));
    tail = Vector::multiply_add(tail, t, Vector::set(0x1.d18d44p-2f));
    tail = Vector::multiply_add(tail, t, Vector::set(-0x1.840158p-4f));
    tail = Vector::multiply_add(tail, t, Vector::set(0x1.d2de54p-3f));
    tail = Vector::multiply_add(tail, t, Vector::set(0x1.1a77e4p-3f));
    tail = Vector::multiply_add(tail, t, Vector::set(0x1.025170p-10f));
    // 2^-100 is nothing beside x, and is no denormal number after the product with R. The bound
    // comes first: of two operands one of which is NaN, the second is the result.
    const Vector exponent =
        Vector::max(Vector::set(-100.0f), Vector::set(-0.5f * kLog2E) * magnitude * magnitude);
    const Vector shifter = Vector::set(kShifter), shifted = exponent + shifter;
    tail = tail * power_of_two(shifted, exponent - (shifted - shifter));
    // For x >= 0: x - x Phi(-x); below: x Phi(x), which is -|x| Phi(-|x|).
    return Vector::max(zero, x) - magnitude * tail;
}

// c[i, :] = (bias or c[i, :]) + sum_k a[i, k] b[k, :], and then its GELU if `activate`.
// For every k, the next `lines` cache lines from `ahead` are fetched into the second-level cache.
template <int Rows, int Vectors>
void linear_tile(const float* a, int64_t a_stride, const float* b, int64_t depth, const float* bias,
                 bool activate, const float* ahead, int64_t lines, float* c, int64_t c_stride) {
    Vector sum[Rows][Vectors];
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j)
            sum[i][j] = Vector::load((bias ? bias : c + i * c_stride) + j * kLanes);
    }
    for (int64_t k = 0; k < depth; ++k) {
        Vector right[Vectors];
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) right[j] = Vector::load(b + j * kLanes);
        b += kPanelColumns;
        for (int64_t line = 0; line < lines; ++line, ahead += kLineFloats)
            __builtin_prefetch(ahead, 0, 2);
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
        for (int j = 0; j < Vectors; ++j) {
            const Vector value = activate ? gelu(sum[i][j]) : sum[i][j];
            value.store(c + i * c_stride + j * kLanes);
        }
    }
}

using LinearTile = void (*)(const float*, int64_t, const float*, int64_t, const float*, bool,
                            const float*, int64_t, float*, int64_t);

template <int Rows, int Vectors = kLinearVectors>
LinearTile linear_tile_of_width(int64_t vectors) {
    if constexpr (Vectors > 1) {
        if (vectors < Vectors) return linear_tile_of_width<Rows, Vectors - 1>(vectors);
    }
    return linear_tile<Rows, Vectors>;
}

template <int Rows = kLinearRows>
LinearTile choose_linear_tile(int64_t rows, int64_t vectors) {
    if constexpr (Rows > 1) {
        if (rows < Rows) return choose_linear_tile<Rows - 1>(rows, vectors);
    }
    return linear_tile_of_width<Rows>(vectors);
}

int64_t row_blocks(const LinearPlan& plan) { return (plan.rows + kRowBlock - 1) / kRowBlock; }

int64_t linear_tasks(const LinearPlan& plan) {
    const int64_t panels = (plan.columns + kPanelColumns - 1) / kPanelColumns;
    return row_blocks(plan) * panels;
}

// How many of `whole` the part `index` of `parts` gets; the first ones get more.
int64_t shared_out(int64_t whole, int64_t parts, int64_t index) {
    return whole / parts + (index < whole % parts);
}

// One panel by one block of rows; the panel's columns are all written, so the last, narrower
// panel's go to `c` in scratch memory.
void linear_panel(const LinearPlan& plan, const float* x, int64_t rows, const float* panel,
                  const float* next, const float* bias, int64_t vectors, float* c,
                  int64_t c_stride) {
    const int64_t tiles = (rows + kLinearRows - 1) / kLinearRows;
    const int64_t passes = tiles * ((vectors + kLinearVectors - 1) / kLinearVectors);
    const int64_t step = rows < kFewRows ? kShortBlock : kLongBlock;
    for (int64_t k = 0; k < plan.depth; k += step) {
        const int64_t depth = least(step, plan.depth - k);
        const bool last = k + depth == plan.depth;
        const float* block = panel + k * kPanelColumns;
        const float* ahead = last ? next : block + depth * kPanelColumns;
        int64_t pass = 0;
        for (int64_t v = 0; v < vectors; v += kLinearVectors) {
            const int64_t wide = least(kLinearVectors, vectors - v);
            int64_t row = 0;
            for (int64_t t = 0; t < tiles; ++t, ++pass) {
                const int64_t tall = shared_out(rows, tiles, t);
                // The passes over k share out the lines of the coming block.
                const int64_t lines = shared_out(kRowLines, passes, pass);
                choose_linear_tile(tall, wide)(
                    x + row * plan.depth + k, plan.depth, block + v * kLanes, depth,
                    k ? nullptr : bias + v * kLanes, last && plan.activate, ahead, lines,
                    c + row * c_stride + v * kLanes, c_stride);
                ahead += lines * depth * kLineFloats;
                row += tall;
            }
        }
    }
}

void run_linear(const LinearPlan& plan, int64_t first, int64_t last) {
    const int64_t panels = (plan.columns + kPanelColumns - 1) / kPanelColumns;
    const int64_t blocks = row_blocks(plan);
    float start[kPanelColumns];
    float ragged[kLinearRows * kPanelColumns];
    for (int64_t task = first; task < last; ++task) {
        const int64_t index = task % panels, column = index * kPanelColumns;
        const int64_t part = task / panels, row = plan.rows * part / blocks;
        const int64_t rows = plan.rows * (part + 1) / blocks - row;
        const int64_t columns = least(kPanelColumns, plan.columns - column);
        const float* panel = plan.weight + column * plan.depth;
        // Behind the last panel nothing is read; fetching what is there already does no harm.
        const float* next = index + 1 < panels ? panel + kPanelColumns * plan.depth : plan.weight;
        for (int64_t j = 0; j < kPanelColumns; ++j)
            start[j] = plan.bias && j < columns ? plan.bias[column + j] : 0.0f;
        const float* x = plan.x + row * plan.depth;
        float* y = plan.y + row * plan.columns + column;
        if (columns % kLanes == 0) {
            linear_panel(plan, x, rows, panel, next, start, columns / kLanes, y, plan.columns);
            continue;
        }
        const int64_t vectors = round_up(columns, kLanes) / kLanes;
        for (int64_t r = 0; r < rows; r += kLinearRows) {
            const int64_t tall = least(kLinearRows, rows - r);
            linear_panel(plan, x + r * plan.depth, tall, panel, panel, start, vectors, ragged,
                         kPanelColumns);
            for (int64_t i = 0; i < tall; ++i)
                for (int64_t j = 0; j < columns; ++j)
                    y[(r + i) * plan.columns + j] = ragged[i * kPanelColumns + j];
        }
    }
}

}  // namespace
