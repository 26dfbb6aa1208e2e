// Compares every path that this machine can run with the definition in float64.
//
// For machines without Python, such as an emulated one: build with -DHAT_ALIGNMENT_CHECK=ON and
// run `check_paths`. Prints the largest error of each path and direction; exits with 1 where one
// exceeds the tolerance.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "alignment.h"

namespace {

constexpr double kTolerance = 2e-6;  // of a score, the mean of float32 cosines
constexpr int kImages = 3;
constexpr int kCaptions = 4;

struct Case {
    std::int64_t regions, width;
    std::vector<float> x, norms, words;
    std::vector<std::int64_t> start;
    std::vector<double> gram;
};

Case make_case(std::int64_t regions, std::int64_t width, std::int64_t longest) {
    std::mt19937 random(static_cast<unsigned>(regions * 10000 + width * 100 + longest));
    std::normal_distribution<float> normal;
    Case result{regions, width, {}, {}, {}, {0}, {}};
    std::size_t squares = 0;
    for (int c = 0; c < kCaptions; ++c) {
        const std::int64_t words = std::max<std::int64_t>(1, longest - 5 * c);
        result.start.push_back(result.start.back() + words);
        squares += static_cast<std::size_t>(words * words);
    }
    result.x.resize(static_cast<std::size_t>(kImages * regions * width));
    result.words.resize(static_cast<std::size_t>(result.start.back() * width));
    result.norms.resize(static_cast<std::size_t>(kImages * regions));
    result.gram.resize(squares);
    for (float& value : result.x) value = normal(random);
    for (float& value : result.words) value = normal(random);
    hat_alignment_norms(result.x.data(), kImages * regions, width, result.norms.data());
    hat_alignment_gram(result.words.data(), result.start.data(), kCaptions, width,
                       result.gram.data());
    return result;
}

// The score as it is defined, for one image and one caption; the asking side is `ask`.
double definition(const Case& data, int image, int caption, double softmax_lambda, bool i2t) {
    const std::int64_t words = data.start[caption + 1] - data.start[caption];
    const std::int64_t width = data.width;
    const float* x = data.x.data() + image * data.regions * width;
    const float* c = data.words.data() + data.start[caption] * width;
    const std::int64_t asking = i2t ? data.regions : words, asked = i2t ? words : data.regions;
    const float *ask = i2t ? x : c, *answer = i2t ? c : x;
    std::vector<double> leaky(static_cast<std::size_t>(asking * asked));
    for (std::int64_t b = 0; b < asked; ++b) {
        double squares = 0;
        for (std::int64_t a = 0; a < asking; ++a) {
            double dot = 0;
            for (std::int64_t k = 0; k < width; ++k)
                dot += double(ask[a * width + k]) * double(answer[b * width + k]);
            leaky[a * asked + b] = dot > 0 ? dot : 0.1 * dot;
            squares += leaky[a * asked + b] * leaky[a * asked + b];
        }
        for (std::int64_t a = 0; a < asking; ++a) leaky[a * asked + b] /= std::sqrt(squares) + 1e-8;
    }
    double total = 0;
    std::vector<double> attended(static_cast<std::size_t>(width));
    for (std::int64_t a = 0; a < asking; ++a) {
        const double* row = leaky.data() + a * asked;
        const double largest = *std::max_element(row, row + asked);
        double sum = 0, inner = 0, own = 0, other = 0;
        std::fill(attended.begin(), attended.end(), 0.0);
        for (std::int64_t b = 0; b < asked; ++b) {
            const double weight = std::exp(softmax_lambda * (row[b] - largest));
            sum += weight;
            for (std::int64_t k = 0; k < width; ++k)
                attended[k] += weight * double(answer[b * width + k]);
        }
        for (std::int64_t k = 0; k < width; ++k) {
            const double value = ask[a * width + k], mean = attended[k] / sum;
            inner += value * mean;
            own += value * value;
            other += mean * mean;
        }
        total += inner / std::max(std::sqrt(own) * std::sqrt(other), 1e-8);
    }
    return total / double(asking);
}

double error_of(const Case& data, int path, bool i2t, float softmax_lambda) {
    std::vector<float> scores(kImages * kCaptions, 77.0f);
    hat_alignment_request request{};
    request.regions = data.x.data();
    request.region_norms = data.norms.data();
    request.words = data.words.data();
    request.gram = data.gram.data();
    request.caption_start = data.start.data();
    request.scores = scores.data();
    request.images = kImages;
    request.regions_per_image = data.regions;
    request.width = data.width;
    request.captions = kCaptions;
    request.scores_stride = kCaptions;
    request.softmax_lambda = softmax_lambda;
    request.direction = i2t ? HAT_ALIGNMENT_I2T : HAT_ALIGNMENT_T2I;
    request.threads = 2;
    request.path = path;
    if (const int status = hat_alignment_score(&request)) {
        std::printf("path %d: %s\n", path, hat_alignment_message(status));
        return INFINITY;
    }
    double error = 0;
    for (int i = 0; i < kImages; ++i) {
        for (int c = 0; c < kCaptions; ++c) {
            const double expected = definition(data, i, c, double(softmax_lambda), i2t);
            const double difference = std::abs(double(scores[i * kCaptions + c]) - expected);
            error = difference <= error ? error : difference;  // keeps a NaN
        }
    }
    return error;
}

}  // namespace

int main() {
    static const char* const names[] = {"auto", "scalar", "avx2", "avx512", "neon"};
    bool fine = true;
    for (int path = HAT_ALIGNMENT_SCALAR; path <= HAT_ALIGNMENT_NEON; ++path) {
        if (!(hat_alignment_available_paths() >> path & 1)) continue;
        for (const bool i2t : {true, false}) {
            double worst = 0;
            const auto check = [&](std::int64_t regions, std::int64_t width, std::int64_t words,
                                   float softmax_lambda) {
                const double error =
                    error_of(make_case(regions, width, words), path, i2t, softmax_lambda);
                worst = error <= worst ? worst : error;
            };
            for (std::int64_t n = 1; n <= 70; ++n) check(n, 1 + 7 * n % 40, 1 + 5 * n % 33, 9.0f);
            for (std::int64_t n = 1; n <= 40; ++n) check(17, n, 1 + 3 * n % 33, 9.0f);
            for (std::int64_t n = 1; n <= 33; ++n) check(33, 1 + 11 * n % 40, n, 60.0f);
            check(784, 256, 17, 9.0f);
            check(49, 768, 32, 9.0f);
            std::printf("%s %s: largest error %.2e\n", names[path], i2t ? "i2t" : "t2i", worst);
            fine = fine && worst <= kTolerance;
        }
    }
    return fine ? 0 : 1;
}
