// The product of uint8 rows with an int8 matrix as AVX2 code without VNNI computes it: vpmaddubsw
// sums two neighbouring products in 16 bits with saturation, vpmaddwd sums two of these in 32.
// What ONNX Runtime does on such a CPU, too; here so that its rounding can be had on any x86-64.
#include <immintrin.h>

#include <cstdint>

// left [rows, inner], right [columns, inner], out [rows, columns]; inner is a multiple of 32.
extern "C" __attribute__((target("avx2"))) void product(const uint8_t* left, const int8_t* right,
                                                        int32_t* out, int64_t rows, int64_t inner,
                                                        int64_t columns) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t column = 0; column < columns; ++column) {
            __m256i sum = _mm256_setzero_si256();
            for (int64_t at = 0; at < inner; at += 32) {
                const auto* a = reinterpret_cast<const __m256i*>(left + row * inner + at);
                const auto* b = reinterpret_cast<const __m256i*>(right + column * inner + at);
                const __m256i pairs =
                    _mm256_maddubs_epi16(_mm256_loadu_si256(a), _mm256_loadu_si256(b));
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
            }
            alignas(32) int32_t parts[8];
            _mm256_store_si256(reinterpret_cast<__m256i*>(parts), sum);
            int32_t total = 0;
            for (int32_t part : parts) total += part;
            out[row * columns + column] = total;
        }
    }
}
