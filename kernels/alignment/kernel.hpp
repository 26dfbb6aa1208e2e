// The fused score for one group of images, in terms of `Vector` (see vector_*.hpp).
//
// Every translation unit that includes this has compile flags of its own, so everything lives in an
// unnamed namespace and nothing of the C++ library is used: a shared inline function compiled for
// AVX-512 might otherwise be the copy that the linker keeps for all.
#pragma once

#include <math.h>
#include <stdint.h>

#include "plan.hpp"
#include "product.hpp"

namespace {

using hat_alignment::Plan;

constexpr int kStripVectors = 4;  // vectors of regions whose attention is worked on together
constexpr float kSlope = 0.1f;    // of the leaky ReLU
constexpr float kNormEpsilon = 1e-8f;
constexpr float kCosineFloor = 1e-8f;
// |leaky / norm| <= 1, so that |exponent| <= lambda: up to here exp(2 lambda) leaves float32 room
// for any sensible features, and no maximum has to be subtracted.
constexpr float kLargestPlainLambda = 20.0f;
// Squares outside this range are computed again in float64.
constexpr float kSmallest = 1e-30f;
constexpr float kLargest = 1e37f;

inline bool finite(double value) { return value - value == 0.0; }
inline float leaky(float value) { return value > 0.0f ? value : kSlope * value; }
inline Vector leaky(Vector value) { return Vector::max(value, value * Vector::set(kSlope)); }

inline double sum_lanes(Vector value) {
    float lane[kLanes];
    value.store(lane);
    double sum = 0.0;
    for (int i = 0; i < kLanes; ++i) sum += static_cast<double>(lane[i]);
    return sum;
}

// 2^(value * scale - shift), the last only if Shifted. The product isn't rounded before the
// subtraction (where there is a fused multiply-add), so that a large lambda costs no digits.
template <bool Shifted>
inline Vector attention(Vector value, Vector scale, Vector shift) {
    const Vector shifter = Vector::set(kShifter);
    if constexpr (Shifted) {
        Vector x = Vector::multiply_add(value, scale, Vector::set(0.0f) - shift);
        x = Vector::max(x, Vector::set(-126.0f));  // 1e-38 of the largest: nothing
        const Vector shifted = x + shifter;
        return power_of_two(shifted, x - (shifted - shifter));
    } else {
        const Vector shifted = Vector::multiply_add(value, scale, shifter);
        const Vector whole = shifted - shifter;
        return power_of_two(shifted, Vector::multiply_add(value, scale, Vector::set(0.0f) - whole));
    }
}

// Packs the transpose of rows [count, depth] for `product`; columns past `count` are zero.
void pack_transposed(const float* rows, int64_t count, int64_t depth, int64_t columns,
                     float* packed) {
    constexpr int64_t kBlock = 16;  // floats in a cache line
    for (int64_t v = 0; v < columns / kLanes;) {
        const int64_t wide = panel_vectors(columns / kLanes - v) * kLanes;
        const int64_t first = v * kLanes;
        float* panel = packed + first * depth;
        for (int64_t k = 0; k < depth; k += kBlock) {
            const int64_t end = least(k + kBlock, depth);
            for (int64_t j = 0; j < wide; ++j) {
                const bool real = first + j < count;
                const float* from = rows + (first + j) * depth;
                for (int64_t i = k; i < end; ++i) panel[i * wide + j] = real ? from[i] : 0.0f;
            }
        }
        v += wide / kLanes;
    }
}

// Packs rows [depth, width] as they are for `product`; columns past `width` are zero.
void pack_straight(const float* rows, int64_t depth, int64_t width, int64_t columns,
                   float* packed) {
    for (int64_t v = 0; v < columns / kLanes;) {
        const int64_t wide = panel_vectors(columns / kLanes - v) * kLanes;
        const int64_t first = v * kLanes;
        float* panel = packed + first * depth;
        for (int64_t k = 0; k < depth; ++k) {
            for (int64_t j = 0; j < wide; ++j)
                panel[k * wide + j] = first + j < width ? rows[k * width + first + j] : 0.0f;
        }
        v += wide / kLanes;
    }
}

// ------------------------------------------------------------------------------ workspace

// One thread's scratch memory, cut into arrays; every one starts on a cache line.
struct Workspace {
    float* packed;        // regions of the group, as columns
    float* packed_rows;   // t2i: regions of the group, as rows, image after image
    float* norms;         // i2t: |x|, a vector's worth of slack behind
    float* dots;          // [rows_per_block, dots_stride]
    float* attention;     // i2t: [words, strip]; t2i: [words, regions]
    float* gram;          // i2t: upper triangle, off-diagonal entries doubled
    float* word_scale;    // i2t: lambda log2(e) / norm over regions
    float* word_norm;     // |c|
    float* region_scale;  // t2i: lambda log2(e) / norm over words
    float* attended;      // t2i: [words, columns of width]
    int64_t columns;      // of the group, whole vectors
    int64_t dots_stride;
    int64_t width_columns;
    int64_t attention_stride;
    int64_t floats;
};

Workspace cut(const Plan& plan, float* base) {
    const hat_alignment_request& request = *plan.request;
    const bool i2t = request.direction == HAT_ALIGNMENT_I2T;
    const int64_t regions = request.regions_per_image;
    const int64_t longest = plan.longest_caption;
    Workspace space = {};
    space.columns = round_up(plan.images_per_group * regions, kLanes);
    // Slack for the last image's loads; and no stride of whole pages' halves, on which rows
    // would fall into the same few cache sets.
    space.dots_stride = round_up(space.columns + kLanes, 16);
    if (space.dots_stride % 256 == 0) space.dots_stride += 16;
    space.width_columns = round_up(request.width, kLanes);
    space.attention_stride = i2t ? kStripVectors * kLanes : round_up(regions, kLanes);
    int64_t used = 0;
    const auto take = [&](int64_t floats) {
        float* start = base ? base + used : nullptr;
        used += round_up(floats, 16);
        return start;
    };
    space.packed = take(space.columns * request.width);
    space.packed_rows = take(i2t ? 0 : plan.images_per_group * regions * space.width_columns);
    space.norms = take(i2t ? space.columns + kLanes : 0);
    space.dots = take(plan.rows_per_block * space.dots_stride);
    space.attention = take(longest * space.attention_stride);
    space.gram = take(i2t ? longest * longest : 0);
    space.word_scale = take(i2t ? longest : 0);
    space.word_norm = take(longest);
    space.region_scale = take(i2t ? 0 : space.attention_stride);
    space.attended = take(i2t ? 0 : longest * space.width_columns);
    space.floats = used;
    return space;
}

// ------------------------------------------------------------------------------------ i2t

struct Caption {
    const double* gram;  // [words, words]
    int64_t words;
    float lowest_share;  // of (sum a |c|)^2: a smaller |v|^2 is computed again in float64
};

// Fills the float32 gram and |c|; false where the gram isn't finite.
bool prepare_gram(const Caption& caption, const Workspace& space, bool triangle) {
    const int64_t words = caption.words;
    bool fine = true;
    for (int64_t w = 0; w < words; ++w) {
        const double* row = caption.gram + w * words;
        space.word_norm[w] = static_cast<float>(sqrt(row[w]));
        fine &= finite(space.word_norm[w]);
        if (!triangle) continue;
        float* upper = space.gram + w * words;
        for (int64_t v = 0; v < w; ++v) upper[v] = 0.0f;
        upper[w] = static_cast<float>(row[w]);
        for (int64_t v = w + 1; v < words; ++v) upper[v] = static_cast<float>(2.0 * row[v]);
        for (int64_t v = w; v < words; ++v) fine &= finite(row[v]);
    }
    return fine;
}

// word_scale[w] = lambda log2(e) / (|leaky dots of w over the regions| + 1e-8); false where that
// norm isn't finite.
bool scale_words(const float* dots, int64_t stride, int64_t words, int64_t regions,
                 float softmax_lambda, float* word_scale) {
    const float numerator = softmax_lambda * kLog2E;
    const Vector zero = Vector::set(0.0f);
    bool fine = true;
    for (int64_t w = 0; w < words; ++w) {
        const float* row = dots + w * stride;
        Vector sum[4] = {zero, zero, zero, zero};
        int64_t r = 0;
        for (; r + 4 * kLanes <= regions; r += 4 * kLanes) {
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const Vector value = leaky(Vector::load(row + r + j * kLanes));
                sum[j] = Vector::multiply_add(value, value, sum[j]);
            }
        }
        for (; r < regions; r += kLanes) {
            const int count = static_cast<int>(least(regions - r, kLanes));
            const Vector value = leaky(Vector::keep(Vector::load(row + r), count));
            sum[0] = Vector::multiply_add(value, value, sum[0]);
        }
        double squares = sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
        if (!(squares <= static_cast<double>(kLargest))) {
            squares = 0.0;
            for (int64_t i = 0; i < regions; ++i) {
                const double value = static_cast<double>(leaky(row[i]));
                squares += value * value;
            }
        }
        const float norm = static_cast<float>(sqrt(squares));
        fine &= finite(norm);
        word_scale[w] = numerator / (norm + kNormEpsilon);
    }
    return fine;
}

// The cosine of one region, where the float32 one can't be trusted: words that cancel in the
// attended vector, or squares outside float32's range.
float exact_cosine(const float* dots, int64_t stride, const float* attention,
                   int64_t attention_stride, const Caption& caption, float region_norm) {
    double inner = 0.0, squared = 0.0, sum = 0.0;
    for (int64_t w = 0; w < caption.words; ++w) {
        const double weight = static_cast<double>(attention[w * attention_stride]);
        const double* row = caption.gram + w * caption.words;
        double other = 0.0;
        for (int64_t v = 0; v < w; ++v)
            other += row[v] * static_cast<double>(attention[v * attention_stride]);
        squared += weight * (2.0 * other + weight * row[w]);
        inner += weight * static_cast<double>(dots[w * stride]);
        sum += weight;
    }
    const double product = sqrt(squared > 0.0 ? squared : 0.0) * static_cast<double>(region_norm);
    const double floor = static_cast<double>(kCosineFloor) * sum;
    const double cosine = inner / (product < floor ? floor : product);  // NaN stays NaN
    // Cauchy-Schwarz; rounding of the dot products may exceed it where the vector all but vanishes.
    if (cosine > 1.0) return 1.0f;
    return cosine < -1.0 ? -1.0f : static_cast<float>(cosine);
}

// Cosines of Count vectors of regions, added to total. With Tail, only `last` lanes of the last
// vector are regions; their dot products are set to zero, and so are then their cosines.
template <int Count, bool Shifted, bool Tail>
Vector strip(const float* dots, int64_t stride, const float* norms, const Workspace& space,
             const Caption& caption, int last, Vector total) {
    constexpr int64_t kStride = kStripVectors * kLanes;
    const int64_t words = caption.words;
    const Vector zero = Vector::set(0.0f);
    float* const weights = space.attention;
    const auto load = [&](int64_t w, int j) {
        const Vector value = Vector::load(dots + w * stride + j * kLanes);
        return Tail && j == Count - 1 ? Vector::keep(value, last) : value;
    };

    Vector largest[Count];
    if constexpr (Shifted) {
        for (int j = 0; j < Count; ++j) {
            largest[j] = leaky(load(0, j)) * Vector::set(space.word_scale[0]);
            for (int64_t w = 1; w < words; ++w)
                largest[j] =
                    Vector::max(largest[j], leaky(load(w, j)) * Vector::set(space.word_scale[w]));
        }
    }

    Vector inner[Count], sum[Count], bound[Count], squared[Count];
#pragma GCC unroll 4
    for (int j = 0; j < Count; ++j) inner[j] = sum[j] = bound[j] = squared[j] = zero;
    for (int64_t w = 0; w < words; ++w) {
        const Vector scale = Vector::set(space.word_scale[w]);
        const Vector norm = Vector::set(space.word_norm[w]);
#pragma GCC unroll 4
        for (int j = 0; j < Count; ++j) {
            const Vector value = load(w, j);
            const Vector weight =
                attention<Shifted>(leaky(value), scale, Shifted ? largest[j] : zero);
            inner[j] = Vector::multiply_add(weight, value, inner[j]);
            bound[j] = Vector::multiply_add(weight, norm, bound[j]);
            sum[j] = sum[j] + weight;
            weight.store(weights + w * kStride + j * kLanes);
        }
    }

    // a^T G a by the doubled upper triangle, two rows at a time; the entry of the second row
    // below the diagonal is zero.
    int64_t w = 0;
    for (; w + 1 < words; w += 2) {
        const float* upper = space.gram + w * words;
        const float* lower = upper + words;
        Vector first[Count], second[Count];
#pragma GCC unroll 4
        for (int j = 0; j < Count; ++j) first[j] = second[j] = zero;
        for (int64_t v = w; v < words; ++v) {
            const Vector up = Vector::set(upper[v]);
            const Vector low = Vector::set(lower[v]);
#pragma GCC unroll 4
            for (int j = 0; j < Count; ++j) {
                const Vector weight = Vector::load(weights + v * kStride + j * kLanes);
                first[j] = Vector::multiply_add(up, weight, first[j]);
                second[j] = Vector::multiply_add(low, weight, second[j]);
            }
        }
#pragma GCC unroll 4
        for (int j = 0; j < Count; ++j) {
            const float* weight = weights + w * kStride + j * kLanes;
            squared[j] = Vector::multiply_add(Vector::load(weight), first[j], squared[j]);
            squared[j] =
                Vector::multiply_add(Vector::load(weight + kStride), second[j], squared[j]);
        }
    }
    if (w < words) {
        const Vector corner = Vector::set(space.gram[w * words + w]);
        for (int j = 0; j < Count; ++j) {
            const Vector weight = Vector::load(weights + w * kStride + j * kLanes);
            squared[j] = Vector::multiply_add(corner * weight, weight, squared[j]);
        }
    }

    const Vector highest = Vector::set(kLargest);
    for (int j = 0; j < Count; ++j) {
        const Vector lowest = Vector::max(bound[j] * bound[j] * Vector::set(caption.lowest_share),
                                          Vector::set(kSmallest));
        const Vector product =
            Vector::sqrt(Vector::max(squared[j], zero)) * Vector::load(norms + j * kLanes);
        // The floor comes first: where the product is NaN, x86 returns the second.
        Vector cosine = inner[j] / Vector::max(sum[j] * Vector::set(kCosineFloor), product);
        if (Vector::any_outside(squared[j], lowest, highest)) {
            float low[kLanes], square[kLanes], lane[kLanes];
            lowest.store(low);
            squared[j].store(square);
            cosine.store(lane);
            const int count = Tail && j == Count - 1 ? last : kLanes;
            for (int i = 0; i < count; ++i) {
                if (square[i] >= low[i] && square[i] <= kLargest) continue;
                const int64_t column = j * kLanes + i;
                lane[i] = exact_cosine(dots + column, stride, weights + column, kStride, caption,
                                       norms[column]);
            }
            // Lanes past the last region: a division of zero by what may be infinite or zero.
            for (int i = count; i < kLanes; ++i) lane[i] = 0.0f;
            cosine = Vector::load(lane);
        }
        if (Tail && j == Count - 1) cosine = Vector::keep(cosine, last);
        total = total + cosine;
    }
    return total;
}

template <bool Shifted, int Count = kStripVectors>
Vector last_strip(int64_t vectors, const float* dots, int64_t stride, const float* norms,
                  const Workspace& space, const Caption& caption, int last, Vector total) {
    if constexpr (Count > 1) {
        if (vectors < Count)
            return last_strip<Shifted, Count - 1>(vectors, dots, stride, norms, space, caption,
                                                  last, total);
    }
    return strip<Count, Shifted, true>(dots, stride, norms, space, caption, last, total);
}

// Score of one image with one caption, from their dot products.
template <bool Shifted>
float score_i2t(const Plan& plan, const Workspace& space, const float* dots, const float* norms,
                const Caption& caption) {
    const int64_t regions = plan.request->regions_per_image;
    const int64_t stride = space.dots_stride;
    if (!scale_words(dots, stride, caption.words, regions, plan.request->softmax_lambda,
                     space.word_scale))
        return NAN;
    Vector total = Vector::set(0.0f);
    int64_t r = 0;
    for (; r + kStripVectors * kLanes < regions; r += kStripVectors * kLanes)
        total = strip<kStripVectors, Shifted, false>(dots + r, stride, norms + r, space, caption,
                                                     kLanes, total);
    const int64_t vectors = (regions - r + kLanes - 1) / kLanes;
    const int last = static_cast<int>(regions - r - (vectors - 1) * kLanes);
    total = last_strip<Shifted>(vectors, dots + r, stride, norms + r, space, caption, last, total);
    return static_cast<float>(sum_lanes(total) / static_cast<double>(regions));
}

// ------------------------------------------------------------------------------------ t2i

// region_scale[r] = lambda log2(e) / (|leaky dots of r over the words| + 1e-8), zero past the last
// region; false where that norm isn't finite.
bool scale_regions(const float* dots, int64_t stride, int64_t words, int64_t regions,
                   float softmax_lambda, float* region_scale) {
    const Vector numerator = Vector::set(softmax_lambda * kLog2E);
    const Vector zero = Vector::set(0.0f);
    const Vector highest = Vector::set(kLargest);
    bool fine = true;
    for (int64_t r = 0; r < regions; r += kLanes) {
        const int count = static_cast<int>(least(regions - r, kLanes));
        Vector squares = zero;
        for (int64_t w = 0; w < words; ++w) {
            const Vector value = leaky(Vector::keep(Vector::load(dots + w * stride + r), count));
            squares = Vector::multiply_add(value, value, squares);
        }
        const Vector norm = Vector::sqrt(squares) + Vector::set(kNormEpsilon);
        Vector::keep(numerator / norm, count).store(region_scale + r);
        if (!Vector::any_outside(squares, zero, highest)) continue;
        for (int i = 0; i < count; ++i) {
            double exact = 0.0;
            for (int64_t w = 0; w < words; ++w) {
                const double value = static_cast<double>(leaky(dots[w * stride + r + i]));
                exact += value * value;
            }
            const float size = static_cast<float>(sqrt(exact));
            fine &= finite(size);
            region_scale[r + i] = softmax_lambda * kLog2E / (size + kNormEpsilon);
        }
    }
    return fine;
}

// Attention of one word over the regions, unnormalised, written to `weights` (zero past the last
// region); with its sum and its inner product with the dot products.
template <bool Shifted>
void attend(const float* dots, int64_t regions, const float* region_scale, float* weights,
            double* sum, double* inner) {
    const Vector zero = Vector::set(0.0f);
    Vector shift = zero;
    if constexpr (Shifted) {
        float largest = leaky(dots[0]) * region_scale[0];
        for (int64_t r = 1; r < regions; ++r) {
            const float value = leaky(dots[r]) * region_scale[r];
            largest = value > largest ? value : largest;
        }
        shift = Vector::set(largest);
    }
    Vector weight_sum = zero, inner_sum = zero;
    for (int64_t r = 0; r < regions; r += kLanes) {
        const int count = static_cast<int>(least(regions - r, kLanes));
        const Vector value = Vector::keep(Vector::load(dots + r), count);
        const Vector weight = Vector::keep(
            attention<Shifted>(leaky(value), Vector::load(region_scale + r), shift), count);
        weight.store(weights + r);
        weight_sum = weight_sum + weight;
        inner_sum = Vector::multiply_add(weight, value, inner_sum);
    }
    *sum = sum_lanes(weight_sum);
    *inner = sum_lanes(inner_sum);
}

double squared_norm(const float* row, int64_t columns) {
    Vector squares = Vector::set(0.0f);
    for (int64_t k = 0; k < columns; k += kLanes) {
        const Vector value = Vector::load(row + k);
        squares = Vector::multiply_add(value, value, squares);
    }
    double sum = sum_lanes(squares);
    if (sum >= static_cast<double>(kSmallest) && sum <= static_cast<double>(kLargest)) return sum;
    sum = 0.0;
    for (int64_t k = 0; k < columns; ++k)
        sum += static_cast<double>(row[k]) * static_cast<double>(row[k]);
    return sum;
}

// Score of one image with one caption, from their dot products and the image's packed rows.
template <bool Shifted>
float score_t2i(const Plan& plan, const Workspace& space, const float* dots, const float* rows,
                const Caption& caption) {
    const int64_t regions = plan.request->regions_per_image;
    const int64_t words = caption.words;
    if (!scale_regions(dots, space.dots_stride, words, regions, plan.request->softmax_lambda,
                       space.region_scale))
        return NAN;
    double total = 0.0;
    for (int64_t first = 0; first < words; first += kTileRows) {
        const int64_t count = least(words - first, kTileRows);
        double sum[kTileRows], inner[kTileRows];
        for (int64_t i = 0; i < count; ++i)
            attend<Shifted>(dots + (first + i) * space.dots_stride, regions, space.region_scale,
                            space.attention + i * space.attention_stride, sum + i, inner + i);
        product(space.attention, space.attention_stride, count, rows, space.width_columns, regions,
                nullptr, space.attended, space.width_columns);
        for (int64_t i = 0; i < count; ++i) {
            const double squared =
                squared_norm(space.attended + i * space.width_columns, space.width_columns);
            const double size = sqrt(squared) * static_cast<double>(space.word_norm[first + i]);
            const double floor = static_cast<double>(kCosineFloor) * sum[i];
            if (!finite(size)) return NAN;
            total += inner[i] / (size > floor ? size : floor);
        }
    }
    return static_cast<float>(total / static_cast<double>(words));
}

// ------------------------------------------------------------------------------------ run

int64_t workspace_floats(const Plan& plan) { return cut(plan, nullptr).floats; }

void put(const hat_alignment_request& request, int64_t image, int64_t caption, float score) {
    float* to = request.scores + image * request.scores_stride + caption;
    *to = request.add ? *to + score : score;
}

float score_pair(const Plan& plan, const Workspace& space, const Caption& caption, int64_t image,
                 const float* dots) {
    const hat_alignment_request& request = *plan.request;
    const int64_t regions = request.regions_per_image;
    const bool shifted = request.softmax_lambda > kLargestPlainLambda;
    dots += image * regions;
    if (request.direction == HAT_ALIGNMENT_I2T) {
        const float* norms = space.norms + image * regions;
        return shifted ? score_i2t<true>(plan, space, dots, norms, caption)
                       : score_i2t<false>(plan, space, dots, norms, caption);
    }
    const float* rows = space.packed_rows + image * regions * space.width_columns;
    return shifted ? score_t2i<true>(plan, space, dots, rows, caption)
                   : score_t2i<false>(plan, space, dots, rows, caption);
}

void run_group(const Plan& plan, float* workspace, int64_t group, int64_t first, int64_t last) {
    const hat_alignment_request& request = *plan.request;
    const bool i2t = request.direction == HAT_ALIGNMENT_I2T;
    const int64_t regions = request.regions_per_image;
    const int64_t width = request.width;
    const int64_t first_image = group * plan.images_per_group;
    const int64_t images = least(plan.images_per_group, request.images - first_image);
    const int64_t columns = round_up(images * regions, kLanes);
    const float* rows = request.regions + first_image * regions * width;
    const Workspace space = cut(plan, workspace);

    pack_transposed(rows, images * regions, width, columns, space.packed);
    if (i2t) {
        const float* norms = request.region_norms + first_image * regions;
        for (int64_t i = 0; i < columns + kLanes; ++i)
            space.norms[i] = i >= images * regions ? 0.0f : finite(norms[i]) ? norms[i] : NAN;
    } else {
        for (int64_t i = 0; i < images; ++i)
            pack_straight(rows + i * regions * width, regions, width, space.width_columns,
                          space.packed_rows + i * regions * space.width_columns);
    }

    for (int64_t c = first; c < last;) {
        // As many whole captions as fit into a block of rows.
        const int64_t start = request.caption_start[c];
        int64_t end = c + 1;
        while (end < last && request.caption_start[end + 1] - start <= plan.rows_per_block) ++end;
        product(request.words + start * width, width, request.caption_start[end] - start,
                space.packed, columns, width,
                request.word_offset ? request.word_offset + start : nullptr, space.dots,
                space.dots_stride);
        for (; c < end; ++c) {
            const int64_t words = request.caption_start[c + 1] - request.caption_start[c];
            const float share = 1.0f / (words > 16 ? 4.0f * static_cast<float>(words) : 64.0f);
            const Caption caption = {request.gram + plan.gram_start[c], words, share};
            const bool fine = prepare_gram(caption, space, i2t);
            const float* dots = space.dots + (request.caption_start[c] - start) * space.dots_stride;
            for (int64_t i = 0; i < images; ++i)
                put(request, first_image + i, c,
                    fine ? score_pair(plan, space, caption, i, dots) : NAN);
        }
    }
}

}  // namespace
