#include "int8_products.hpp"

#include <cstdlib>
#include <cstring>
#include <string>

#include "../alignment/alignment.h"
#include "input_error.hpp"

#ifdef HAT_ALIGNMENT_BUILD_X86
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace hat_operators {

void int8_products_scalar(const uint8_t* x, int64_t rows, int64_t depth, const int8_t* panel,
                          int32_t* sums) {
    for (int64_t r = 0; r < rows; ++r) {
        int32_t* sum = sums + r * kPanelColumns;
        for (int64_t c = 0; c < kPanelColumns; ++c) sum[c] = 0;
        for (int64_t k = 0; k < depth; k += 4) {
            const uint8_t* left = x + r * depth + k;
            const int8_t* right = panel + k * kPanelColumns;
            for (int64_t c = 0; c < kPanelColumns; ++c)
                sum[c] += left[0] * right[4 * c] + left[1] * right[4 * c + 1] +
                          left[2] * right[4 * c + 2] + left[3] * right[4 * c + 3];
        }
    }
}

namespace {

struct Way {
    const char* name;
    Int8Products products;
    std::int32_t path;  // of the other kernels, at least
    bool (*available)();
    std::int64_t largest = 128;  // magnitude of a weight
};

#ifdef HAT_ALIGNMENT_BUILD_X86

// What __builtin_cpu_supports doesn't know before GCC 13. Asked once: where the machine is a
// virtual one, the question leaves it, which takes longer than many a product.
struct Features {
    bool avxvnni = false;
    bool amx = false;

    Features() {
        constexpr unsigned kAvxVnni = 1u << 4, kTile = 1u << 24, kTileInt8 = 1u << 25;
        unsigned a = 0, b = 0, c = 0, d = 0;
        avxvnni = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kAvxVnni) != 0;
#ifdef __linux__
        // The system lets a process use tiles when it is asked.
        constexpr long kRequestPermission = 0x1023, kTileData = 18;
        if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTile) != 0 && (d & kTileInt8) != 0)
            amx = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#endif
    }
};

const Features& features() {
    static const Features found;
    return found;
}

bool has_avxvnni() { return features().avxvnni; }
bool has_vnni() { return __builtin_cpu_supports("avx512vnni"); }
bool has_amx() { return features().amx; }

#endif

bool always() { return true; }

// Fastest first.
constexpr Way kWays[] = {
#ifdef HAT_ALIGNMENT_BUILD_X86
    {"amx", int8_products_amx, HAT_ALIGNMENT_AVX512, has_amx},
    {"vnni", int8_products_vnni, HAT_ALIGNMENT_AVX512, has_vnni},
    {"avxvnni", int8_products_avxvnni, HAT_ALIGNMENT_AVX2, has_avxvnni},
    {"avx2-small", int8_products_avx2_small, HAT_ALIGNMENT_AVX2, always, kSmallWeights},
    {"avx2", int8_products_avx2, HAT_ALIGNMENT_AVX2, always},
#endif
    {"scalar", int8_products_scalar, HAT_ALIGNMENT_SCALAR, always},
};

// Paths in the order of what they need.
int needs(std::int32_t path) {
    return path == HAT_ALIGNMENT_AVX512 ? 2 : path == HAT_ALIGNMENT_AVX2 ? 1 : 0;
}

}  // namespace

Int8Products int8_products_here(std::int32_t path, std::int64_t largest) {
    const char* wanted = std::getenv("HAT_EXPORT_INT8_PRODUCTS");
    const bool any = !wanted || !*wanted || std::strcmp(wanted, "auto") == 0;
    for (const Way& way : kWays)
        if (needs(path) >= needs(way.path) && largest <= way.largest &&
            (any || !std::strcmp(wanted, way.name)) && way.available())
            return way.products;
    throw InputError(std::string("HAT_EXPORT_INT8_PRODUCTS: expected auto, or what this CPU "
                                 "and these weights allow of amx, vnni, avxvnni, avx2-small, "
                                 "avx2 and scalar, got ") +
                     wanted);
}

}  // namespace hat_operators
