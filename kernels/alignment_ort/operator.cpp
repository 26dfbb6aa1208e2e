// The operator HierarchicalAlignment as ONNX Runtime sees it, and the registration of its library.
#include <array>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "../alignment/alignment.h"
#include "hierarchical_score.hpp"
#include "ort_abi.hpp"

namespace {

using namespace hat_alignment_ort;
using abi::Api;
using abi::call;

constexpr const char* kDomain = "hat_export";
constexpr const char* kName = "HierarchicalAlignment";
constexpr std::array<const char*, 2 * kLevels + 1> kInputs = {
    "image_level1",  "image_level2", "image_level3",  // [images, regions, dim]
    "text_level1",   "text_level2",  "text_level3",   // [captions, words, dim]
    "attention_mask"};                                // [captions, words]
constexpr std::size_t kMask = 2 * kLevels;

// A status that ONNX Runtime returned, on its way back to ONNX Runtime.
struct StatusError {
    abi::Status* status;
};

void check(abi::Status* status) {
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

struct Kernel {
    const Api* api;
    Settings settings;
};

// ------------------------------------------------------------------------------ attributes

std::int32_t read_direction(const Api& api, const abi::KernelInfo* info) {
    const char* name = "direction";
    const char* expected = "attribute direction: expected i2t or t2i";
    std::size_t size = 0;
    abi::Status* missing =
        call(api, abi::kGetAttributeString, info, name, static_cast<char*>(nullptr), &size);
    if (missing) {
        call(api, abi::kReleaseStatus, missing);
        throw InputError(std::string(expected) + ", it is missing");
    }
    std::string text(size, '\0');
    check(call(api, abi::kGetAttributeString, info, name, text.data(), &size));
    text.resize(text.find('\0') == std::string::npos ? text.size() : text.find('\0'));
    if (text == "i2t") return HAT_ALIGNMENT_I2T;
    if (text == "t2i") return HAT_ALIGNMENT_T2I;
    throw InputError(std::string(expected) + ", got " + text);
}

float read_lambda(const Api& api, const abi::KernelInfo* info) {
    const char* expected = "attribute softmax_lambda: expected a float above 0, at most 1000";
    float value = 0;
    if (abi::Status* missing = call(api, abi::kGetAttributeFloat, info, "softmax_lambda", &value)) {
        call(api, abi::kReleaseStatus, missing);
        throw InputError(std::string(expected) + ", it is missing");
    }
    if (!(value > 0.0f && value <= 1000.0f))
        throw InputError(std::string(expected) + ", got " + std::to_string(value));
    return value;
}

// ---------------------------------------------------------------------------------- inputs

struct Tensor {
    const void* data;
    std::vector<std::int64_t> shape;
};

Tensor read_input(const Api& api, const abi::KernelContext* context, std::size_t index) {
    const abi::Value* value = nullptr;
    check(call(api, abi::kGetInput, context, index, &value));
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

// -------------------------------------------------------------------------------- operator

abi::Status* create_kernel(const abi::CustomOp*, const Api* api, const abi::KernelInfo* info,
                           void** kernel) {
    return guarded(*api, [&] {
        const Settings settings{read_direction(*api, info), read_lambda(*api, info)};
        *kernel = new Kernel{api, settings};
    });
}

void destroy_kernel(void* kernel) { delete static_cast<Kernel*>(kernel); }

abi::Status* compute(void* kernel, abi::KernelContext* context) {
    const Settings& settings = static_cast<const Kernel*>(kernel)->settings;
    const Api& api = *static_cast<const Kernel*>(kernel)->api;
    return guarded(api, [&] {
        const Inputs inputs = read_inputs(api, context);
        const std::int64_t shape[2] = {inputs.images[0].items, inputs.texts[0].items};
        abi::Value* output = nullptr;
        check(call(api, abi::kGetOutput, context, std::size_t{0}, &shape[0], std::size_t{2},
                   &output));
        void* scores = nullptr;
        check(call(api, abi::kGetTensorMutableData, output, &scores));
        using Work = std::function<void(std::size_t)>;
        const auto parallel_for = [&](std::size_t tasks, const Work& work) {
            const auto run = [](void* data, std::size_t task) {
                (*static_cast<const Work*>(data))(task);
            };
            check(call(api, abi::kParallelFor, context, +run, tasks, std::size_t{0},
                       const_cast<Work*>(&work)));
        };
        hierarchical_score(inputs, settings, parallel_for, static_cast<float*>(scores));
    });
}

constexpr abi::CustomOp make_operator() {
    abi::CustomOp op{};
    op.version = abi::kVersion;
    op.name = [](const abi::CustomOp*) { return kName; };
    op.execution_provider = [](const abi::CustomOp*) -> const char* { return nullptr; };
    op.input_type = [](const abi::CustomOp*, std::size_t index) {
        return index == kMask ? abi::kInt64 : abi::kFloat;
    };
    op.input_count = [](const abi::CustomOp*) { return kInputs.size(); };
    op.output_type = [](const abi::CustomOp*, std::size_t) { return abi::kFloat; };
    op.output_count = [](const abi::CustomOp*) { return std::size_t{1}; };
    op.destroy_kernel = destroy_kernel;
    op.input_characteristic = [](const abi::CustomOp*, std::size_t) { return abi::kRequired; };
    op.output_characteristic = [](const abi::CustomOp*, std::size_t) { return abi::kRequired; };
    op.input_memory = [](const abi::CustomOp*, std::size_t) { return abi::kDefaultMemory; };
    op.create_kernel_v2 = create_kernel;
    op.compute_v2 = compute;
    op.first_opset = [](const abi::CustomOp*) { return 1; };
    op.last_opset = [](const abi::CustomOp*) { return std::numeric_limits<int>::max(); };
    return op;
}

constexpr abi::CustomOp kOperator = make_operator();

// ---------------------------------------------------------------------------- registration

// The operator's domain, one for each ONNX Runtime in the process. A domain must outlive every
// session that uses it, and nobody says when the last one ends: it lives as long as the library.
class Domains {
  public:
    ~Domains() {
        for (const auto& [api, domain] : domains_) call(*api, abi::kReleaseCustomOpDomain, domain);
    }

    abi::CustomOpDomain* of(const Api& api) {
        const std::lock_guard lock(mutex_);
        for (const auto& [owner, domain] : domains_)
            if (owner == &api) return domain;
        domains_.reserve(domains_.size() + 1);
        abi::CustomOpDomain* domain = nullptr;
        check(call(api, abi::kCreateCustomOpDomain, kDomain, &domain));
        if (abi::Status* status = call(api, abi::kCustomOpDomainAdd, domain, &kOperator)) {
            call(api, abi::kReleaseCustomOpDomain, domain);
            throw StatusError{status};
        }
        domains_.emplace_back(&api, domain);
        return domain;
    }

  private:
    std::mutex mutex_;
    std::vector<std::pair<const Api*, abi::CustomOpDomain*>> domains_;
};

}  // namespace

// The entry point that ONNX Runtime looks for in a library of custom operators.
extern "C" __attribute__((visibility("default"))) abi::Status* RegisterCustomOps(
    abi::SessionOptions* options, const abi::ApiBase* base) {
    const Api* api = base->get_api(abi::kVersion);
    if (!api) {
        // Only the first interface is sure to exist; creating a status is part of it.
        const Api& oldest = *base->get_api(abi::kFirstVersion);
        return guarded(oldest, [&] {
            throw InputError(
                std::string("hat_export's operator needs ONNX Runtime 1.17 or newer, this is ") +
                base->get_version_string());
        });
    }
    return guarded(*api, [&] {
        if (hat_alignment_abi() != HAT_ALIGNMENT_ABI)
            throw InputError(
                "the alignment kernel's library beside this one is of another version: reinstall "
                "hat-export");
        static Domains domains;
        check(call(*api, abi::kAddCustomOpDomain, options, domains.of(*api)));
    });
}
