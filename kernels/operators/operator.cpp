#include "operator.hpp"

#include <memory>

namespace hat_operators {

namespace {

// Turns the status of a missing attribute into an error that names what was expected.
void require(const Api& api, abi::Status* missing, const std::string& expected) {
    if (!missing) return;
    call(api, abi::kReleaseStatus, missing);
    throw InputError(expected + ", it is missing");
}

}  // namespace

Tensor read_input(const Api& api, const abi::KernelContext* context, std::size_t index) {
    const Tensor tensor = read_optional(api, context, index);
    if (!tensor.data && tensor.shape.empty())
        throw InputError("input " + std::to_string(index) + " is missing");
    return tensor;
}

Tensor read_optional(const Api& api, const abi::KernelContext* context, std::size_t index) {
    const abi::Value* value = nullptr;
    check(call(api, abi::kGetInput, context, index, &value));
    if (!value) return {nullptr, {}};
    abi::TensorInfo* made = nullptr;
    check(call(api, abi::kGetTensorTypeAndShape, value, &made));
    const auto release = [&api](abi::TensorInfo* info) {
        call(api, abi::kReleaseTensorInfo, info);
    };
    const std::unique_ptr<abi::TensorInfo, decltype(release)> info(made, release);
    std::size_t rank = 0;
    check(call(api, abi::kGetDimensionsCount, info.get(), &rank));
    Tensor tensor{nullptr, std::vector<std::int64_t>(rank)};
    check(call(api, abi::kGetDimensions, info.get(), tensor.shape.data(), rank));
    // The interface has one function for reading and writing; inputs are only read here.
    void* data = nullptr;
    check(call(api, abi::kGetTensorMutableData, const_cast<abi::Value*>(value), &data));
    tensor.data = data;
    return tensor;
}

void* make_output(const Api& api, abi::KernelContext* context, std::size_t index,
                  const std::vector<std::int64_t>& shape) {
    abi::Value* output = nullptr;
    check(call(api, abi::kGetOutput, context, index, shape.data(), shape.size(), &output));
    void* data = nullptr;
    check(call(api, abi::kGetTensorMutableData, output, &data));
    return data;
}

ParallelFor session_threads(const Api& api, const abi::KernelContext* context) {
    using Work = std::function<void(std::size_t)>;
    return [&api, context](std::size_t tasks, const Work& work) {
        const auto run = [](void* data, std::size_t task) {
            (*static_cast<const Work*>(data))(task);
        };
        check(call(api, abi::kParallelFor, context, +run, tasks, std::size_t{0},
                   const_cast<Work*>(&work)));
    };
}

float read_float(const Api& api, const abi::KernelInfo* info, const char* name,
                 const std::string& expected) {
    float value = 0;
    require(api, call(api, abi::kGetAttributeFloat, info, name, &value), expected);
    return value;
}

std::int64_t read_int(const Api& api, const abi::KernelInfo* info, const char* name,
                      const std::string& expected) {
    std::int64_t value = 0;
    require(api, call(api, abi::kGetAttributeInt, info, name, &value), expected);
    return value;
}

std::string text_of(const std::vector<std::int64_t>& shape) {
    std::string text = "[";
    for (const std::int64_t size : shape)
        text += (text.size() > 1 ? ", " : "") + std::to_string(size);
    return text + "]";
}

void expect_shape(const char* name, const Tensor& tensor,
                  const std::vector<std::int64_t>& expected) {
    if (tensor.shape != expected)
        throw InputError(std::string(name) + ": expected the shape " + text_of(expected) +
                         " that the inputs before it ask for, got " + text_of(tensor.shape));
}

}  // namespace hat_operators
