// The C interface: checks what it is given, cuts the work into tasks and runs them.
#include "alignment.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#include "dispatch.hpp"
#include "parallel.hpp"
#include "plan.hpp"

namespace {

using hat_alignment::Kernel;
using hat_alignment::Plan;

constexpr std::int64_t kLargestSide = std::int64_t{1} << 20;   // regions, width, words, threads
constexpr std::int64_t kLargestArray = std::int64_t{1} << 48;  // elements: products can't overflow
// Regions of small images are multiplied together: about as many columns as level 1 has.
constexpr std::int64_t kColumnsPerGroup = 784;
// Words multiplied at a time: with the 784 columns a block of dot products takes 226 KiB, which
// leaves room in a level 2 cache of 512 KiB for a panel of regions.
constexpr std::int64_t kRowsPerBlock = 72;
constexpr std::int64_t kTasksPerThread = 4;
constexpr std::size_t kCacheLine = 64;

struct FreeAligned {
    void operator()(float* memory) const noexcept {
        ::operator delete[](memory, std::align_val_t{kCacheLine});
    }
};
using Memory = std::unique_ptr<float[], FreeAligned>;

Memory allocate(std::int64_t floats) {
    const std::size_t bytes = static_cast<std::size_t>(floats) * sizeof(float);
    return Memory(static_cast<float*>(::operator new[](bytes, std::align_val_t{kCacheLine})));
}

bool fits(std::int64_t a, std::int64_t b, std::int64_t c = 1) {
    std::int64_t product = 0;
    return !__builtin_mul_overflow(a, b, &product) &&
           !__builtin_mul_overflow(product, c, &product) && product <= kLargestArray;
}

hat_alignment_status check_captions(const std::int64_t* start, std::int64_t captions) {
    if (captions > 0 && start[0] != 0) return HAT_ALIGNMENT_BAD_CAPTION_START;
    for (std::int64_t c = 0; c < captions; ++c) {
        const std::int64_t words = start[c + 1] - start[c];
        if (words < 1 || words > kLargestSide) return HAT_ALIGNMENT_BAD_CAPTION_START;
    }
    return HAT_ALIGNMENT_OK;
}

hat_alignment_status check(const hat_alignment_request& request) {
    if (request.images < 0 || request.captions < 0 || request.regions_per_image < 1 ||
        request.width < 1 || request.regions_per_image > kLargestSide ||
        request.width > kLargestSide || request.scores_stride < request.captions ||
        !fits(request.images, request.regions_per_image, request.width) ||
        !fits(request.images, request.scores_stride))
        return HAT_ALIGNMENT_BAD_SIZE;
    if (!(request.softmax_lambda > 0.0f && request.softmax_lambda <= 1000.0f))
        return HAT_ALIGNMENT_BAD_LAMBDA;
    if (request.direction != HAT_ALIGNMENT_I2T && request.direction != HAT_ALIGNMENT_T2I)
        return HAT_ALIGNMENT_BAD_DIRECTION;
    if (request.threads < 1 || request.threads > 1024) return HAT_ALIGNMENT_BAD_THREADS;
    if (request.direction == HAT_ALIGNMENT_T2I && request.word_offset)
        return HAT_ALIGNMENT_OFFSET_IN_T2I;
    if (request.images == 0 || request.captions == 0) return HAT_ALIGNMENT_OK;
    if (!request.regions || !request.words || !request.gram || !request.caption_start ||
        !request.scores || (request.direction == HAT_ALIGNMENT_I2T && !request.region_norms))
        return HAT_ALIGNMENT_NULL_POINTER;
    const hat_alignment_status status = check_captions(request.caption_start, request.captions);
    if (status != HAT_ALIGNMENT_OK) return status;
    return fits(request.caption_start[request.captions], request.width) ? HAT_ALIGNMENT_OK
                                                                        : HAT_ALIGNMENT_BAD_SIZE;
}

// May throw std::bad_alloc, before anything is written.
void score(const hat_alignment_request& request, const Kernel& kernel) {
    std::vector<std::int64_t> gram_start(static_cast<std::size_t>(request.captions) + 1, 0);
    std::int64_t longest = 0;
    for (std::int64_t c = 0; c < request.captions; ++c) {
        const std::int64_t words = request.caption_start[c + 1] - request.caption_start[c];
        longest = std::max(longest, words);
        gram_start[static_cast<std::size_t>(c) + 1] =
            gram_start[static_cast<std::size_t>(c)] + words * words;
    }

    Plan plan{};
    plan.request = &request;
    plan.gram_start = gram_start.data();
    plan.images_per_group = std::clamp<std::int64_t>(
        (kColumnsPerGroup + request.regions_per_image / 2) / request.regions_per_image, 1,
        request.images);
    plan.rows_per_block = std::max(kRowsPerBlock, longest);
    plan.longest_caption = longest;

    // Captions are split only where there are too few groups of images to keep all threads busy:
    // each task packs its images anew.
    const std::int64_t groups =
        (request.images + plan.images_per_group - 1) / plan.images_per_group;
    const std::int64_t wanted = request.threads == 1 ? 1 : kTasksPerThread * request.threads;
    const std::int64_t parts =
        std::clamp<std::int64_t>((wanted + groups - 1) / groups, 1, request.captions);
    const std::int64_t tasks = groups * parts;
    const std::int64_t threads = std::min<std::int64_t>(request.threads, tasks);

    std::vector<Memory> workspaces;
    workspaces.reserve(static_cast<std::size_t>(threads));
    const std::int64_t floats = kernel.workspace(plan);
    for (std::int64_t i = 0; i < threads; ++i) workspaces.push_back(allocate(floats));

    hat_alignment::parallel_for(tasks, threads, [&](std::int64_t worker, std::int64_t task) {
        const std::int64_t group = task / parts;
        const std::int64_t part = task % parts;
        kernel.run(plan, workspaces[static_cast<std::size_t>(worker)].get(), group,
                   request.captions * part / parts, request.captions * (part + 1) / parts);
    });
}

// In float64, as eight sums: a single chain of additions would wait on itself, and couldn't be
// vectorised.
double inner_product(const float* a, const float* b, std::int64_t width) {
    constexpr std::int64_t kSums = 8;
    double sum[kSums] = {};
    std::int64_t k = 0;
    for (; k + kSums <= width; k += kSums)
        for (std::int64_t lane = 0; lane < kSums; ++lane)
            sum[lane] += static_cast<double>(a[k + lane]) * static_cast<double>(b[k + lane]);
    for (; k < width; ++k) sum[k % kSums] += static_cast<double>(a[k]) * static_cast<double>(b[k]);
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

}  // namespace

extern "C" {

std::int32_t hat_alignment_abi(void) { return HAT_ALIGNMENT_ABI; }

const char* hat_alignment_message(std::int32_t status) {
    switch (status) {
        case HAT_ALIGNMENT_OK:
            return "success";
        case HAT_ALIGNMENT_NULL_POINTER:
            return "a required array is null";
        case HAT_ALIGNMENT_BAD_SIZE:
            return "a size is out of range: regions and width must be 1 to 1048576, images and "
                   "captions 0 or more, the scores' row stride at least the number of captions";
        case HAT_ALIGNMENT_BAD_CAPTION_START:
            return "caption starts must begin with 0 and rise by 1 to 1048576 words a caption";
        case HAT_ALIGNMENT_BAD_LAMBDA:
            return "softmax lambda must be above 0 and at most 1000";
        case HAT_ALIGNMENT_BAD_DIRECTION:
            return "direction must be i2t or t2i";
        case HAT_ALIGNMENT_BAD_THREADS:
            return "threads must be 1 to 1024";
        case HAT_ALIGNMENT_BAD_PATH:
            return "path must be auto, scalar, avx2, avx512 or neon";
        case HAT_ALIGNMENT_PATH_UNAVAILABLE:
            return "the path asked for isn't in this build or this CPU can't run it";
        case HAT_ALIGNMENT_BAD_ENVIRONMENT:
            return "HAT_EXPORT_KERNEL_PATH must be auto, scalar, avx2, avx512 or neon";
        case HAT_ALIGNMENT_OFFSET_IN_T2I:
            return "t2i attends over full-width regions: it takes no word offsets";
        case HAT_ALIGNMENT_NO_MEMORY:
            return "not enough memory";
        default:
            return "unknown status";
    }
}

std::int32_t hat_alignment_available_paths(void) { return hat_alignment::available_paths(); }

std::int32_t hat_alignment_resolve_path(std::int32_t path, std::int32_t* resolved) {
    if (!resolved) return HAT_ALIGNMENT_NULL_POINTER;
    return hat_alignment::resolve_path(path, resolved);
}

std::int32_t hat_alignment_norms(const float* rows, std::int64_t count, std::int64_t width,
                                 float* norms) {
    if (count < 0 || width < 1 || !fits(count, width)) return HAT_ALIGNMENT_BAD_SIZE;
    if (count > 0 && (!rows || !norms)) return HAT_ALIGNMENT_NULL_POINTER;
    for (std::int64_t i = 0; i < count; ++i) {
        const float* row = rows + i * width;
        norms[i] = static_cast<float>(std::sqrt(inner_product(row, row, width)));
    }
    return HAT_ALIGNMENT_OK;
}

std::int32_t hat_alignment_gram(const float* words, const std::int64_t* caption_start,
                                std::int64_t captions, std::int64_t width, double* gram) {
    if (captions < 0 || width < 1 || width > kLargestSide) return HAT_ALIGNMENT_BAD_SIZE;
    if (captions == 0) return HAT_ALIGNMENT_OK;
    if (!words || !caption_start || !gram) return HAT_ALIGNMENT_NULL_POINTER;
    const hat_alignment_status status = check_captions(caption_start, captions);
    if (status != HAT_ALIGNMENT_OK) return status;
    if (!fits(caption_start[captions], width)) return HAT_ALIGNMENT_BAD_SIZE;
    for (std::int64_t c = 0; c < captions; ++c) {
        const float* rows = words + caption_start[c] * width;
        const std::int64_t count = caption_start[c + 1] - caption_start[c];
        for (std::int64_t i = 0; i < count; ++i) {
            for (std::int64_t j = 0; j <= i; ++j) {
                const double dot = inner_product(rows + i * width, rows + j * width, width);
                gram[i * count + j] = dot;
                gram[j * count + i] = dot;
            }
        }
        gram += count * count;
    }
    return HAT_ALIGNMENT_OK;
}

std::int32_t hat_alignment_score(const hat_alignment_request* request) {
    if (!request) return HAT_ALIGNMENT_NULL_POINTER;
    const hat_alignment_status status = check(*request);
    if (status != HAT_ALIGNMENT_OK) return status;
    std::int32_t path = HAT_ALIGNMENT_AUTO;
    const hat_alignment_status resolved = hat_alignment::resolve_path(request->path, &path);
    if (resolved != HAT_ALIGNMENT_OK) return resolved;
    if (request->images == 0 || request->captions == 0) return HAT_ALIGNMENT_OK;
    try {
        score(*request, hat_alignment::kernel_of(path));
    } catch (const std::exception&) {
        return HAT_ALIGNMENT_NO_MEMORY;
    }
    return HAT_ALIGNMENT_OK;
}

}  // extern "C"
