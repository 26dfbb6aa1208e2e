#include "int8_products.hpp"
#include "int8_products_ymm.hpp"

namespace hat_operators {

namespace {

struct Vnni {
    using Right = __m256i;
    static Right prepare(__m256i bytes) { return bytes; }
    static __m256i add(__m256i sum, __m256i left, Right right) {
        return _mm256_dpbusd_avx_epi32(sum, left, right);
    }
};

}  // namespace

void int8_products_avxvnni(const uint8_t* x, int64_t rows, int64_t depth, const int8_t* panel,
                           int32_t* sums) {
    ymm_products<Vnni>(x, rows, depth, panel, sums);
}

}  // namespace hat_operators
