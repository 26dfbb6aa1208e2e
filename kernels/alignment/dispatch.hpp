// Which instruction set to run on.
#pragma once

#include <stdint.h>

#include "plan.hpp"

namespace hat_alignment {

// Bit (1 << path) for every path that was built and that this CPU can run.
int32_t available_paths() noexcept;

// Replaces HAT_ALIGNMENT_AUTO by the environment's choice, else the fastest; checks the others.
hat_alignment_status resolve_path(int32_t path, int32_t* resolved) noexcept;

// The kernel of a path that resolve_path gave.
const Kernel& kernel_of(int32_t path) noexcept;

}  // namespace hat_alignment
