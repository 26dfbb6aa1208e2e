// Eight floats: AVX2 and FMA.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Vector {
    static constexpr int lanes = 8;
    static constexpr int tile_rows = 4;  // 12 of 16 registers accumulate
    static constexpr int tile_vectors = 3;
    __m256 value;

    static Vector set(float x) { return {_mm256_set1_ps(x)}; }
    static Vector load(const float* from) { return {_mm256_loadu_ps(from)}; }
    void store(float* to) const { _mm256_storeu_ps(to, value); }

    friend Vector operator+(Vector a, Vector b) { return {_mm256_add_ps(a.value, b.value)}; }
    friend Vector operator-(Vector a, Vector b) { return {_mm256_sub_ps(a.value, b.value)}; }
    friend Vector operator*(Vector a, Vector b) { return {_mm256_mul_ps(a.value, b.value)}; }
    friend Vector operator/(Vector a, Vector b) { return {_mm256_div_ps(a.value, b.value)}; }
    static Vector multiply_add(Vector a, Vector b, Vector c) {
        return {_mm256_fmadd_ps(a.value, b.value, c.value)};
    }
    static Vector max(Vector a, Vector b) { return {_mm256_max_ps(a.value, b.value)}; }
    static float largest(Vector a) {
        __m128 half =
            _mm_max_ps(_mm256_castps256_ps128(a.value), _mm256_extractf128_ps(a.value, 1));
        half = _mm_max_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
    }
    static float total(Vector a) {
        __m128 half =
            _mm_add_ps(_mm256_castps256_ps128(a.value), _mm256_extractf128_ps(a.value, 1));
        half = _mm_add_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
    }
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
    static Vector sqrt(Vector a) { return {_mm256_sqrt_ps(a.value)}; }
    // value * 2^n, where the low bits of `shifted` hold the integer n.
    static Vector times_power(Vector value, Vector shifted) {
        const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(shifted.value), 23);
        return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value.value), power))};
    }
    // The first `count` lanes, zero in the others.
    static Vector keep(Vector a, int count) {
        const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), index);
        return {_mm256_and_ps(a.value, _mm256_castsi256_ps(mask))};
    }
    // Zero where x < bound; where x is NaN, the value stays.
    static Vector zero_below(Vector a, Vector x, Vector bound) {
        return {_mm256_andnot_ps(_mm256_cmp_ps(x.value, bound.value, _CMP_LT_OQ), a.value)};
    }
    // Whether any lane isn't within [low, high]; NaN isn't.
    static bool any_outside(Vector a, Vector low, Vector high) {
        const __m256 inside = _mm256_and_ps(_mm256_cmp_ps(a.value, low.value, _CMP_GE_OQ),
                                            _mm256_cmp_ps(a.value, high.value, _CMP_LE_OQ));
        return _mm256_movemask_ps(inside) != 0xff;
    }
};

}  // namespace
