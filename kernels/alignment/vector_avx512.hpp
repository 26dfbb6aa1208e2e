// Sixteen floats: AVX-512F.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Vector {
    static constexpr int lanes = 16;
    static constexpr int tile_rows = 8;  // 24 of 32 registers accumulate
    static constexpr int tile_vectors = 3;
    __m512 value;

    static Vector set(float x) { return {_mm512_set1_ps(x)}; }
    static Vector load(const float* from) { return {_mm512_loadu_ps(from)}; }
    void store(float* to) const { _mm512_storeu_ps(to, value); }

    friend Vector operator+(Vector a, Vector b) { return {_mm512_add_ps(a.value, b.value)}; }
    friend Vector operator-(Vector a, Vector b) { return {_mm512_sub_ps(a.value, b.value)}; }
    friend Vector operator*(Vector a, Vector b) { return {_mm512_mul_ps(a.value, b.value)}; }
    friend Vector operator/(Vector a, Vector b) { return {_mm512_div_ps(a.value, b.value)}; }
    static Vector multiply_add(Vector a, Vector b, Vector c) {
        return {_mm512_fmadd_ps(a.value, b.value, c.value)};
    }
    static Vector max(Vector a, Vector b) { return {_mm512_max_ps(a.value, b.value)}; }
    static float largest(Vector a) { return _mm512_reduce_max_ps(a.value); }
    static float total(Vector a) { return _mm512_reduce_add_ps(a.value); }
    // Columns of four rows of four, each to a row of its own.
    static void transpose4(const float* a, const float* b, const float* c, const float* d,
                           float* to, int64_t stride) {
        __m128 w = _mm_loadu_ps(a), x = _mm_loadu_ps(b), y = _mm_loadu_ps(c), z = _mm_loadu_ps(d);
        _MM_TRANSPOSE4_PS(w, x, y, z);
        _mm_storeu_ps(to, w);
        _mm_storeu_ps(to + stride, x);
        _mm_storeu_ps(to + 2 * stride, y);
        _mm_storeu_ps(to + 3 * stride, z);
    }
    static Vector sqrt(Vector a) { return {_mm512_sqrt_ps(a.value)}; }
    // value * 2^n, where the low bits of `shifted` hold the integer n.
    static Vector times_power(Vector value, Vector shifted) {
        const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(shifted.value), 23);
        return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(value.value), power))};
    }
    // The first `count` lanes, zero in the others.
    static Vector keep(Vector a, int count) {
        const uint32_t mask = count >= lanes ? 0xffffu : (1u << count) - 1u;
        return {_mm512_maskz_mov_ps(static_cast<__mmask16>(mask), a.value)};
    }
    // Zero where x < bound; where x is NaN, the value stays.
    static Vector zero_below(Vector a, Vector x, Vector bound) {
        return {
            _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.value, bound.value, _CMP_NLT_UQ), a.value)};
    }
    // Whether any lane isn't within [low, high]; NaN isn't.
    static bool any_outside(Vector a, Vector low, Vector high) {
        const __mmask16 inside = _mm512_mask_cmp_ps_mask(
            _mm512_cmp_ps_mask(a.value, low.value, _CMP_GE_OQ), a.value, high.value, _CMP_LE_OQ);
        return inside != 0xffff;
    }
};

}  // namespace
