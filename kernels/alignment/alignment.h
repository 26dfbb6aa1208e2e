/* C interface of the fused alignment kernel.
 *
 * No function throws, aborts or keeps a pointer after it returns. Functions are safe to call from
 * several threads at once. Every array is C-contiguous and needs only its type's alignment.
 */
#ifndef HAT_ALIGNMENT_H
#define HAT_ALIGNMENT_H

#include <stdint.h>

#ifdef HAT_ALIGNMENT_BUILD
#define HAT_ALIGNMENT_API __attribute__((visibility("default")))
#else
#define HAT_ALIGNMENT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised by one whenever a struct or a signature below changes. */
#define HAT_ALIGNMENT_ABI 1

enum hat_alignment_direction {
    HAT_ALIGNMENT_I2T = 0, /* regions attend to words; the mean runs over regions */
    HAT_ALIGNMENT_T2I = 1  /* words attend to regions; the mean runs over words */
};

enum hat_alignment_path {
    HAT_ALIGNMENT_AUTO = 0, /* the environment's HAT_EXPORT_KERNEL_PATH, else the fastest here */
    HAT_ALIGNMENT_SCALAR = 1,
    HAT_ALIGNMENT_AVX2 = 2,   /* AVX2 and FMA */
    HAT_ALIGNMENT_AVX512 = 3, /* AVX-512F */
    HAT_ALIGNMENT_NEON = 4    /* AArch64 */
};

enum hat_alignment_status {
    HAT_ALIGNMENT_OK = 0,
    HAT_ALIGNMENT_NULL_POINTER = 1,
    HAT_ALIGNMENT_BAD_SIZE = 2,
    HAT_ALIGNMENT_BAD_CAPTION_START = 3,
    HAT_ALIGNMENT_BAD_LAMBDA = 4,
    HAT_ALIGNMENT_BAD_DIRECTION = 5,
    HAT_ALIGNMENT_BAD_THREADS = 6,
    HAT_ALIGNMENT_BAD_PATH = 7,
    HAT_ALIGNMENT_PATH_UNAVAILABLE = 8,
    HAT_ALIGNMENT_BAD_ENVIRONMENT = 9,
    HAT_ALIGNMENT_OFFSET_IN_T2I = 10,
    HAT_ALIGNMENT_NO_MEMORY = 11
};

/* One level of the score, a block of images with a block of captions.
 *
 * W(c) = caption_start[c + 1] - caption_start[c] is the length of caption c, total the sum of all.
 * `width` is that of the dot product: the full width of the features, or (i2t only) the width of
 * the image encoder's stage, if the projection has been moved to the words:
 *     x = P h + b    so that    c.x = (P^T c).h + c.b
 * with regions = h, words = P^T c, word_offset = c.b, while region_norms = |x| and gram = c.c' stay
 * those of the full width.
 */
typedef struct hat_alignment_request {
    const float* regions;      /* [images, regions_per_image, width] */
    const float* region_norms; /* [images, regions_per_image]: |x|; unused (may be null) in t2i */
    const float* words;        /* [total, width]: real words only, caption after caption */
    const float* word_offset;  /* [total], or null for none; must be null in t2i */
    const double* gram;        /* per caption [W(c), W(c)], one after the other */
    const int64_t* caption_start; /* [captions + 1], rising strictly from 0, in words */
    float* scores;                /* [images, captions], row stride scores_stride */
    int64_t images;
    int64_t regions_per_image;
    int64_t width;
    int64_t captions;
    int64_t scores_stride; /* in floats, at least captions */
    float softmax_lambda;  /* > 0, at most 1000 */
    int32_t direction;     /* hat_alignment_direction */
    int32_t threads;       /* 1 to 1024 */
    int32_t path;          /* hat_alignment_path */
    int32_t add;           /* 0: scores are written; else added to what is there */
} hat_alignment_request;

/* Version of this interface that the library was built with: HAT_ALIGNMENT_ABI. */
HAT_ALIGNMENT_API int32_t hat_alignment_abi(void);

/* One English line for a status; never null. The text is static. */
HAT_ALIGNMENT_API const char* hat_alignment_message(int32_t status);

/* Bit (1 << path) is set for every path that this build has and this CPU can run. */
HAT_ALIGNMENT_API int32_t hat_alignment_available_paths(void);

/* Writes the path that `path` stands for on this machine (HAT_ALIGNMENT_AUTO is resolved). */
HAT_ALIGNMENT_API int32_t hat_alignment_resolve_path(int32_t path, int32_t* resolved);

/* norms[i] = |rows[i]|, rows [count, width]; accumulated in float64. */
HAT_ALIGNMENT_API int32_t hat_alignment_norms(const float* rows, int64_t count, int64_t width,
                                              float* norms);

/* gram of every caption, accumulated in float64; words [total, width] as in the request. */
HAT_ALIGNMENT_API int32_t hat_alignment_gram(const float* words, const int64_t* caption_start,
                                             int64_t captions, int64_t width, double* gram);

/* Scores every image with every caption.
 *
 * A score depends on its own image and caption and on the path only: not on the number of threads
 * nor on what else is in the block. A pair whose inputs (or dot products) aren't finite gets NaN.
 * On an error nothing has been written.
 */
HAT_ALIGNMENT_API int32_t hat_alignment_score(const hat_alignment_request* request);

#ifdef __cplusplus
}
#endif

#endif
