#include "../alignment/vector_avx512.hpp"
// The vectors must come first: the kernels are written in terms of them.
#include "attention_kernel.hpp"
#include "int8_kernel.hpp"
#include "linear_kernel.hpp"
#include "norm_kernel.hpp"

namespace hat_operators {

const Kernels kernels_avx512 = {
    attention_workspace, run_attention,     add_and_norm,          linear_tasks,   run_linear,
    round_rows,          int8_linear_tasks, int8_linear_workspace, run_int8_linear};

}  // namespace hat_operators
