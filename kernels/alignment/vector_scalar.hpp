// Portable vectors: four floats in an array, which any C++ compiler can handle.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

namespace {

struct Vector {
    static constexpr int lanes = 4;
    static constexpr int tile_rows = 4;
    static constexpr int tile_vectors = 2;
    float lane[lanes];

    template <class Function>
    static Vector each(Function function) {
        Vector result;
        for (int i = 0; i < lanes; ++i) result.lane[i] = function(i);
        return result;
    }

    static Vector set(float value) {
        return each([=](int) { return value; });
    }
    static Vector load(const float* from) {
        return each([=](int i) { return from[i]; });
    }
    void store(float* to) const { memcpy(to, lane, sizeof lane); }

    friend Vector operator+(Vector a, Vector b) {
        return each([&](int i) { return a.lane[i] + b.lane[i]; });
    }
    friend Vector operator-(Vector a, Vector b) {
        return each([&](int i) { return a.lane[i] - b.lane[i]; });
    }
    friend Vector operator*(Vector a, Vector b) {
        return each([&](int i) { return a.lane[i] * b.lane[i]; });
    }
    friend Vector operator/(Vector a, Vector b) {
        return each([&](int i) { return a.lane[i] / b.lane[i]; });
    }
    // a * b + c. Rounded twice here: a fused one in software would be slow beyond use.
    static Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }
    static Vector max(Vector a, Vector b) {
        return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
    }
    static float largest(Vector a) {
        float found = a.lane[0];
        for (int i = 1; i < lanes; ++i) found = a.lane[i] > found ? a.lane[i] : found;
        return found;
    }
    static float total(Vector a) {
        float sum = 0.0f;
        for (int i = 0; i < lanes; ++i) sum += a.lane[i];
        return sum;
    }
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
    static Vector sqrt(Vector a) {
        return each([&](int i) { return sqrtf(a.lane[i]); });
    }
    // value * 2^n, where the low bits of `shifted` hold the integer n.
    static Vector times_power(Vector value, Vector shifted) {
        Vector result;
        for (int i = 0; i < lanes; ++i) {
            uint32_t bits, power;
            memcpy(&bits, &value.lane[i], 4);
            memcpy(&power, &shifted.lane[i], 4);
            bits += power << 23;
            memcpy(&result.lane[i], &bits, 4);
        }
        return result;
    }
    // The first `count` lanes, zero in the others.
    static Vector keep(Vector a, int count) {
        return each([&](int i) { return i < count ? a.lane[i] : 0.0f; });
    }
    // Zero where x < bound; where x is NaN, the value stays.
    static Vector zero_below(Vector a, Vector x, Vector bound) {
        return each([&](int i) { return x.lane[i] < bound.lane[i] ? 0.0f : a.lane[i]; });
    }
    // Whether any lane isn't within [low, high]; NaN isn't.
    static bool any_outside(Vector a, Vector low, Vector high) {
        bool outside = false;
        for (int i = 0; i < lanes; ++i)
            outside |= !(a.lane[i] >= low.lane[i] && a.lane[i] <= high.lane[i]);
        return outside;
    }
};

}  // namespace
