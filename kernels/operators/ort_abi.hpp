// The part of ONNX Runtime's C interface that a custom operator needs, declared here so that the
// library builds where ONNX Runtime's headers aren't installed (its Python wheels carry none).
//
// ONNX Runtime only ever appends to this interface: OrtApi is a table of function pointers whose
// first entries keep their positions, and OrtCustomOp a struct that says with `version` how far it
// reaches. So the positions below hold for every ONNX Runtime from 1.17, which brought the last of
// them, and the interface is asked for by that version number.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hat_operators::abi {

// Interface version of ONNX Runtime 1.17.
inline constexpr std::uint32_t kVersion = 17;
// The first interface; every ONNX Runtime has it.
inline constexpr std::uint32_t kFirstVersion = 1;

// Objects of ONNX Runtime, known by address only. A null Status is success.
struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct TensorInfo;

// Enumerations of the C interface; their type is int in C.
inline constexpr int kFail = 1;             // OrtErrorCode
inline constexpr int kInvalidArgument = 2;  // OrtErrorCode
inline constexpr int kFloat = 1;            // ONNXTensorElementDataType
inline constexpr int kInt8 = 3;             // ONNXTensorElementDataType
inline constexpr int kInt32 = 6;            // ONNXTensorElementDataType
inline constexpr int kInt64 = 7;            // ONNXTensorElementDataType
inline constexpr int kRequired = 0;         // OrtCustomOpInputOutputCharacteristic
inline constexpr int kOptional = 1;         // OrtCustomOpInputOutputCharacteristic
inline constexpr int kDefaultMemory = 0;    // OrtMemType

inline constexpr std::size_t kEntries = 276;  // of version 17

// OrtApi: call its entries with `call`.
struct Api {
    void (*entries[kEntries])();
};

// OrtApiBase.
struct ApiBase {
    const Api* (*get_api)(std::uint32_t version);  // null where the version is unknown
    const char* (*get_version_string)();
};

// The position of a function in OrtApi together with its signature.
template <std::size_t kPosition, class Signature>
struct Entry {
    static_assert(kPosition < kEntries);
};

template <std::size_t kPosition, class Result, class... Parameters, class... Arguments>
Result call(const Api& api, Entry<kPosition, Result(Parameters...)>, Arguments... arguments) {
    return reinterpret_cast<Result (*)(Parameters...)>(api.entries[kPosition])(arguments...);
}

// The message is copied.
inline constexpr Entry<0, Status*(int code, const char* message)> kCreateStatus;
inline constexpr Entry<26, Status*(const char* name, CustomOpDomain** out)> kCreateCustomOpDomain;
inline constexpr Entry<27, Status*(CustomOpDomain*, const struct CustomOp*)> kCustomOpDomainAdd;
inline constexpr Entry<28, Status*(SessionOptions*, CustomOpDomain*)> kAddCustomOpDomain;
inline constexpr Entry<51, Status*(Value*, void** out)> kGetTensorMutableData;
inline constexpr Entry<61, Status*(const TensorInfo*, std::size_t* out)> kGetDimensionsCount;
inline constexpr Entry<62, Status*(const TensorInfo*, std::int64_t* out, std::size_t count)>
    kGetDimensions;
inline constexpr Entry<65, Status*(const Value*, TensorInfo** out)> kGetTensorTypeAndShape;
inline constexpr Entry<85, Status*(const KernelInfo*, const char* name, float* out)>
    kGetAttributeFloat;
inline constexpr Entry<86, Status*(const KernelInfo*, const char* name, std::int64_t* out)>
    kGetAttributeInt;
inline constexpr Entry<90, Status*(const KernelContext*, std::size_t index, const Value** out)>
    kGetInput;
inline constexpr Entry<91, Status*(KernelContext*, std::size_t index, const std::int64_t* shape,
                                   std::size_t rank, Value** out)>
    kGetOutput;
inline constexpr Entry<93, void(Status*)> kReleaseStatus;
inline constexpr Entry<99, void(TensorInfo*)> kReleaseTensorInfo;
inline constexpr Entry<101, void(CustomOpDomain*)> kReleaseCustomOpDomain;
// Runs work(data, task) for every task in [0, tasks) on the session's threads and waits;
// batches 0 lets ONNX Runtime decide how many tasks a thread takes at a time.
inline constexpr Entry<274,
                       Status*(const KernelContext*, void (*work)(void* data, std::size_t task),
                               std::size_t tasks, std::size_t batches, void* data)>
    kParallelFor;

// OrtCustomOp of version 17. A null entry is a feature not used: the operator hands errors back as
// a Status, by the entries ending in _v2, and therefore has none of the two that they replace.
struct CustomOp {
    std::uint32_t version;
    void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
    const char* (*name)(const CustomOp*);
    const char* (*execution_provider)(const CustomOp*);  // null: the CPU's
    int (*input_type)(const CustomOp*, std::size_t index);
    std::size_t (*input_count)(const CustomOp*);
    int (*output_type)(const CustomOp*, std::size_t index);
    std::size_t (*output_count)(const CustomOp*);
    void (*compute)(void* kernel, KernelContext*);
    void (*destroy_kernel)(void* kernel);
    int (*input_characteristic)(const CustomOp*, std::size_t index);
    int (*output_characteristic)(const CustomOp*, std::size_t index);
    int (*input_memory)(const CustomOp*, std::size_t index);
    int (*variadic_input_least)(const CustomOp*);
    int (*variadic_input_homogeneous)(const CustomOp*);
    int (*variadic_output_least)(const CustomOp*);
    int (*variadic_output_homogeneous)(const CustomOp*);
    Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void** kernel);
    Status* (*compute_v2)(void* kernel, KernelContext*);
    Status* (*infer_output_shape)(const CustomOp*, struct ShapeInferContext*);
    int (*first_opset)(const CustomOp*);
    int (*last_opset)(const CustomOp*);
};

}  // namespace hat_operators::abi
