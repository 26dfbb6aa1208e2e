#include "int8_products.hpp"
#include "int8_products_ymm.hpp"

namespace hat_operators {

namespace {

// Bytes are widened to 16 bits, even and odd ones apart, and their products summed in 32.
struct Wide {
    struct Right {
        __m256i even, odd;
    };
    static Right prepare(__m256i bytes) {
        return {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)};
    }
    static __m256i add(__m256i sum, __m256i left, Right right) {
        const __m256i even = _mm256_and_si256(left, _mm256_set1_epi16(0xff));
        const __m256i odd = _mm256_srli_epi16(left, 8);
        const __m256i both = _mm256_add_epi32(_mm256_madd_epi16(even, right.even),
                                              _mm256_madd_epi16(odd, right.odd));
        return _mm256_add_epi32(sum, both);
    }
};

// Two products are summed in 16 bits, which weights up to kSmallWeights can't overflow.
struct Small {
    using Right = __m256i;
    static Right prepare(__m256i bytes) { return bytes; }
    static __m256i add(__m256i sum, __m256i left, Right right) {
        const __m256i pairs = _mm256_maddubs_epi16(left, right);
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
};

}  // namespace

void int8_products_avx2(const uint8_t* x, int64_t rows, int64_t depth, const int8_t* panel,
                        int32_t* sums) {
    ymm_products<Wide>(x, rows, depth, panel, sums);
}

void int8_products_avx2_small(const uint8_t* x, int64_t rows, int64_t depth, const int8_t* panel,
                              int32_t* sums) {
    ymm_products<Small>(x, rows, depth, panel, sums);
}

}  // namespace hat_operators
