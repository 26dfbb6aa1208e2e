#include "dispatch.hpp"

#include <cstdlib>
#include <cstring>

namespace hat_alignment {

namespace {

struct Path {
    const char* name;
    int32_t path;
};

// Fastest first.
constexpr Path kPaths[] = {{"avx512", HAT_ALIGNMENT_AVX512},
                           {"avx2", HAT_ALIGNMENT_AVX2},
                           {"neon", HAT_ALIGNMENT_NEON},
                           {"scalar", HAT_ALIGNMENT_SCALAR}};

}  // namespace

int32_t available_paths() noexcept {
    int32_t paths = 1 << HAT_ALIGNMENT_SCALAR;
#ifdef HAT_ALIGNMENT_BUILD_X86
    // The built-ins ask the operating system too whether it saves the wide registers.
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        paths |= 1 << HAT_ALIGNMENT_AVX2;
        if (__builtin_cpu_supports("avx512f")) paths |= 1 << HAT_ALIGNMENT_AVX512;
    }
#endif
#ifdef HAT_ALIGNMENT_BUILD_NEON
    paths |= 1 << HAT_ALIGNMENT_NEON;  // part of every AArch64
#endif
    return paths;
}

hat_alignment_status resolve_path(int32_t path, int32_t* resolved) noexcept {
    if (path < HAT_ALIGNMENT_AUTO || path > HAT_ALIGNMENT_NEON) return HAT_ALIGNMENT_BAD_PATH;
    const int32_t available = available_paths();
    if (path == HAT_ALIGNMENT_AUTO) {
        const char* wanted = std::getenv("HAT_EXPORT_KERNEL_PATH");
        const bool any = !wanted || !*wanted || std::strcmp(wanted, "auto") == 0;
        for (const Path& candidate : kPaths) {
            if (any ? available >> candidate.path & 1 : !std::strcmp(wanted, candidate.name)) {
                path = candidate.path;
                break;
            }
        }
        if (path == HAT_ALIGNMENT_AUTO) return HAT_ALIGNMENT_BAD_ENVIRONMENT;
    }
    if (!(available >> path & 1)) return HAT_ALIGNMENT_PATH_UNAVAILABLE;
    *resolved = path;
    return HAT_ALIGNMENT_OK;
}

const Kernel& kernel_of(int32_t path) noexcept {
    switch (path) {
#ifdef HAT_ALIGNMENT_BUILD_X86
        case HAT_ALIGNMENT_AVX2:
            return avx2_kernel;
        case HAT_ALIGNMENT_AVX512:
            return avx512_kernel;
#endif
#ifdef HAT_ALIGNMENT_BUILD_NEON
        case HAT_ALIGNMENT_NEON:
            return neon_kernel;
#endif
        default:
            return scalar_kernel;
    }
}

}  // namespace hat_alignment
