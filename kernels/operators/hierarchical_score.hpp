// The score of images with captions over all levels, from padded arrays, by the alignment kernel.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "input_error.hpp"
#include "parallel_for.hpp"

namespace hat_operators {

inline constexpr std::size_t kLevels = 3;

// Features of one level, [items, rows, dim]: regions of images or padded words of captions.
struct Features {
    const float* data;
    std::int64_t items;
    std::int64_t rows;
    std::int64_t dim;
};

struct Inputs {
    std::array<Features, kLevels> images;  // level 1, 2, 3: the same items and dim
    std::array<Features, kLevels> texts;   // level 1, 2, 3: all alike
    const std::int64_t* mask;              // [captions, words]: 1 on real words, which come first
};

struct Settings {
    std::int32_t direction;  // hat_alignment_direction
    float softmax_lambda;
};

// Words of every caption. Throws InputError unless each row of the mask is ones, then zeros, with
// at least one one.
std::vector<std::int64_t> caption_lengths(const std::int64_t* mask, std::int64_t captions,
                                          std::int64_t words);

// Writes scores [images, captions], the sum of the levels. A score's bits depend on its own image
// and caption only. Throws InputError where the kernel refuses the input or a score isn't finite,
// std::bad_alloc where there is no memory; the scores are unspecified then.
void hierarchical_score(const Inputs& inputs, const Settings& settings,
                        const ParallelFor& parallel_for, float* scores);

}  // namespace hat_operators
