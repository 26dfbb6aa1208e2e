// A loop over independent tasks on the threads of whoever runs the operator.
#pragma once

#include <cstddef>
#include <functional>

namespace hat_operators {

// Calls work(task) for every task in [0, tasks), possibly on several threads, and waits.
using ParallelFor =
    std::function<void(std::size_t tasks, const std::function<void(std::size_t)>& work)>;

}  // namespace hat_operators
