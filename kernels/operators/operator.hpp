// What the operators share: reading attributes and inputs, making outputs, handing errors back.
#pragma once

#include <cstdint>
#include <exception>
#include <limits>
#include <new>
#include <string>
#include <vector>

#include "input_error.hpp"
#include "ort_abi.hpp"
#include "parallel_for.hpp"

namespace hat_operators {

using abi::Api;
using abi::call;

// A status that ONNX Runtime returned, on its way back to ONNX Runtime.
struct StatusError {
    abi::Status* status;
};

inline void check(abi::Status* status) {
    if (status) throw StatusError{status};
}

// Runs `work` and turns whatever it throws into a status: no exception may cross the C interface.
template <class Work>
abi::Status* guarded(const Api& api, const Work& work) noexcept {
    try {
        work();
        return nullptr;
    } catch (const StatusError& error) {
        return error.status;
    } catch (const InputError& error) {
        return call(api, abi::kCreateStatus, abi::kInvalidArgument, error.what());
    } catch (const std::bad_alloc&) {
        return call(api, abi::kCreateStatus, abi::kFail, "not enough memory");
    } catch (const std::exception& error) {
        return call(api, abi::kCreateStatus, abi::kFail, error.what());
    }
}

struct Tensor {
    const void* data;
    std::vector<std::int64_t> shape;
};

Tensor read_input(const Api& api, const abi::KernelContext* context, std::size_t index);

// Without data where an optional input was left out.
Tensor read_optional(const Api& api, const abi::KernelContext* context, std::size_t index);

// Makes an output and returns its elements.
void* make_output(const Api& api, abi::KernelContext* context, std::size_t index,
                  const std::vector<std::int64_t>& shape);

// The session's threads.
ParallelFor session_threads(const Api& api, const abi::KernelContext* context);

// Throws InputError(expected + ", it is missing") where there is no such attribute.
float read_float(const Api& api, const abi::KernelInfo* info, const char* name,
                 const std::string& expected);
std::int64_t read_int(const Api& api, const abi::KernelInfo* info, const char* name,
                      const std::string& expected);

std::string text_of(const std::vector<std::int64_t>& shape);

void expect_shape(const char* name, const Tensor& tensor,
                  const std::vector<std::int64_t>& expected);

// The entries that are alike for every operator: outputs required and of float32, on the CPU;
// inputs required, except for those from Kernel::kRequiredInputs on, where it has that.
template <class Kernel>
constexpr abi::CustomOp make_operator() {
    abi::CustomOp op{};
    op.version = abi::kVersion;
    op.name = [](const abi::CustomOp*) { return Kernel::kName; };
    op.execution_provider = [](const abi::CustomOp*) -> const char* { return nullptr; };
    op.input_type = [](const abi::CustomOp*, std::size_t index) {
        return Kernel::input_type(index);
    };
    op.input_count = [](const abi::CustomOp*) { return Kernel::kInputs.size(); };
    op.output_type = [](const abi::CustomOp*, std::size_t) { return abi::kFloat; };
    op.output_count = [](const abi::CustomOp*) { return Kernel::kOutputs; };
    op.destroy_kernel = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    op.input_characteristic = [](const abi::CustomOp*, [[maybe_unused]] std::size_t index) {
        if constexpr (requires { Kernel::kRequiredInputs; })
            return index < Kernel::kRequiredInputs ? abi::kRequired : abi::kOptional;
        else
            return abi::kRequired;
    };
    op.output_characteristic = [](const abi::CustomOp*, std::size_t) { return abi::kRequired; };
    op.input_memory = [](const abi::CustomOp*, std::size_t) { return abi::kDefaultMemory; };
    op.create_kernel_v2 = [](const abi::CustomOp*, const Api* api, const abi::KernelInfo* info,
                             void** kernel) {
        return guarded(*api, [&] { *kernel = new Kernel(*api, info); });
    };
    op.compute_v2 = [](void* kernel, abi::KernelContext* context) {
        const auto* self = static_cast<const Kernel*>(kernel);
        return guarded(self->api, [&] { self->compute(context); });
    };
    op.first_opset = [](const abi::CustomOp*) { return 1; };
    op.last_opset = [](const abi::CustomOp*) { return std::numeric_limits<int>::max(); };
    return op;
}

extern const abi::CustomOp kAddLayerNormOperator;
extern const abi::CustomOp kInt8LinearOperator;
extern const abi::CustomOp kLinearOperator;
extern const abi::CustomOp kWindowAttentionOperator;
extern const abi::CustomOp kMaskedAttentionOperator;

}  // namespace hat_operators
