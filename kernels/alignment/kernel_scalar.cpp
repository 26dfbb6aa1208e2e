#include "vector_scalar.hpp"
// The vectors must come first: kernel.hpp is written in terms of them.
#include "kernel.hpp"

namespace hat_alignment {

const Kernel scalar_kernel = {workspace_floats, run_group};

}  // namespace hat_alignment
