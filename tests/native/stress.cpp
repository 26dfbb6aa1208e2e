// Runs every kernel on random shapes, for sanitizers: `stress SEED SHAPES`.
//
// Every array is exactly as long as the interface says and starts where its type's alignment
// ends: a read before it, behind it, or with too large an alignment is seen by AddressSanitizer and
// UndefinedBehaviorSanitizer. Tasks run on several threads, and the alignment is called from two
// threads at once, for ThreadSanitizer. Results of every path must agree with the scalar one.
// Prints a line per kernel and path: name, path, shapes.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../../kernels/alignment/alignment.h"
#include "../../kernels/operators/input_error.hpp"
#include "../../kernels/operators/int8_products.hpp"
#include "../../kernels/operators/kernels.hpp"

namespace {

using hat_operators::Kernels;
using std::int64_t;

std::mt19937 generator;

int64_t draw(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

// One of the sizes around which vectors, blocks and unrolled loops end, or any.
int64_t draw_size(int64_t highest) {
    static const int64_t edges[] = {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65};
    const int64_t size = draw(0, 2) ? edges[draw(0, 16)] : draw(1, highest);
    return size < highest ? size : highest;
}

// An array without any room around it, aligned as its type and no better.
template <class T>
class Exact {
  public:
    explicit Exact(std::size_t count) : bytes_(new char[(count + 1) * sizeof(T)]) {
        // malloc aligns to 16 bytes, so that the second element is aligned as its type only. The
        // end is the end of the allocation.
        start_ = reinterpret_cast<T*>(bytes_.get()) + 1;
        count_ = count;
    }
    T* data() { return start_; }
    T& operator[](std::size_t i) { return start_[i]; }
    std::size_t size() const { return count_; }

  private:
    std::unique_ptr<char[]> bytes_;
    T* start_;
    std::size_t count_;
};

using Floats = Exact<float>;

Floats values(int64_t count) {
    Floats result(static_cast<std::size_t>(count));
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < result.size(); ++i) result[i] = normal(generator);
    return result;
}

void fail(const std::string& what) {
    std::fprintf(stderr, "stress: %s\n", what.c_str());
    std::exit(1);
}

void expect_near(const char* what, Floats& found, Floats& wanted, float tolerance) {
    for (std::size_t i = 0; i < found.size(); ++i)
        if (!(std::fabs(found[i] - wanted[i]) <= tolerance * (1 + std::fabs(wanted[i]))))
            fail(std::string(what) + ": " + std::to_string(found[i]) + " at " + std::to_string(i) +
                 ", the scalar path gives " + std::to_string(wanted[i]));
}

// Ranges of tasks on four threads, as an operator's own loop gives them out.
void in_parallel(int64_t tasks, const std::function<void(int64_t, int64_t)>& work) {
    std::vector<std::thread> threads;
    const int64_t ranges = 4;
    for (int64_t r = 0; r < ranges; ++r)
        threads.emplace_back([&, r] { work(tasks * r / ranges, tasks * (r + 1) / ranges); });
    for (std::thread& thread : threads) thread.join();
}

Floats run_attention(const Kernels& kernels, hat_operators::AttentionPlan plan) {
    const int64_t keys = plan.window ? plan.window * plan.window : plan.tokens;
    const int64_t tasks = plan.items * (plan.tokens / keys) * plan.heads;
    Floats mixed(static_cast<std::size_t>(plan.items * plan.tokens * plan.heads * plan.head_dim));
    plan.mixed = mixed.data();
    const auto floats = static_cast<std::size_t>(kernels.attention_workspace(plan));
    in_parallel(tasks, [&](int64_t first, int64_t last) {
        auto* space = static_cast<float*>(::operator new(4 * floats, std::align_val_t(64)));
        kernels.attend(plan, space, first, last);
        ::operator delete(space, std::align_val_t(64));
    });
    return mixed;
}

void try_attention(const Kernels& kernels, bool windows) {
    hat_operators::AttentionPlan plan{};
    plan.items = draw(1, 3);
    plan.heads = draw(1, 4);
    plan.head_dim = draw_size(70);
    if (windows) {
        plan.window = draw(1, 8);
        plan.side = plan.window * draw(1, 3);
        plan.shift = draw(0, plan.window - 1);
        plan.tokens = plan.side * plan.side;
    } else {
        plan.tokens = draw_size(70);
    }
    const int64_t width = 3 * plan.heads * plan.head_dim;
    const int64_t area = plan.window * plan.window;
    Floats qkv = values(plan.items * plan.tokens * width), bias = values(width);
    Floats position = values(plan.heads * area * area);
    Exact<int64_t> mask(static_cast<std::size_t>(windows ? 0 : plan.items * plan.tokens));
    for (std::size_t i = 0; i < mask.size(); ++i)
        mask[i] = i % static_cast<std::size_t>(plan.tokens) == 0 || draw(0, 1);
    plan.qkv = qkv.data();
    plan.qkv_bias = bias.data();
    plan.position_bias = windows ? position.data() : nullptr;
    plan.mask = windows ? nullptr : mask.data();
    Floats found = run_attention(kernels, plan);
    Floats wanted = run_attention(hat_operators::kernels_scalar, plan);
    expect_near("attention", found, wanted, 2e-4F);
}

void try_norm(const Kernels& kernels, bool) {
    hat_operators::NormPlan plan{};
    plan.width = draw_size(300);
    plan.epsilon = 1e-5F;
    const int64_t rows = draw(0, 9);
    Floats branch = values(rows * plan.width), stream = values(rows * plan.width);
    Floats gamma = values(plan.width), beta = values(plan.width), bias = values(plan.width);
    plan.branch = branch.data();
    plan.stream = stream.data();
    plan.gamma = gamma.data();
    plan.beta = beta.data();
    plan.bias = bias.data();
    const auto run = [&](const Kernels& chosen) {
        Floats normed(branch.size()), total(branch.size());
        plan.normed = normed.data();
        plan.total = total.data();
        in_parallel(rows,
                    [&](int64_t first, int64_t last) { chosen.add_and_norm(plan, first, last); });
        return normed;
    };
    Floats found = run(kernels), wanted = run(hat_operators::kernels_scalar);
    expect_near("norm", found, wanted, 1e-2F);
}

void try_linear(const Kernels& kernels, bool) {
    using hat_operators::kPanelColumns;
    hat_operators::LinearPlan plan{};
    plan.rows = draw(0, 3) ? draw_size(80) : 0;
    plan.depth = draw_size(300);
    plan.columns = draw_size(200);
    plan.activate = draw(0, 1) != 0;
    const int64_t panels = (plan.columns + kPanelColumns - 1) / kPanelColumns;
    Floats x = values(plan.rows * plan.depth), bias = values(plan.columns);
    Floats weight = values(panels * plan.depth * kPanelColumns);
    plan.x = x.data();
    plan.weight = weight.data();
    plan.bias = draw(0, 1) ? bias.data() : nullptr;
    const auto run = [&](const Kernels& chosen) {
        Floats y(static_cast<std::size_t>(plan.rows * plan.columns));
        plan.y = y.data();
        in_parallel(chosen.linear_tasks(plan),
                    [&](int64_t first, int64_t last) { chosen.linear(plan, first, last); });
        return y;
    };
    Floats found = run(kernels), wanted = run(hat_operators::kernels_scalar);
    expect_near("linear", found, wanted, 2e-4F);
}

// Weights up to a magnitude; rows of all sizes of numbers, some of nothing but zeros.
void try_int8_linear(const Kernels& kernels, hat_operators::Int8Products products, int largest) {
    using hat_operators::kInt8Depth;
    using hat_operators::kInt8Rows;
    using hat_operators::kPanelColumns;
    hat_operators::Int8LinearPlan plan{};
    plan.rows = draw(0, 3) ? draw_size(80) : draw(0, 1) * draw(190, 400);
    plan.depth = draw_size(300);
    plan.padded = (plan.depth + kInt8Depth - 1) / kInt8Depth * kInt8Depth;
    plan.columns = draw_size(200);
    plan.activate = draw(0, 1) != 0;
    const auto rows = static_cast<std::size_t>(plan.rows);
    const auto depth = static_cast<std::size_t>(plan.depth);
    const auto padded = static_cast<std::size_t>(plan.padded);
    const auto columns = static_cast<std::size_t>(plan.columns);
    const std::size_t panels = (columns + kPanelColumns - 1) / kPanelColumns;
    Floats x = values(plan.rows * plan.depth), bias = values(plan.columns);
    for (std::size_t r = 0; r < rows; ++r) {
        const float size = draw(0, 3) ? 1.0F : std::pow(10.0F, static_cast<float>(draw(-40, 4)));
        for (std::size_t k = 0; k < depth; ++k) x[r * depth + k] *= draw(0, 9) ? size : 0.0F;
    }
    Exact<std::int8_t> weight(panels * padded * kPanelColumns);
    Floats scale(columns);
    Exact<std::int32_t> totals(columns);
    for (std::size_t c = 0; c < columns; ++c) {
        scale[c] = 1.0F / static_cast<float>(largest * draw(1, 99));
        totals[c] = 0;
    }
    // [panels, padded / 4, kPanelColumns, 4], zeros past the last row and column.
    for (std::size_t i = 0; i < weight.size(); ++i) {
        const std::size_t in_panel = i % (padded * kPanelColumns);
        const std::size_t k = in_panel / (4 * kPanelColumns) * 4 + i % 4;
        const std::size_t c = i / (padded * kPanelColumns) * kPanelColumns + i / 4 % kPanelColumns;
        const bool inside = k < depth && c < columns;
        weight[i] =
            static_cast<std::int8_t>(inside ? draw(-largest, largest < 128 ? largest : 127) : 0);
        if (inside) totals[c] += weight[i];
    }
    plan.x = x.data();
    plan.weight = weight.data();
    plan.scale = scale.data();
    plan.totals = totals.data();
    plan.bias = draw(0, 1) ? bias.data() : nullptr;
    const auto run = [&](const Kernels& chosen, hat_operators::Int8Products way) {
        Floats y(rows * columns), step(rows);
        Exact<std::uint8_t> rounded((rows + kInt8Rows) * padded);
        Exact<std::int32_t> zero(rows);
        plan.y = y.data();
        plan.step = step.data();
        plan.rounded = rounded.data();
        plan.zero = zero.data();
        plan.products = way;
        in_parallel(plan.rows,
                    [&](int64_t first, int64_t last) { chosen.round_rows(plan, first, last); });
        const auto bytes = static_cast<std::size_t>(chosen.int8_linear_workspace(plan));
        in_parallel(chosen.int8_linear_tasks(plan), [&](int64_t first, int64_t last) {
            auto* sums = static_cast<std::int32_t*>(::operator new(bytes, std::align_val_t(64)));
            chosen.int8_linear(plan, sums, first, last);
            ::operator delete(sums, std::align_val_t(64));
        });
        return y;
    };
    Floats found = run(kernels, products);
    Floats wanted = run(hat_operators::kernels_scalar, hat_operators::int8_products_scalar);
    expect_near("int8 linear", found, wanted, 1e-5F);
}

// The ways of summing products of 8 bits that a path may take on this CPU, by name.
std::map<std::string, hat_operators::Int8Products> int8_ways(std::int32_t path) {
    std::map<std::string, hat_operators::Int8Products> found;
    for (const char* name : {"amx", "vnni", "avxvnni", "avx2-small", "avx2", "scalar"}) {
        setenv("HAT_EXPORT_INT8_PRODUCTS", name, 1);
        try {
            found[name] = hat_operators::int8_products_here(path, hat_operators::kSmallWeights);
        } catch (const hat_operators::InputError&) {
        }
    }
    unsetenv("HAT_EXPORT_INT8_PRODUCTS");
    return found;
}

struct Captions {
    Exact<int64_t> start;
    int64_t total;
    std::size_t squares;
};

Captions draw_captions(int64_t count) {
    Captions result{Exact<int64_t>(static_cast<std::size_t>(count + 1)), 0, 0};
    result.start[0] = 0;
    for (int64_t c = 0; c < count; ++c) {
        const int64_t words = draw(0, 2) ? draw_size(70) : 1;
        result.total += words;
        result.squares += static_cast<std::size_t>(words * words);
        result.start[static_cast<std::size_t>(c + 1)] = result.total;
    }
    return result;
}

void try_alignment(std::int32_t path, bool i2t) {
    hat_alignment_request request{};
    request.images = draw(0, 4);
    request.captions = draw(0, 5);
    request.regions_per_image = draw_size(70);
    request.width = draw_size(200);
    request.scores_stride = request.captions + draw(0, 3);
    request.softmax_lambda = 9;
    request.direction = i2t ? HAT_ALIGNMENT_I2T : HAT_ALIGNMENT_T2I;
    request.threads = static_cast<std::int32_t>(draw(1, 5));
    request.add = static_cast<std::int32_t>(draw(0, 1));
    Captions captions = draw_captions(request.captions);
    const int64_t rows = request.images * request.regions_per_image;
    Floats regions = values(rows * request.width), words = values(captions.total * request.width);
    Floats norms(static_cast<std::size_t>(rows)), offset = values(captions.total);
    Exact<double> gram(captions.squares);
    if (hat_alignment_norms(regions.data(), rows, request.width, norms.data()) ||
        hat_alignment_gram(words.data(), captions.start.data(), request.captions, request.width,
                           gram.data()))
        fail("norms or gram");
    request.regions = regions.data();
    request.region_norms = norms.data();
    request.words = words.data();
    request.word_offset = i2t && draw(0, 1) ? offset.data() : nullptr;
    request.gram = gram.data();
    request.caption_start = captions.start.data();
    const int64_t floats = request.images && request.captions
                               ? (request.images - 1) * request.scores_stride + request.captions
                               : 0;
    const auto run = [&](std::int32_t chosen) {
        Floats scores(static_cast<std::size_t>(floats));
        for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = 0;
        hat_alignment_request own = request;
        own.path = chosen;
        own.scores = scores.data();
        const std::int32_t status = hat_alignment_score(&own);
        if (status) fail(hat_alignment_message(status));
        return scores;
    };
    Floats wanted = run(HAT_ALIGNMENT_SCALAR);
    std::thread other([&] {
        Floats found = run(path);
        expect_near("alignment", found, wanted, 1e-4F);
    });
    Floats found = run(path);
    other.join();
    expect_near("alignment", found, wanted, 1e-4F);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    generator.seed(static_cast<unsigned>(std::atoi(argv[1])));
    const int shapes = std::atoi(argv[2]);
    std::map<std::string, std::pair<std::int32_t, const Kernels*>> paths{
        {"scalar", {HAT_ALIGNMENT_SCALAR, &hat_operators::kernels_scalar}},
#ifdef HAT_ALIGNMENT_BUILD_X86
        {"avx2", {HAT_ALIGNMENT_AVX2, &hat_operators::kernels_avx2}},
        {"avx512", {HAT_ALIGNMENT_AVX512, &hat_operators::kernels_avx512}},
#endif
#ifdef HAT_ALIGNMENT_BUILD_NEON
        {"neon", {HAT_ALIGNMENT_NEON, &hat_operators::kernels_neon}},
#endif
    };
    for (const auto& [name, path] : paths) {
        if (!(hat_alignment_available_paths() >> path.first & 1)) continue;
        const auto repeat = [&](const char* kernel, const auto& attempt) {
            for (int i = 0; i < shapes; ++i) attempt(i % 2 != 0);
            std::printf("%s %s %d\n", kernel, name.c_str(), shapes);
            std::fflush(stdout);
        };
        const Kernels& kernels = *path.second;
        repeat("window_attention", [&](bool) { try_attention(kernels, true); });
        repeat("masked_attention", [&](bool) { try_attention(kernels, false); });
        repeat("add_layer_norm", [&](bool other) { try_norm(kernels, other); });
        repeat("linear", [&](bool other) { try_linear(kernels, other); });
        for (const auto& [way, products] : int8_ways(path.first)) {
            const int largest = way == "avx2-small" ? hat_operators::kSmallWeights : 128;
            repeat(("int8_linear:" + way).c_str(),
                   [&](bool) { try_int8_linear(kernels, products, largest); });
        }
        repeat("alignment", [&](bool i2t) { try_alignment(path.first, i2t); });
    }
}
