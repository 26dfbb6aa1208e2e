// The operator HierarchicalAlignment as ONNX Runtime sees it.
#include <array>
#include <cstdint>
#include <string>

#include "../alignment/alignment.h"
#include "hierarchical_score.hpp"
#include "operator.hpp"

namespace hat_operators {

namespace {

constexpr std::size_t kMask = 2 * kLevels;
constexpr std::array<const char*, 2 * kLevels + 1> kInputs = {
    "image_level1",  "image_level2", "image_level3",  // [images, regions, dim]
    "text_level1",   "text_level2",  "text_level3",   // [captions, words, dim]
    "attention_mask"};                                // [captions, words]

std::int32_t read_direction(const Api& api, const abi::KernelInfo* info) {
    const std::string expected = "attribute direction: expected i2t or t2i";
    const std::string text = read_string(api, info, "direction", expected);
    if (text == "i2t") return HAT_ALIGNMENT_I2T;
    if (text == "t2i") return HAT_ALIGNMENT_T2I;
    throw InputError(expected + ", got " + text);
}

float read_lambda(const Api& api, const abi::KernelInfo* info) {
    const std::string expected = "attribute softmax_lambda: expected a float above 0, at most 1000";
    const float value = read_float(api, info, "softmax_lambda", expected);
    if (!(value > 0.0f && value <= 1000.0f))
        throw InputError(expected + ", got " + std::to_string(value));
    return value;
}

Features features(std::size_t index, const Tensor& tensor, const char* meaning) {
    // Only images and captions may be none.
    if (tensor.shape.size() != 3 || tensor.shape[1] < 1 || tensor.shape[2] < 1)
        throw InputError(std::string(kInputs[index]) + ": expected " + meaning + ", got " +
                         text_of(tensor.shape));
    return {static_cast<const float*>(tensor.data), tensor.shape[0], tensor.shape[1],
            tensor.shape[2]};
}

Inputs read_inputs(const Api& api, const abi::KernelContext* context) {
    Inputs inputs{};
    for (std::size_t level = 0; level < kLevels; ++level) {
        const Tensor tensor = read_input(api, context, level);
        inputs.images[level] = features(level, tensor, "[images, regions, dim]");
        const Features& first = inputs.images[0];
        // Every level has regions of its own number.
        expect_shape(kInputs[level], tensor, {first.items, inputs.images[level].rows, first.dim});
    }
    for (std::size_t level = 0; level < kLevels; ++level) {
        const Tensor tensor = read_input(api, context, kLevels + level);
        inputs.texts[level] = features(kLevels + level, tensor, "[captions, words, dim]");
        const Features& first = inputs.texts[0];
        expect_shape(kInputs[kLevels + level], tensor,
                     {first.items, first.rows, inputs.images[0].dim});
    }
    const Tensor mask = read_input(api, context, kMask);
    expect_shape(kInputs[kMask], mask, {inputs.texts[0].items, inputs.texts[0].rows});
    inputs.mask = static_cast<const std::int64_t*>(mask.data);
    return inputs;
}

struct Alignment {
    static constexpr const char* kName = "HierarchicalAlignment";
    static constexpr auto kInputs = hat_operators::kInputs;
    static constexpr std::size_t kOutputs = 1;
    static int input_type(std::size_t index) { return index == kMask ? abi::kInt64 : abi::kFloat; }

    const Api& api;
    Settings settings;

    Alignment(const Api& api, const abi::KernelInfo* info)
        : api(api), settings{read_direction(api, info), read_lambda(api, info)} {}

    void compute(abi::KernelContext* context) const {
        const Inputs inputs = read_inputs(api, context);
        void* scores =
            make_output(api, context, 0, {inputs.images[0].items, inputs.texts[0].items});
        hierarchical_score(inputs, settings, session_threads(api, context),
                           static_cast<float*>(scores));
    }
};

}  // namespace

constinit const abi::CustomOp kAlignmentOperator = make_operator<Alignment>();

}  // namespace hat_operators
