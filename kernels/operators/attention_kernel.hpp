// Fused attention of one head within one group of tokens, in terms of `Vector`
// (../alignment/vector_*.hpp): logits, bias, mask and softmax never leave the first-level cache,
// and windows are found by index arithmetic instead of being copied into an order of their own.
//
// Every translation unit that includes this has compile flags of its own: see
// ../alignment/kernel.hpp.
#pragma once

#include <math.h>
#include <stdint.h>

#include "../alignment/product.hpp"
#include "kernels.hpp"

namespace {

using hat_operators::AttentionPlan;

// What separates tokens that a shift brought into one window, and what padding gets; the
// checkpoints were trained with these.
constexpr float kShiftMask = -100.0f * kLog2E;
constexpr float kPaddingMask = -10000.0f * kLog2E;
constexpr float kLowest = -3e38f;
// Weights below 2^-100 of the largest are nothing. The shift mask makes weights of 4e-44, denormal
// numbers, and products with those take Intel's processors a hundred times longer than others.
constexpr float kNegligible = -100.0f;
constexpr int64_t kRowsPerBlock = 64;  // queries whose logits are kept at a time
constexpr int64_t kZones = 4;          // parts of a window that the shift keeps apart, at most

struct AttentionSpace {
    float* queries;    // [rows of a block, head_dim], scaled
    float* keys;       // packed transpose: [head_dim, columns]
    float* values;     // packed: [keys, width]
    float* logits;     // [rows of a block, columns]
    float* mixed;      // [rows of a block, width]
    float* masks;      // [zones, columns]; of text [columns]
    float* last_bias;  // [columns]
    float* tail;       // [lanes]
    int32_t* place;    // [keys]: which token of the item stands there
    int32_t* zone;     // [keys]
    int64_t columns;
    int64_t width;
    int64_t rows;
    int64_t floats;
};

inline int64_t group_keys(const AttentionPlan& plan) {
    return plan.window ? plan.window * plan.window : plan.tokens;
}

AttentionSpace cut_attention(const AttentionPlan& plan, float* base) {
    const int64_t keys = group_keys(plan);
    AttentionSpace space = {};
    space.columns = round_up(keys, kLanes);
    space.width = round_up(plan.head_dim, kLanes);
    space.rows = least(keys, kRowsPerBlock);
    int64_t used = 0;
    const auto take = [&](int64_t floats) {
        float* start = base ? base + used : nullptr;
        used += round_up(floats, 16);
        return start;
    };
    space.queries = take(space.rows * plan.head_dim);
    space.keys = take(space.columns * plan.head_dim);
    space.values = take(keys * space.width);
    space.logits = take(space.rows * space.columns);
    space.mixed = take(space.rows * space.width);
    space.masks = take((plan.window ? kZones : 1) * space.columns);
    space.last_bias = take(space.columns);
    space.tail = take(kLanes);
    space.place = reinterpret_cast<int32_t*>(take(keys));
    space.zone = reinterpret_cast<int32_t*>(take(keys));
    space.floats = used;
    return space;
}

int64_t attention_workspace(const AttentionPlan& plan) {
    return cut_attention(plan, nullptr).floats;
}

// Where the tokens of a window stand, and which parts of it the shift has brought together.
// Returns whether there is more than one part.
bool place_window(const AttentionPlan& plan, int64_t group, const AttentionSpace& space) {
    const int64_t side = plan.side, window = plan.window, shift = plan.shift;
    const int64_t count = side / window;
    const int64_t top = group / count * window, left = group % count * window;
    const bool cut = shift && (top + window == side || left + window == side);
    for (int64_t i = 0; i < window; ++i) {
        const int64_t row = (top + i + shift) % side;
        for (int64_t j = 0; j < window; ++j) {
            const int64_t column = (left + j + shift) % side;
            const int64_t key = i * window + j;
            space.place[key] = static_cast<int32_t>(row * side + column);
            space.zone[key] =
                static_cast<int32_t>(2 * (top + i + shift >= side) + (left + j + shift >= side));
        }
    }
    if (!cut) return false;
    for (int64_t zone = 0; zone < kZones; ++zone)
        for (int64_t key = 0; key < window * window; ++key)
            space.masks[zone * space.columns + key] = space.zone[key] == zone ? 0.0f : kShiftMask;
    return true;
}

void place_tokens(const AttentionPlan& plan, int64_t item, const AttentionSpace& space) {
    const int64_t* mask = plan.mask + item * plan.tokens;
    for (int64_t key = 0; key < plan.tokens; ++key) {
        space.place[key] = static_cast<int32_t>(key);
        space.masks[key] = mask[key] ? 0.0f : kPaddingMask;
    }
}

// The keys' bias adds the same to all logits of a query, and so changes no weight: it is left out.
void pack_keys(const AttentionPlan& plan, const float* keys, const AttentionSpace& space,
               int64_t count) {
    const int64_t depth = plan.head_dim, stride = 3 * plan.heads * plan.head_dim;
    const int64_t vectors = space.columns / kLanes;
    for (int64_t v = 0; v < vectors;) {
        const int64_t wide = panel_vectors(vectors - v) * kLanes, first = v * kLanes;
        float* panel = space.keys + first * depth;
        int64_t j = 0;
        for (; j + 4 <= wide && first + j + 4 <= count; j += 4) {
            const int32_t* place = space.place + first + j;
            const float* from[4];
            for (int i = 0; i < 4; ++i) from[i] = keys + place[i] * stride;
            int64_t k = 0;
            for (; k + 4 <= depth; k += 4) {
                Vector::transpose4(from[0] + k, from[1] + k, from[2] + k, from[3] + k,
                                   panel + k * wide + j, wide);
            }
            for (; k < depth; ++k)
                for (int i = 0; i < 4; ++i) panel[k * wide + j + i] = from[i][k];
        }
        for (; j < wide; ++j) {
            const bool real = first + j < count;
            const float* from = real ? keys + space.place[first + j] * stride : nullptr;
            for (int64_t k = 0; k < depth; ++k) panel[k * wide + j] = real ? from[k] : 0.0f;
        }
        v += wide / kLanes;
    }
}

void pack_values(const AttentionPlan& plan, const float* values, const float* bias,
                 const AttentionSpace& space, int64_t count) {
    const int64_t depth = plan.head_dim, stride = 3 * plan.heads * plan.head_dim;
    const int64_t vectors = space.width / kLanes;
    for (int64_t v = 0; v < vectors;) {
        const int64_t wide = panel_vectors(vectors - v) * kLanes, first = v * kLanes;
        const int64_t real = least(wide, depth - first);
        float* panel = space.values + first * count;
        for (int64_t j = 0; j < count; ++j) {
            const float* from = values + space.place[j] * stride + first;
            for (int64_t k = 0; k < real; ++k) panel[j * wide + k] = from[k] + bias[first + k];
            for (int64_t k = real; k < wide; ++k) panel[j * wide + k] = 0.0f;
        }
        v += wide / kLanes;
    }
}

// Softmax of one row of logits, which are in powers of two, in place. `bias` is in powers of e and
// may be null, as may `mask`; both are read up to the end of the last vector. `tail` is added to
// that vector: nothing for a key, far below any logit for what lies behind the last.
void softmax_row(float* logits, const float* bias, const float* mask, const float* tail,
                 int64_t keys, int64_t columns) {
    const Vector lowest = Vector::set(-126.0f), negligible = Vector::set(kNegligible);
    const Vector log2e = Vector::set(kLog2E), shifter = Vector::set(kShifter);
    Vector top = Vector::set(kLowest);
    for (int64_t j = 0; j < columns; j += kLanes) {
        Vector x = Vector::load(logits + j);
        if (bias) x = Vector::multiply_add(Vector::load(bias + j), log2e, x);
        if (mask) x = x + Vector::load(mask + j);
        if (j + kLanes > keys) {
            // Lanes past the last key may hold anything.
            x = Vector::keep(x, static_cast<int>(keys - j)) + Vector::load(tail);
        }
        x.store(logits + j);
        top = Vector::max(top, x);
    }
    const Vector highest = Vector::set(Vector::largest(top));
    Vector sum = Vector::set(0.0f);
    for (int64_t j = 0; j < columns; j += kLanes) {
        // The bound comes first: of two operands one of which is NaN, the second is the result.
        const Vector x = Vector::max(lowest, Vector::load(logits + j) - highest);
        const Vector shifted = x + shifter;
        Vector weight = power_of_two(shifted, x - (shifted - shifter));
        weight = Vector::zero_below(weight, x, negligible);
        if (j + kLanes > keys) weight = Vector::keep(weight, static_cast<int>(keys - j));
        weight.store(logits + j);
        sum = sum + weight;
    }
    const Vector share = Vector::set(1.0f / Vector::total(sum));
    for (int64_t j = 0; j < columns; j += kLanes)
        (Vector::load(logits + j) * share).store(logits + j);
}

void run_attention(const AttentionPlan& plan, float* base, int64_t first, int64_t last) {
    const AttentionSpace space = cut_attention(plan, base);
    const int64_t keys = group_keys(plan), depth = plan.head_dim;
    const int64_t groups = plan.tokens / keys;
    const int64_t width = plan.heads * depth;
    const float scale = kLog2E / sqrtf(static_cast<float>(depth));
    for (int i = 0; i < kLanes; ++i)
        space.tail[i] = space.columns - kLanes + i < keys ? 0.0f : kLowest;
    int64_t placed = -1;
    bool masked = false;
    for (int64_t task = first; task < last; ++task) {
        const int64_t head = task % plan.heads, place = task / plan.heads;
        const int64_t item = place / groups;
        if (place != placed) {
            if (plan.window) {
                masked = place_window(plan, place % groups, space);
            } else {
                place_tokens(plan, item, space);
                masked = true;
            }
            placed = place;
        }
        const float* qkv = plan.qkv + item * plan.tokens * 3 * width + head * depth;
        const float* bias = plan.qkv_bias + head * depth;
        float* mixed = plan.mixed + item * plan.tokens * width + head * depth;
        pack_keys(plan, qkv + width, space, keys);
        pack_values(plan, qkv + 2 * width, bias + 2 * width, space, keys);
        for (int64_t row = 0; row < keys; row += space.rows) {
            const int64_t rows = least(space.rows, keys - row);
            for (int64_t i = 0; i < rows; ++i) {
                const float* from = qkv + space.place[row + i] * 3 * width;
                for (int64_t k = 0; k < depth; ++k)
                    space.queries[i * depth + k] = (from[k] + bias[k]) * scale;
            }
            product(space.queries, depth, rows, space.keys, space.columns, depth, nullptr,
                    space.logits, space.columns);
            for (int64_t i = 0; i < rows; ++i) {
                const float* row_bias = nullptr;
                if (plan.window) {
                    const int64_t start = (head * keys + row + i) * keys;
                    row_bias = plan.position_bias + start;
                    if (start + space.columns > plan.heads * keys * keys) {
                        // Behind the last row of all there may be nothing to read; where a vector
                        // is longer than a row, it reaches there from rows before the last, too.
                        for (int64_t j = 0; j < keys; ++j) space.last_bias[j] = row_bias[j];
                        row_bias = space.last_bias;
                    }
                }
                const int64_t zone = plan.window ? space.zone[row + i] : 0;
                const float* mask = masked ? space.masks + zone * space.columns : nullptr;
                softmax_row(space.logits + i * space.columns, row_bias, mask, space.tail, keys,
                            space.columns);
            }
            product(space.logits, space.columns, rows, space.values, space.width, keys, nullptr,
                    space.mixed, space.width);
            for (int64_t i = 0; i < rows; ++i) {
                float* to = mixed + space.place[row + i] * width;
                for (int64_t k = 0; k < depth; ++k) to[k] = space.mixed[i * space.width + k];
            }
        }
    }
}

}  // namespace
