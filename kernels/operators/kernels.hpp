// What the operators of the encoders compute, for one instruction set at a time.
//
// Only plain data here: this header is included by translation units with different compile flags,
// and an inline function shared between them could be emitted with instructions that the CPU lacks.
#pragma once

#include <stdint.h>

namespace hat_operators {

// Tokens of an item attend to each other within groups: the windows of a feature map, which is
// shifted cyclically towards the upper left first, or (window 0) all tokens together.
struct AttentionPlan {
    const float* qkv;            // [items, tokens, 3, heads, head_dim]
    const float* qkv_bias;       // [3, heads, head_dim]
    const float* position_bias;  // windows: [heads, window^2, window^2], added to the logits
    const int64_t* mask;         // no windows: [items, tokens], 0 for tokens not attended to
    float* mixed;                // [items, tokens, heads, head_dim]
    int64_t items;
    int64_t tokens;
    int64_t heads;
    int64_t head_dim;
    int64_t side;    // windows: tokens along a side of the feature map, a multiple of window
    int64_t window;  // tokens along a side of a window, or 0
    int64_t shift;   // in tokens, less than window
};

// normed = LayerNorm(total), total = stream + branch + bias, row by row.
struct NormPlan {
    const float* branch;  // [rows, width]
    const float* stream;  // [rows, width]
    const float* gamma;   // [width]
    const float* beta;    // [width]
    const float* bias;    // [width]
    float* normed;        // [rows, width]
    float* total;         // [rows, width]
    int64_t width;
    float epsilon;
};

// Columns of a weight that lie together; see linear_kernel.hpp.
constexpr int64_t kPanelColumns = 64;

// y = x W^T + bias, and its GELU (the exact one) if asked for.
struct LinearPlan {
    const float* x;       // [rows, depth]
    const float* weight;  // [panels, depth, kPanelColumns]; columns past the last hold zeros
    const float* bias;    // [columns] or null
    float* y;             // [rows, columns]
    int64_t rows;
    int64_t depth;  // at least 1
    int64_t columns;
    bool activate;
};

// Rows of int8 products are this many values long, or a multiple: what the widest unit takes at a
// time. The rest of a row is zeros.
constexpr int64_t kInt8Depth = 64;

// sums[r, c] = sum over k of x[r, k] panel[k / 4, c, k % 4], exactly; x is [rows, depth] with depth
// a multiple of kInt8Depth, sums is [rows, kPanelColumns]. Rows up to the next multiple of
// kInt8Rows may be read and written too: whoever calls has room for them.
using Int8Products = void (*)(const uint8_t* x, int64_t rows, int64_t depth, const int8_t* panel,
                              int32_t* sums);
constexpr int64_t kInt8Rows = 16;
// Weights up to this: 255 * 64 + 255 * 64 is the last sum of two products that fits 16 bits.
constexpr int64_t kSmallWeights = 64;

// As LinearPlan, in products of 8 bits: every row of x is rounded to steps of its own, so that no
// row's result depends on the others.
struct Int8LinearPlan {
    const float* x;         // [rows, depth]
    const int8_t* weight;   // [panels, padded / 4, kPanelColumns, 4]
    const float* scale;     // [columns]: weights in float32 are weight * scale
    const int32_t* totals;  // [columns]: sums of the columns of weight
    const float* bias;      // [columns] or null
    float* y;               // [rows, columns]
    uint8_t* rounded;       // [rows, padded]: x = step * (rounded - zero)
    float* step;            // [rows]
    int32_t* zero;          // [rows]
    Int8Products products;
    int64_t rows;
    int64_t depth;   // at least 1
    int64_t padded;  // depth rounded up to kInt8Depth
    int64_t columns;
    bool activate;
};

struct Kernels {
    // Floats of scratch memory that one call of `attend` needs; 64-byte aligned.
    int64_t (*attention_workspace)(const AttentionPlan& plan);
    // Tasks [first, last) of items * groups * heads.
    void (*attend)(const AttentionPlan& plan, float* workspace, int64_t first, int64_t last);
    // Rows [first, last).
    void (*add_and_norm)(const NormPlan& plan, int64_t first, int64_t last);
    int64_t (*linear_tasks)(const LinearPlan& plan);
    // Tasks [first, last).
    void (*linear)(const LinearPlan& plan, int64_t first, int64_t last);
    // Rows [first, last).
    void (*round_rows)(const Int8LinearPlan& plan, int64_t first, int64_t last);
    int64_t (*int8_linear_tasks)(const Int8LinearPlan& plan);
    // Bytes of scratch memory that one call of `int8_linear` needs; 64-byte aligned.
    int64_t (*int8_linear_workspace)(const Int8LinearPlan& plan);
    // Tasks [first, last), after round_rows.
    void (*int8_linear)(const Int8LinearPlan& plan, int32_t* workspace, int64_t first,
                        int64_t last);
};

extern const Kernels kernels_scalar;
#ifdef HAT_ALIGNMENT_BUILD_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif
#ifdef HAT_ALIGNMENT_BUILD_NEON
extern const Kernels kernels_neon;
#endif

}  // namespace hat_operators
