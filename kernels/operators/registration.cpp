// The library's entry point, by which ONNX Runtime learns of the operators.
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "../alignment/alignment.h"
#include "operator.hpp"

using namespace hat_operators;

namespace {

constexpr const char* kDomain = "hat_export";
constexpr const abi::CustomOp* kOperators[] = {&kAddLayerNormOperator, &kInt8LinearOperator,
                                               &kLinearOperator, &kWindowAttentionOperator,
                                               &kMaskedAttentionOperator};

// The operators' domain, one for each ONNX Runtime in the process. A domain must outlive every
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
        for (const abi::CustomOp* op : kOperators) {
            if (abi::Status* status = call(api, abi::kCustomOpDomainAdd, domain, op)) {
                call(api, abi::kReleaseCustomOpDomain, domain);
                throw StatusError{status};
            }
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
                std::string("hat_export's operators need ONNX Runtime 1.17 or newer, this is ") +
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
