// Four floats: AArch64 Advanced SIMD.
#pragma once

#include <arm_neon.h>
#include <stdint.h>

namespace {

struct Vector {
    static constexpr int lanes = 4;
    static constexpr int tile_rows = 8;  // 24 of 32 registers accumulate
    static constexpr int tile_vectors = 3;
    float32x4_t value;

    static Vector set(float x) { return {vdupq_n_f32(x)}; }
    static Vector load(const float* from) { return {vld1q_f32(from)}; }
    void store(float* to) const { vst1q_f32(to, value); }

    friend Vector operator+(Vector a, Vector b) { return {vaddq_f32(a.value, b.value)}; }
    friend Vector operator-(Vector a, Vector b) { return {vsubq_f32(a.value, b.value)}; }
    friend Vector operator*(Vector a, Vector b) { return {vmulq_f32(a.value, b.value)}; }
    friend Vector operator/(Vector a, Vector b) { return {vdivq_f32(a.value, b.value)}; }
    static Vector multiply_add(Vector a, Vector b, Vector c) {
        return {vfmaq_f32(c.value, a.value, b.value)};
    }
    static Vector max(Vector a, Vector b) { return {vmaxq_f32(a.value, b.value)}; }
    static float largest(Vector a) { return vmaxvq_f32(a.value); }
    static float total(Vector a) { return vaddvq_f32(a.value); }
    // Columns of four rows of four, each to a row of its own.
    static void transpose4(const float* a, const float* b, const float* c, const float* d,
                           float* to, int64_t stride) {
        for (int i = 0; i < 4; ++i) {
            to[i * stride] = a[i];
            to[i * stride + 1] = b[i];
            to[i * stride + 2] = c[i];
            to[i * stride + 3] = d[i];
        }
    }
    static Vector sqrt(Vector a) { return {vsqrtq_f32(a.value)}; }
    // value * 2^n, where the low bits of `shifted` hold the integer n.
    static Vector times_power(Vector value, Vector shifted) {
        const int32x4_t power = vshlq_n_s32(vreinterpretq_s32_f32(shifted.value), 23);
        return {vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(value.value), power))};
    }
    // The first `count` lanes, zero in the others.
    static Vector keep(Vector a, int count) {
        static const int32_t index[lanes] = {0, 1, 2, 3};
        const uint32x4_t mask = vcgtq_s32(vdupq_n_s32(count), vld1q_s32(index));
        return {vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a.value), mask))};
    }
    // Zero where x < bound; where x is NaN, the value stays.
    static Vector zero_below(Vector a, Vector x, Vector bound) {
        const uint32x4_t below = vcltq_f32(x.value, bound.value);
        return {vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a.value), below))};
    }
    // Whether any lane isn't within [low, high]; NaN isn't.
    static bool any_outside(Vector a, Vector low, Vector high) {
        const uint32x4_t inside =
            vandq_u32(vcgeq_f32(a.value, low.value), vcleq_f32(a.value, high.value));
        return vminvq_u32(inside) == 0;
    }
};

}  // namespace
