#include "hierarchical_score.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <new>
#include <string>

#include "../alignment/alignment.h"

namespace hat_operators {

namespace {

// The official order of the sum: level 3, level 1, level 2.
constexpr std::size_t kSumOrder[kLevels] = {2, 0, 1};
// A task scores a few images with a part of the captions. The kernel packs the images anew for each
// part, so that captions are cut only where there are few images, and never into small parts.
constexpr std::int64_t kImagesPerTask = 4;
constexpr std::int64_t kWantedTasks = 64;
constexpr std::int64_t kLeastCaptionsPerTask = 64;

// The first error among tasks that run at the same time; none may leave a task as an exception,
// since the threads belong to somebody else.
class TaskStatus {
  public:
    void note(std::int32_t status) {
        std::int32_t none = HAT_ALIGNMENT_OK;
        if (status != HAT_ALIGNMENT_OK) first_.compare_exchange_strong(none, status);
    }

    void raise() const {
        const std::int32_t status = first_.load();
        if (status == HAT_ALIGNMENT_NO_MEMORY) throw std::bad_alloc();
        if (status != HAT_ALIGNMENT_OK) throw InputError(hat_alignment_message(status));
    }

  private:
    std::atomic<std::int32_t> first_{HAT_ALIGNMENT_OK};
};

template <class Value>
std::unique_ptr<Value[]> allocate(std::int64_t count) {
    return std::make_unique_for_overwrite<Value[]>(static_cast<std::size_t>(count));
}

// What one level brings to the kernel.
struct Level {
    std::unique_ptr<float[]> norms;  // [images, regions]; none in t2i
    std::unique_ptr<float[]> words;  // [total, dim], real words only
    std::unique_ptr<double[]> gram;  // per caption [W, W]
};

// Where the captions lie in the packed arrays of a level.
struct Layout {
    std::vector<std::int64_t> word_start;  // [captions + 1]
    std::vector<std::int64_t> gram_start;  // [captions + 1]
};

Layout layout_of(const std::vector<std::int64_t>& lengths) {
    Layout layout{{0}, {0}};
    for (const std::int64_t length : lengths) {
        layout.word_start.push_back(layout.word_start.back() + length);
        layout.gram_start.push_back(layout.gram_start.back() + length * length);
    }
    return layout;
}

std::int32_t prepare_caption(const Features& text, const Layout& layout, Level& level,
                             std::int64_t caption) {
    const auto c = static_cast<std::size_t>(caption);
    const std::int64_t start[2] = {0, layout.word_start[c + 1] - layout.word_start[c]};
    const float* padded = text.data + caption * text.rows * text.dim;
    float* words = level.words.get() + layout.word_start[c] * text.dim;
    std::copy_n(padded, start[1] * text.dim, words);
    return hat_alignment_gram(words, start, 1, text.dim, level.gram.get() + layout.gram_start[c]);
}

std::int32_t prepare_image(const Features& image, Level& level, std::int64_t index) {
    return hat_alignment_norms(image.data + index * image.rows * image.dim, image.rows, image.dim,
                               level.norms.get() + index * image.rows);
}

std::array<Level, kLevels> prepare(const Inputs& inputs, const Settings& settings,
                                   const Layout& layout, const ParallelFor& parallel_for) {
    const std::int64_t captions = inputs.texts[0].items;
    const bool with_norms = settings.direction == HAT_ALIGNMENT_I2T;
    const std::int64_t images = with_norms ? inputs.images[0].items : 0;
    std::array<Level, kLevels> levels;
    for (std::size_t l = 0; l < kLevels; ++l) {
        if (with_norms) levels[l].norms = allocate<float>(images * inputs.images[l].rows);
        levels[l].words = allocate<float>(layout.word_start.back() * inputs.texts[l].dim);
        levels[l].gram = allocate<double>(layout.gram_start.back());
    }
    TaskStatus status;
    const auto per_level = static_cast<std::size_t>(captions + images);
    parallel_for(kLevels * per_level, [&](std::size_t task) {
        const std::size_t l = task / per_level;
        const auto item = static_cast<std::int64_t>(task % per_level);
        status.note(item < captions ? prepare_caption(inputs.texts[l], layout, levels[l], item)
                                    : prepare_image(inputs.images[l], levels[l], item - captions));
    });
    status.raise();
    return levels;
}

// A half-open interval of images or captions.
struct Range {
    std::int64_t begin;
    std::int64_t end;
};

// May throw std::bad_alloc.
std::int32_t score_block(const Inputs& inputs, const Settings& settings, const Layout& layout,
                         const std::array<Level, kLevels>& levels, Range images, Range captions,
                         float* scores) {
    const auto first = layout.word_start.begin() + captions.begin;
    const std::int64_t first_word = *first;
    std::vector<std::int64_t> caption_start(first, first + (captions.end - captions.begin) + 1);
    for (std::int64_t& start : caption_start) start -= first_word;

    hat_alignment_request request{};
    request.caption_start = caption_start.data();
    request.scores_stride = inputs.texts[0].items;
    request.scores = scores + images.begin * request.scores_stride + captions.begin;
    request.images = images.end - images.begin;
    request.captions = captions.end - captions.begin;
    request.softmax_lambda = settings.softmax_lambda;
    request.direction = settings.direction;
    request.threads = 1;
    request.path = HAT_ALIGNMENT_AUTO;
    for (const std::size_t l : kSumOrder) {
        const Features& image = inputs.images[l];
        request.regions = image.data + images.begin * image.rows * image.dim;
        request.region_norms =
            levels[l].norms ? levels[l].norms.get() + images.begin * image.rows : nullptr;
        request.words = levels[l].words.get() + first_word * image.dim;
        request.gram =
            levels[l].gram.get() + layout.gram_start[static_cast<std::size_t>(captions.begin)];
        request.regions_per_image = image.rows;
        request.width = image.dim;
        const std::int32_t status = hat_alignment_score(&request);
        if (status != HAT_ALIGNMENT_OK) return status;
        request.add = 1;
    }
    return HAT_ALIGNMENT_OK;
}

}  // namespace

std::vector<std::int64_t> caption_lengths(const std::int64_t* mask, std::int64_t captions,
                                          std::int64_t words) {
    std::vector<std::int64_t> lengths;
    lengths.reserve(static_cast<std::size_t>(captions));
    for (std::int64_t c = 0; c < captions; ++c) {
        const std::int64_t* row = mask + c * words;
        std::int64_t length = 0;
        while (length < words && row[length] == 1) ++length;
        const bool prefix = std::all_of(row + length, row + words, [](auto v) { return v == 0; });
        if (length == 0 || !prefix)
            throw InputError("attention_mask of caption " + std::to_string(c) +
                             ": expected 1 on every real word, at least one, and 0 on the padding "
                             "after them");
        lengths.push_back(length);
    }
    return lengths;
}

void hierarchical_score(const Inputs& inputs, const Settings& settings,
                        const ParallelFor& parallel_for, float* scores) {
    const std::int64_t images = inputs.images[0].items;
    const std::int64_t captions = inputs.texts[0].items;
    const Layout layout = layout_of(caption_lengths(inputs.mask, captions, inputs.texts[0].rows));
    if (images == 0 || captions == 0) return;
    const std::array<Level, kLevels> levels = prepare(inputs, settings, layout, parallel_for);

    const std::int64_t groups = (images + kImagesPerTask - 1) / kImagesPerTask;
    const std::int64_t parts =
        std::clamp<std::int64_t>((kWantedTasks + groups - 1) / groups, 1,
                                 std::max<std::int64_t>(1, captions / kLeastCaptionsPerTask));
    TaskStatus status;
    parallel_for(static_cast<std::size_t>(groups * parts), [&](std::size_t task) {
        const std::int64_t group = static_cast<std::int64_t>(task) / parts;
        const std::int64_t part = static_cast<std::int64_t>(task) % parts;
        const Range image_range{group * kImagesPerTask,
                                std::min(images, (group + 1) * kImagesPerTask)};
        const Range caption_range{captions * part / parts, captions * (part + 1) / parts};
        try {
            status.note(
                score_block(inputs, settings, layout, levels, image_range, caption_range, scores));
        } catch (const std::exception&) {
            status.note(HAT_ALIGNMENT_NO_MEMORY);
        }
    });
    status.raise();

    const float* end = scores + images * captions;
    const float* bad = std::find_if_not(scores, const_cast<float*>(end),
                                        [](float score) { return std::isfinite(score); });
    if (bad != end)
        throw InputError("the score of image " + std::to_string((bad - scores) / captions) +
                         " with caption " + std::to_string((bad - scores) % captions) +
                         " isn't finite: expected finite features with inner products below 1e38; "
                         "check the features for NaN and infinity");
}

}  // namespace hat_operators
