// The operators WindowAttention, MaskedAttention, AddLayerNorm, Linear and Int8Linear as ONNX
// Runtime sees them.
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <string>

#include "../alignment/alignment.h"
#include "int8_products.hpp"
#include "kernels.hpp"
#include "operator.hpp"

namespace hat_operators {

namespace {

constexpr std::int64_t kLargestHeads = 1024;
constexpr std::int64_t kLargestColumns = 1 << 20;
// Rounding fewer values than this takes less time than waking threads for it.
constexpr std::int64_t kFewValues = 32 * 1024;
// 255 * 128 * 65,000 is still an int32.
constexpr std::int64_t kLargestInt8Depth = 65'000;
// Ranges of tasks that are handed out: enough to even threads out, few enough that scratch memory
// and the places of a window are set up seldom.
constexpr std::int64_t kRanges = 32;
constexpr std::size_t kCacheLine = 64;

std::int32_t path_here() {
    std::int32_t path = HAT_ALIGNMENT_AUTO;
    const std::int32_t status = hat_alignment_resolve_path(path, &path);
    if (status != HAT_ALIGNMENT_OK) throw InputError(hat_alignment_message(status));
    return path;
}

const Kernels& kernels_here() {
    switch (path_here()) {
#ifdef HAT_ALIGNMENT_BUILD_X86
        case HAT_ALIGNMENT_AVX2:
            return kernels_avx2;
        case HAT_ALIGNMENT_AVX512:
            return kernels_avx512;
#endif
#ifdef HAT_ALIGNMENT_BUILD_NEON
        case HAT_ALIGNMENT_NEON:
            return kernels_neon;
#endif
        default:
            return kernels_scalar;
    }
}

// Memory that grows, kept from call to call: fresh memory would be paid for page by page.
class Memory {
  public:
    Memory() = default;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { release(); }

    void* of(std::size_t bytes) {
        if (bytes_ < bytes) {
            release();
            start_ = nullptr;
            bytes_ = 0;
            start_ = ::operator new(bytes, std::align_val_t{kCacheLine});
            bytes_ = bytes;
        }
        return start_;
    }

  private:
    void release() { ::operator delete(start_, std::align_val_t{kCacheLine}); }

    void* start_ = nullptr;
    std::size_t bytes_ = 0;
};

// Of each thread: what its task works in, and what the tasks of its call share.
thread_local Memory task_memory, call_memory;

// Calls work(first, last) for ranges that make up [0, tasks).
template <class Work>
void in_ranges(std::int64_t tasks, const ParallelFor& parallel_for, const Work& work) {
    const std::int64_t ranges = tasks < kRanges ? tasks : kRanges;
    if (!ranges) return;
    parallel_for(static_cast<std::size_t>(ranges), [&](std::size_t range) {
        const auto r = static_cast<std::int64_t>(range);
        work(tasks * r / ranges, tasks * (r + 1) / ranges);
    });
}

// As in_ranges, calling work(memory, first, last) with that many bytes of memory.
template <class Work>
void with_memory(std::int64_t tasks, std::size_t bytes, const ParallelFor& parallel_for,
                 const Work& work) {
    // No exception may leave a task: the threads belong to somebody else.
    std::atomic<bool> no_memory{false};
    in_ranges(tasks, parallel_for, [&](std::int64_t first, std::int64_t last) {
        try {
            work(task_memory.of(bytes), first, last);
        } catch (const std::bad_alloc&) {
            no_memory = true;
        }
    });
    if (no_memory) throw std::bad_alloc();
}

void attend(const AttentionPlan& plan, const ParallelFor& parallel_for) {
    const Kernels& kernels = kernels_here();
    const std::int64_t keys = plan.window ? plan.window * plan.window : plan.tokens;
    const std::int64_t tasks = keys ? plan.items * (plan.tokens / keys) * plan.heads : 0;
    if (!tasks) return;
    const auto floats = static_cast<std::size_t>(kernels.attention_workspace(plan));
    with_memory(tasks, floats * sizeof(float), parallel_for,
                [&](void* memory, std::int64_t first, std::int64_t last) {
                    kernels.attend(plan, static_cast<float*>(memory), first, last);
                });
}

// What both operators read: qkv [items, tokens, 3 * heads * head_dim] and its bias.
AttentionPlan read_packed(const Api& api, const abi::KernelContext* context, std::int64_t heads) {
    const Tensor qkv = read_input(api, context, 0);
    if (qkv.shape.size() != 3 || qkv.shape[2] < 1 || qkv.shape[2] % (3 * heads))
        throw InputError("qkv: expected [items, tokens, 3 * " + std::to_string(heads) +
                         " heads * head_dim], got " + text_of(qkv.shape));
    const Tensor bias = read_input(api, context, 1);
    expect_shape("qkv_bias", bias, {qkv.shape[2]});
    AttentionPlan plan{};
    plan.qkv = static_cast<const float*>(qkv.data);
    plan.qkv_bias = static_cast<const float*>(bias.data);
    plan.items = qkv.shape[0];
    plan.tokens = qkv.shape[1];
    plan.heads = heads;
    plan.head_dim = qkv.shape[2] / (3 * heads);
    return plan;
}

std::vector<std::int64_t> mixed_shape(const AttentionPlan& plan) {
    return {plan.items, plan.tokens, plan.heads * plan.head_dim};
}

std::int64_t read_between(const Api& api, const abi::KernelInfo* info, const char* name,
                          std::int64_t least, std::int64_t most) {
    const std::string expected = std::string("attribute ") + name + ": expected an integer from " +
                                 std::to_string(least) + " to " + std::to_string(most);
    const std::int64_t value = read_int(api, info, name, expected);
    if (value < least || value > most)
        throw InputError(expected + ", got " + std::to_string(value));
    return value;
}

struct WindowAttention {
    static constexpr std::size_t kOutputs = 1;
    static constexpr const char* kName = "WindowAttention";
    static constexpr std::array<const char*, 3> kInputs = {"qkv", "qkv_bias", "position_bias"};
    static int input_type(std::size_t) { return abi::kFloat; }

    const Api& api;
    std::int64_t heads, window, shift;

    WindowAttention(const Api& api, const abi::KernelInfo* info)
        : api(api),
          heads(read_between(api, info, "heads", 1, kLargestHeads)),
          window(read_between(api, info, "window", 1, 64)),
          shift(read_between(api, info, "shift", 0, window - 1)) {}

    void compute(abi::KernelContext* context) const {
        AttentionPlan plan = read_packed(api, context, heads);
        plan.window = window;
        plan.shift = shift;
        while (plan.side * plan.side < plan.tokens) plan.side += window;
        if (plan.side * plan.side != plan.tokens)
            throw InputError("qkv: expected the tokens of a square of whole windows of " +
                             std::to_string(window) + ", got " + std::to_string(plan.tokens));
        const Tensor bias = read_input(api, context, 2);
        expect_shape("position_bias", bias, {heads, window * window, window * window});
        plan.position_bias = static_cast<const float*>(bias.data);
        plan.mixed = static_cast<float*>(make_output(api, context, 0, mixed_shape(plan)));
        attend(plan, session_threads(api, context));
    }
};

struct MaskedAttention {
    static constexpr std::size_t kOutputs = 1;
    static constexpr const char* kName = "MaskedAttention";
    static constexpr std::array<const char*, 3> kInputs = {"qkv", "qkv_bias", "attention_mask"};
    static int input_type(std::size_t index) { return index == 2 ? abi::kInt64 : abi::kFloat; }

    const Api& api;
    std::int64_t heads;

    MaskedAttention(const Api& api, const abi::KernelInfo* info)
        : api(api), heads(read_between(api, info, "heads", 1, kLargestHeads)) {}

    void compute(abi::KernelContext* context) const {
        AttentionPlan plan = read_packed(api, context, heads);
        const Tensor mask = read_input(api, context, 2);
        expect_shape("attention_mask", mask, {plan.items, plan.tokens});
        plan.mask = static_cast<const std::int64_t*>(mask.data);
        plan.mixed = static_cast<float*>(make_output(api, context, 0, mixed_shape(plan)));
        attend(plan, session_threads(api, context));
    }
};

struct AddLayerNorm {
    static constexpr const char* kName = "AddLayerNorm";
    static constexpr std::array<const char*, 5> kInputs = {"branch", "stream", "gamma", "beta",
                                                           "bias"};
    static constexpr std::size_t kOutputs = 2;
    static int input_type(std::size_t) { return abi::kFloat; }

    const Api& api;
    float epsilon;

    AddLayerNorm(const Api& api, const abi::KernelInfo* info)
        : api(api),
          epsilon(read_float(api, info, "epsilon", "attribute epsilon: expected a float")) {
        if (!(epsilon >= 0.0f && epsilon <= 1.0f))
            throw InputError("attribute epsilon: expected a float from 0 to 1, got " +
                             std::to_string(epsilon));
    }

    void compute(abi::KernelContext* context) const {
        const Tensor branch = read_input(api, context, 0);
        if (branch.shape.size() != 3 || branch.shape[2] < 1)
            throw InputError("branch: expected [items, tokens, width], got " +
                             text_of(branch.shape));
        NormPlan plan{};
        plan.width = branch.shape[2];
        plan.epsilon = epsilon;
        const float** vectors[] = {&plan.gamma, &plan.beta, &plan.bias};
        for (std::size_t i = 0; i < 3; ++i) {
            const Tensor vector = read_input(api, context, 2 + i);
            expect_shape(kInputs[2 + i], vector, {plan.width});
            *vectors[i] = static_cast<const float*>(vector.data);
        }
        const Tensor stream = read_input(api, context, 1);
        expect_shape("stream", stream, branch.shape);
        plan.branch = static_cast<const float*>(branch.data);
        plan.stream = static_cast<const float*>(stream.data);
        plan.normed = static_cast<float*>(make_output(api, context, 0, branch.shape));
        plan.total = static_cast<float*>(make_output(api, context, 1, branch.shape));
        const Kernels& kernels = kernels_here();
        in_ranges(branch.shape[0] * branch.shape[1], session_threads(api, context),
                  [&](std::int64_t first, std::int64_t last) {
                      kernels.add_and_norm(plan, first, last);
                  });
    }
};

// What a linear layer has in float32 whatever its weight is in: x [..., depth], the bias, which is
// an optional input, and the result. The plan has its columns already.
template <class Plan>
void take_float_sides(const Api& api, abi::KernelContext* context, const Tensor& x,
                      std::size_t bias_index, Plan& plan) {
    const Tensor bias = read_optional(api, context, bias_index);
    if (bias.data) expect_shape("bias", bias, {plan.columns});
    std::vector<std::int64_t> shape = x.shape;
    shape.back() = plan.columns;
    plan.rows = 1;
    for (std::size_t i = 0; i + 1 < shape.size(); ++i) plan.rows *= shape[i];
    plan.x = static_cast<const float*>(x.data);
    plan.bias = static_cast<const float*>(bias.data);
    plan.y = static_cast<float*>(make_output(api, context, 0, shape));
}

struct Linear {
    static constexpr std::size_t kOutputs = 1;
    static constexpr const char* kName = "Linear";
    static constexpr std::array<const char*, 3> kInputs = {"x", "weight", "bias"};
    static constexpr std::size_t kRequiredInputs = 2;
    static int input_type(std::size_t) { return abi::kFloat; }

    const Api& api;
    std::int64_t columns;
    bool activate;

    Linear(const Api& api, const abi::KernelInfo* info)
        : api(api),
          columns(read_between(api, info, "columns", 1, kLargestColumns)),
          activate(read_between(api, info, "gelu", 0, 1) != 0) {}

    void compute(abi::KernelContext* context) const {
        const Tensor x = read_input(api, context, 0);
        if (x.shape.empty() || x.shape.back() < 1)
            throw InputError("x: expected [..., depth], got " + text_of(x.shape));
        LinearPlan plan{};
        plan.depth = x.shape.back();
        plan.columns = columns;
        plan.activate = activate;
        const Tensor weight = read_input(api, context, 1);
        const std::int64_t panels = (columns + kPanelColumns - 1) / kPanelColumns;
        expect_shape("weight", weight, {panels, plan.depth, kPanelColumns});
        take_float_sides(api, context, x, 2, plan);
        plan.weight = static_cast<const float*>(weight.data);
        const Kernels& kernels = kernels_here();
        in_ranges(
            kernels.linear_tasks(plan), session_threads(api, context),
            [&](std::int64_t first, std::int64_t last) { kernels.linear(plan, first, last); });
    }
};

struct Int8Linear {
    static constexpr std::size_t kOutputs = 1;
    static constexpr const char* kName = "Int8Linear";
    static constexpr std::array<const char*, 5> kInputs = {"x", "weight", "scale", "totals",
                                                           "bias"};
    static constexpr std::size_t kRequiredInputs = 4;
    static int input_type(std::size_t index) {
        return index == 1 ? abi::kInt8 : index == 3 ? abi::kInt32 : abi::kFloat;
    }

    const Api& api;
    std::int64_t columns, largest;
    bool activate;

    Int8Linear(const Api& api, const abi::KernelInfo* info)
        : api(api),
          columns(read_between(api, info, "columns", 1, kLargestColumns)),
          largest(read_between(api, info, "largest_weight", 0, 128)),
          activate(read_between(api, info, "gelu", 0, 1) != 0) {}

    void compute(abi::KernelContext* context) const {
        const Tensor x = read_input(api, context, 0);
        if (x.shape.empty() || x.shape.back() < 1 || x.shape.back() > kLargestInt8Depth)
            throw InputError("x: expected [..., depth], depth up to " +
                             std::to_string(kLargestInt8Depth) + ", got " + text_of(x.shape));
        Int8LinearPlan plan{};
        plan.depth = x.shape.back();
        plan.padded = (plan.depth + kInt8Depth - 1) / kInt8Depth * kInt8Depth;
        plan.columns = columns;
        plan.activate = activate;
        const Tensor weight = read_input(api, context, 1);
        const std::int64_t panels = (columns + kPanelColumns - 1) / kPanelColumns;
        expect_shape("weight", weight, {panels, plan.padded / 4, kPanelColumns, 4});
        const Tensor scale = read_input(api, context, 2);
        expect_shape("scale", scale, {columns});
        const Tensor totals = read_input(api, context, 3);
        expect_shape("totals", totals, {columns});
        take_float_sides(api, context, x, 4, plan);
        plan.weight = static_cast<const std::int8_t*>(weight.data);
        plan.scale = static_cast<const float*>(scale.data);
        plan.totals = static_cast<const std::int32_t*>(totals.data);
        plan.products = int8_products_here(path_here(), largest);
        const auto rows = static_cast<std::size_t>(plan.rows);
        const std::size_t rounded = (rows + kInt8Rows) * static_cast<std::size_t>(plan.padded);
        const std::size_t each = rows * sizeof(float);
        auto* memory = static_cast<unsigned char*>(call_memory.of(rounded + 2 * each));
        plan.rounded = memory;
        plan.step = reinterpret_cast<float*>(memory + rounded);
        plan.zero = reinterpret_cast<std::int32_t*>(memory + rounded + each);
        const Kernels& kernels = kernels_here();
        const ParallelFor parallel_for = session_threads(api, context);
        if (plan.rows * plan.depth < kFewValues)
            kernels.round_rows(plan, 0, plan.rows);
        else
            in_ranges(plan.rows, parallel_for, [&](std::int64_t first, std::int64_t last) {
                kernels.round_rows(plan, first, last);
            });
        const auto bytes = static_cast<std::size_t>(kernels.int8_linear_workspace(plan));
        with_memory(kernels.int8_linear_tasks(plan), bytes, parallel_for,
                    [&](void* sums, std::int64_t first, std::int64_t last) {
                        kernels.int8_linear(plan, static_cast<std::int32_t*>(sums), first, last);
                    });
    }
};

}  // namespace

constinit const abi::CustomOp kInt8LinearOperator = make_operator<Int8Linear>();
constinit const abi::CustomOp kLinearOperator = make_operator<Linear>();
constinit const abi::CustomOp kAddLayerNormOperator = make_operator<AddLayerNorm>();
constinit const abi::CustomOp kWindowAttentionOperator = make_operator<WindowAttention>();
constinit const abi::CustomOp kMaskedAttentionOperator = make_operator<MaskedAttention>();

}  // namespace hat_operators
