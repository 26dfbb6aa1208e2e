// What surrounds the products of a linear layer in 8 bits, in terms of `Vector`
// (../alignment/vector_*.hpp): rounding its input, and turning sums of integers into results.
//
// The sums are exact, and what surrounds them takes the same steps on every instruction set, except
// for the order of operations within GELU: all paths round to the same integers.
#pragma once

#include <stdint.h>
#include <string.h>

#include "../alignment/product.hpp"
#include "kernels.hpp"
#include "linear_kernel.hpp"

namespace {

using hat_operators::Int8LinearPlan;
using hat_operators::kInt8Rows;

constexpr int64_t kInt8RowBlock = 192;  // most rows of a task

// x * inverse + zero to the nearest integer from 0 to 255. NaN becomes 0.
void round_row(const float* x, int64_t depth, float inverse, float zero, uint8_t* rounded) {
    // Floats from 2^23 on are integers, and their low bits are the number.
    constexpr uint32_t kFirstInteger = 0x4b000000;
    constexpr int64_t kChunk = 64;
    const Vector scale = Vector::set(inverse), start = Vector::set(zero);
    const Vector first = Vector::set(0x1p23f);
    float last[kChunk], steps[kChunk];
    for (int64_t k = 0; k < depth; k += kChunk) {
        const int64_t count = least(kChunk, depth - k);
        const float* from = x + k;
        if (count < kChunk) {
            memset(last, 0, sizeof last);
            memcpy(last, from, static_cast<size_t>(count) * sizeof(float));
            from = last;
        }
        for (int64_t j = 0; j < kChunk; j += kLanes) {
            const Vector value = Vector::load(from + j) * scale + start;
            (Vector::max(value, Vector::set(0.0f)) + first).store(steps + j);
        }
        uint32_t bits[kChunk];
        memcpy(bits, steps, sizeof bits);
        uint8_t bytes[kChunk];
        for (int64_t j = 0; j < kChunk; ++j) {
            const uint32_t number = bits[j] - kFirstInteger;
            bytes[j] = static_cast<uint8_t>(number < 255 ? number : 255);
        }
        memcpy(rounded + k, bytes, static_cast<size_t>(count));
    }
}

// Each row between its smallest and its largest value, 0 among them, in 255 steps. What isn't
// finite makes the step NaN, and with it the row's results.
void round_rows(const Int8LinearPlan& plan, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
        const float* x = plan.x + row * plan.depth;
        Vector high = Vector::set(0.0f), low = high, poison = high;
        int64_t k = 0;
        for (; k + kLanes <= plan.depth; k += kLanes) {
            const Vector value = Vector::load(x + k);
            high = Vector::max(value, high);
            low = Vector::max(Vector::set(0.0f) - value, low);
            poison = Vector::multiply_add(value, Vector::set(0.0f), poison);
        }
        float largest = Vector::largest(high), smallest = -Vector::largest(low);
        float broken = Vector::total(poison);
        for (; k < plan.depth; ++k) {
            largest = x[k] > largest ? x[k] : largest;
            smallest = x[k] < smallest ? x[k] : smallest;
            broken += x[k] * 0.0f;
        }
        // Of a row of zeros, or of the smallest numbers that there are, nothing is left.
        const float range = largest - smallest, step = range / 255.0f;
        const float inverse = step > 0x1p-120f ? 1.0f / step : 0.0f;
        const float zero = (-smallest * inverse + 0x1p23f) - 0x1p23f;
        const bool finite = broken == 0.0f && zero >= 0.0f && zero <= 255.0f;
        plan.step[row] = finite ? step : __builtin_nanf("");
        plan.zero[row] = finite ? static_cast<int32_t>(zero) : 0;
        round_row(x, plan.depth, inverse, zero, plan.rounded + row * plan.padded);
        memset(plan.rounded + row * plan.padded + plan.depth, 0,
               static_cast<size_t>(plan.padded - plan.depth));
    }
}

int64_t int8_row_blocks(const Int8LinearPlan& plan) {
    return (plan.rows + kInt8RowBlock - 1) / kInt8RowBlock;
}

int64_t int8_linear_tasks(const Int8LinearPlan& plan) {
    return int8_row_blocks(plan) * ((plan.columns + kPanelColumns - 1) / kPanelColumns);
}

int64_t int8_linear_workspace(const Int8LinearPlan& plan) {
    const int64_t rows = least(plan.rows, kInt8RowBlock);
    return round_up(rows, kInt8Rows) * kPanelColumns * static_cast<int64_t>(sizeof(int32_t));
}

void restore(const int32_t* __restrict sums, int32_t zero, const int32_t* __restrict totals,
             float step, const float* __restrict scale, const float* __restrict bias,
             float* __restrict found) {
    for (int64_t j = 0; j < kPanelColumns; ++j)
        found[j] = static_cast<float>(sums[j] - zero * totals[j]) * (step * scale[j]) + bias[j];
}

void run_int8_linear(const Int8LinearPlan& plan, int32_t* workspace, int64_t first, int64_t last) {
    const int64_t panels = (plan.columns + kPanelColumns - 1) / kPanelColumns;
    const int64_t blocks = int8_row_blocks(plan);
    for (int64_t task = first; task < last; ++task) {
        const int64_t column = task % panels * kPanelColumns;
        const int64_t part = task / panels, row = plan.rows * part / blocks;
        const int64_t rows = plan.rows * (part + 1) / blocks - row;
        const int64_t columns = least(kPanelColumns, plan.columns - column);
        plan.products(plan.rounded + row * plan.padded, rows, plan.padded,
                      plan.weight + column * plan.padded, workspace);
        float scale[kPanelColumns] = {}, bias[kPanelColumns] = {}, found[kPanelColumns];
        int32_t totals[kPanelColumns] = {};
        for (int64_t j = 0; j < columns; ++j) {
            scale[j] = plan.scale[column + j];
            totals[j] = plan.totals[column + j];
            bias[j] = plan.bias ? plan.bias[column + j] : 0.0f;
        }
        for (int64_t r = row; r < row + rows; ++r) {
            restore(workspace + (r - row) * kPanelColumns, plan.zero[r], totals, plan.step[r],
                    scale, bias, found);
            if (plan.activate)
                for (int64_t j = 0; j < kPanelColumns; j += kLanes)
                    gelu(Vector::load(found + j)).store(found + j);
            float* y = plan.y + r * plan.columns + column;
            if (columns == kPanelColumns)
                memcpy(y, found, sizeof found);
            else
                for (int64_t j = 0; j < columns; ++j) y[j] = found[j];
        }
    }
}

}  // namespace
