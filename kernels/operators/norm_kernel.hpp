// Sum of a residual branch, its bias and the stream it joins, and the sum's LayerNorm, a row at a
// time while the row is in the first-level cache; in terms of `Vector` (../alignment/vector_*.hpp).
#pragma once

#include <math.h>
#include <stdint.h>

#include "../alignment/product.hpp"
#include "kernels.hpp"

namespace {

using hat_operators::NormPlan;

void add_and_norm(const NormPlan& plan, int64_t first, int64_t last) {
    const int64_t width = plan.width, whole = width / kLanes * kLanes;
    const double count = static_cast<double>(width);
    for (int64_t row = first; row < last; ++row) {
        const float* branch = plan.branch + row * width;
        const float* stream = plan.stream + row * width;
        float* total = plan.total + row * width;
        float* normed = plan.normed + row * width;
        Vector sums = Vector::set(0.0f);
        float rest = 0.0f;
        for (int64_t i = 0; i < whole; i += kLanes) {
            const Vector value =
                Vector::load(branch + i) + Vector::load(plan.bias + i) + Vector::load(stream + i);
            value.store(total + i);
            sums = sums + value;
        }
        for (int64_t i = whole; i < width; ++i) {
            total[i] = branch[i] + plan.bias[i] + stream[i];
            rest += total[i];
        }
        // A long sum of large numbers is rounded often: the mean of the differences from it, which
        // are small, corrects the mean. Squares are those of differences, too: squares of the
        // values would cancel where the mean is large.
        const float rough = static_cast<float>(
            (static_cast<double>(Vector::total(sums)) + static_cast<double>(rest)) / count);
        const Vector roughs = Vector::set(rough);
        Vector squares = Vector::set(0.0f);
        sums = Vector::set(0.0f);
        float square_rest = 0.0f;
        rest = 0.0f;
        for (int64_t i = 0; i < whole; i += kLanes) {
            const Vector value = Vector::load(total + i) - roughs;
            sums = sums + value;
            squares = Vector::multiply_add(value, value, squares);
        }
        for (int64_t i = whole; i < width; ++i) {
            const float value = total[i] - rough;
            rest += value;
            square_rest += value * value;
        }
        const double shift =
            (static_cast<double>(Vector::total(sums)) + static_cast<double>(rest)) / count;
        const double spread =
            (static_cast<double>(Vector::total(squares)) + static_cast<double>(square_rest)) /
                count -
            shift * shift;
        const float mean = static_cast<float>(static_cast<double>(rough) + shift);
        const float scale =
            static_cast<float>(1.0 / sqrt((spread > 0.0 || spread != spread ? spread : 0.0) +
                                          static_cast<double>(plan.epsilon)));
        const Vector means = Vector::set(mean), scales = Vector::set(scale);
        for (int64_t i = 0; i < whole; i += kLanes) {
            const Vector value = (Vector::load(total + i) - means) * scales;
            Vector::multiply_add(value, Vector::load(plan.gamma + i), Vector::load(plan.beta + i))
                .store(normed + i);
        }
        for (int64_t i = whole; i < width; ++i)
            normed[i] = (total[i] - mean) * scale * plan.gamma[i] + plan.beta[i];
    }
}

}  // namespace
