/* fastffn in C: the same calls as fastffn.hpp, for C programs and for languages that call C.
 *
 *   fastffn_error error;
 *   int64_t bytes;
 *   fastffn_tensor w = fastffn_array(weights, FASTFFN_F32, 2, (int64_t[]){4096, 1024});
 *   fastffn_packed_bytes(&w, "bf16", NULL, 0, &bytes, &error);
 *   void* up = malloc(bytes);
 *   if (fastffn_pack(&w, "bf16", NULL, 0, up, bytes, &error) != FASTFFN_OK) puts(error.message);
 *
 * Every function that can fail returns a fastffn_status and writes its message to `error` (which may be NULL): operation,
 * argument, expected, actual. Nothing is written to outputs when arguments are refused. Formulas, shapes, dtypes and roundings
 * are those of the C++ headers named beside each call. No function keeps a pointer after it returns.
 *
 * A context belongs to one thread at a time; different contexts may be used at once. Link with libfastffn_c.so, or with
 * libfastffn.a and a C++ runtime.
 */
#ifndef FASTFFN_C_H
#define FASTFFN_C_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define FASTFFN_C_EXPORT __attribute__((visibility("default")))
#else
#define FASTFFN_C_EXPORT
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Number of this interface: raised when a struct or a signature below changes. Compare with fastffn_c_api() where the library
 * is loaded at run time. */
#define FASTFFN_C_API 1

typedef enum fastffn_status {
    FASTFFN_OK = 0,
    FASTFFN_INVALID_ARGUMENT = 1, /* shape, dtype, layout or value */
    FASTFFN_UNSUPPORTED = 2,      /* valid, but not on this machine or in this build */
    FASTFFN_CORRUPT = 3,          /* a packed weight that is damaged, truncated or foreign */
    FASTFFN_OUT_OF_MEMORY = 4
} fastffn_status;

typedef struct fastffn_error {
    int32_t status;    /* fastffn_status */
    char message[508]; /* ends with '\0'; "" where status is FASTFFN_OK */
} fastffn_error;

enum fastffn_dtype {
    FASTFFN_F32 = 0,
    FASTFFN_F16 = 1,
    FASTFFN_BF16 = 2,
    FASTFFN_U8 = 3,
    FASTFFN_I8 = 4,
    FASTFFN_I32 = 5,
    FASTFFN_I64 = 6,
    FASTFFN_F64 = 7
};

#define FASTFFN_MAX_DIMS 8

/* A strided array in CPU memory; strides count elements. tensor.hpp */
typedef struct fastffn_tensor {
    void* data;
    int32_t dtype; /* enum fastffn_dtype */
    int32_t ndim;  /* 1 to FASTFFN_MAX_DIMS */
    int64_t shape[FASTFFN_MAX_DIMS];
    int64_t strides[FASTFFN_MAX_DIMS];
} fastffn_tensor;

/* Row-major and contiguous. `data` is only written where the array is an output. */
FASTFFN_C_EXPORT fastffn_tensor fastffn_array(const void* data, int32_t dtype, int32_t ndim, const int64_t* shape);

FASTFFN_C_EXPORT const char* fastffn_version(void); /* "0.1.0" */
FASTFFN_C_EXPORT int32_t fastffn_c_api(void);       /* FASTFFN_C_API of the library */

/* ---- contexts: threads and workspace of calls; context.hpp ---- */

typedef struct fastffn_context fastffn_context;

/* threads = 0: OMP_NUM_THREADS or what OpenMP says, at each call. NULL when memory ran out. */
FASTFFN_C_EXPORT fastffn_context* fastffn_context_new(int32_t threads);
FASTFFN_C_EXPORT void fastffn_context_free(fastffn_context* context); /* NULL is fine */
FASTFFN_C_EXPORT void fastffn_context_set_threads(fastffn_context* context, int32_t threads);
/* The kernels that the last call ran for its first weight, such as "bf16/amx"; valid until the next call. */
FASTFFN_C_EXPORT const char* fastffn_context_last_kernel(const fastffn_context* context);
FASTFFN_C_EXPORT int64_t fastffn_context_workspace_bytes(const fastffn_context* context);
FASTFFN_C_EXPORT void fastffn_context_release(fastffn_context* context); /* gives the workspace back */

/* ---- weights; packed.hpp, pack_options.hpp ---- */

/* A packed weight: plain bytes that may be stored, mapped and copied. */
typedef struct fastffn_packed {
    const void* data; /* NULL: none */
    int64_t bytes;
} fastffn_packed;

typedef enum fastffn_option_kind {
    FASTFFN_OPTION_TEXT = 0,
    FASTFFN_OPTION_INTEGER = 1,
    FASTFFN_OPTION_REAL = 2,
    FASTFFN_OPTION_BOOLEAN = 3,
    FASTFFN_OPTION_ARRAY = 4
} fastffn_option_kind;

/* What a format lets the caller choose: {"group", FASTFFN_OPTION_INTEGER, {.integer = 128}}. */
typedef struct fastffn_option {
    const char* name;
    int32_t kind; /* fastffn_option_kind */
    union {
        const char* text;
        int64_t integer; /* a boolean's too */
        double real;
        const fastffn_tensor* array;
    } value;
} fastffn_option;

/* w: [out_features, in_features] or [count, out_features, in_features], f32, f16, bf16 or f64, any strides. */
FASTFFN_C_EXPORT fastffn_status fastffn_packed_bytes(const fastffn_tensor* w, const char* format,
                                                     const fastffn_option* options, size_t option_count, int64_t* bytes,
                                                     fastffn_error* error);
FASTFFN_C_EXPORT fastffn_status fastffn_pack(const fastffn_tensor* w, const char* format, const fastffn_option* options,
                                             size_t option_count, void* out, int64_t out_bytes, fastffn_error* error);
/* A low-rank pair u [rank, in], v [out, rank] as one weight, factors stored as f32, f16, bf16 or int8; lowrank.hpp */
FASTFFN_C_EXPORT fastffn_status fastffn_packed_factors_bytes(const fastffn_tensor* u, const fastffn_tensor* v,
                                                             const char* factors, int64_t* bytes, fastffn_error* error);
FASTFFN_C_EXPORT fastffn_status fastffn_pack_factors(const fastffn_tensor* u, const fastffn_tensor* v,
                                                     const char* factors, void* out, int64_t out_bytes,
                                                     fastffn_error* error);
/* The weights back, dequantised: f32, f16 or bf16, contiguous. */
FASTFFN_C_EXPORT fastffn_status fastffn_unpack(fastffn_packed packed, const fastffn_tensor* w, fastffn_error* error);

typedef struct fastffn_packed_info {
    const char* format; /* a name that lives as long as the library */
    int64_t out_features, in_features, count;
    int64_t bytes;
} fastffn_packed_info;

/* Header and size, in constant time. */
FASTFFN_C_EXPORT fastffn_status fastffn_inspect(fastffn_packed packed, fastffn_packed_info* info, fastffn_error* error);
/* The same, and every byte. */
FASTFFN_C_EXPORT fastffn_status fastffn_verify(fastffn_packed packed, fastffn_error* error);

/* ---- dense layers; ffn.hpp ---- */

/* y = x · wᵀ + bias; bias may be NULL. */
FASTFFN_C_EXPORT fastffn_status fastffn_linear(fastffn_context* context, const fastffn_tensor* x, fastffn_packed w,
                                               const fastffn_tensor* bias, const fastffn_tensor* y,
                                               fastffn_error* error);

/* Set `size` to sizeof(the struct) and what is not used to 0: later versions may add members at the end. */
typedef struct fastffn_ffn_weights {
    size_t size;
    fastffn_packed w_up, w_down;
    fastffn_packed w_gate;      /* data == NULL: not gated */
    const fastffn_tensor* b_up; /* NULL: none */
    const fastffn_tensor* b_down;
    const fastffn_tensor* b_gate;
    const char* activation;  /* "identity", "relu", "relu2", "gelu", "gelu_tanh", "silu", "swiglu_clamped" */
    const int64_t* segments; /* start, length, start, length, …; NULL: all of d_ff */
    size_t segment_count;    /* pairs */
} fastffn_ffn_weights;

FASTFFN_C_EXPORT fastffn_status fastffn_ffn(fastffn_context* context, const fastffn_tensor* x,
                                            const fastffn_ffn_weights* weights, const fastffn_tensor* y,
                                            fastffn_error* error);
/* Exact bytes of workspace that such a call takes from its context. */
FASTFFN_C_EXPORT fastffn_status fastffn_ffn_workspace(const fastffn_tensor* x, const fastffn_ffn_weights* weights,
                                                      int32_t threads, int64_t* bytes, fastffn_error* error);

/* ---- mixture of experts; route.hpp, moe.hpp ---- */

typedef struct fastffn_topk_options {
    size_t size;
    int64_t k;
    const char* score; /* "softmax" (also NULL), "topk_softmax", "sigmoid", "relu" */
    int32_t renormalize;
    float scale; /* of every weight; 0 counts as 1 */
    const fastffn_tensor* bias;
    const fastffn_tensor* correction_bias;
    int64_t groups;          /* 0 counts as 1 */
    int64_t topk_groups;     /* 0: all */
    const char* group_score; /* "max" (also NULL) or "top2" */
} fastffn_topk_options;

/* logits [..., experts] → ids [..., k] i32, weights [..., k] f32, both contiguous. */
FASTFFN_C_EXPORT fastffn_status fastffn_route_topk(fastffn_context* context, const fastffn_tensor* logits,
                                                   const fastffn_topk_options* options, const fastffn_tensor* ids,
                                                   const fastffn_tensor* weights, fastffn_error* error);

/* One stack of experts: [E, …] weights and biases. */
typedef struct fastffn_moe_experts {
    fastffn_packed w_up, w_down, w_gate;
    const fastffn_tensor* b_up;
    const fastffn_tensor* b_down;
    const fastffn_tensor* b_gate;
} fastffn_moe_experts;

/* Experts that every token uses. */
typedef struct fastffn_moe_shared {
    fastffn_moe_experts experts;
    const fastffn_tensor* gate; /* [count, d_model]; NULL: weight 1 */
} fastffn_moe_shared;

typedef struct fastffn_moe_weights {
    size_t size;
    const fastffn_moe_experts* experts;
    size_t stacks; /* at least 1 */
    const char* activation;
    const fastffn_moe_shared* shared;
    size_t shared_stacks;
    int32_t weights_on_input;
} fastffn_moe_weights;

/* weights NULL: every pick counts 1. load: NULL, or a number per expert that is overwritten with how many slots named it. */
FASTFFN_C_EXPORT fastffn_status fastffn_moe(fastffn_context* context, const fastffn_tensor* x,
                                            const fastffn_tensor* ids, const fastffn_tensor* weights,
                                            const fastffn_moe_weights* layer, const fastffn_tensor* y, int64_t* load,
                                            fastffn_error* error);
FASTFFN_C_EXPORT fastffn_status fastffn_moe_workspace(const fastffn_tensor* x, int64_t picks,
                                                      const fastffn_moe_weights* layer, int32_t threads, int64_t* bytes,
                                                      fastffn_error* error);

/* ---- fast feedforward trees; fff.hpp ---- */

typedef struct fastffn_tree_parts {
    size_t size;
    const fastffn_tensor* w_node;
    const fastffn_tensor* b_node;    /* NULL: 0 */
    const fastffn_tensor* threshold; /* NULL: 0 */
    const fastffn_tensor* w_out;     /* NULL: the leaf form */
    const char* format;              /* of w_out, and of w_node in the all-node form; NULL: "f32" */
    const char* route_format;        /* of w_node; NULL: "f32" */
    const char* tie;                 /* "ge" (also NULL) or "gt" */
} fastffn_tree_parts;

FASTFFN_C_EXPORT fastffn_status fastffn_tree_bytes(const fastffn_tree_parts* parts, int64_t* bytes,
                                                   fastffn_error* error);
FASTFFN_C_EXPORT fastffn_status fastffn_pack_tree(const fastffn_tree_parts* parts, void* out, int64_t out_bytes,
                                                  fastffn_error* error);

typedef struct fastffn_fff_weights {
    size_t size;
    fastffn_packed tree;
    fastffn_packed w_up, w_down; /* leaf form only */
    const fastffn_tensor* b_up;
    const fastffn_tensor* b_down;
    const char* activation;
    const fastffn_tensor* leaf; /* forced leaves, i32 or i64; NULL: route */
} fastffn_fff_weights;

FASTFFN_C_EXPORT fastffn_status fastffn_fff(fastffn_context* context, const fastffn_tensor* x,
                                            const fastffn_fff_weights* weights, const fastffn_tensor* y,
                                            fastffn_error* error);
/* leaf [..., trees] i32; margin [..., trees] f32 or NULL; contiguous. */
FASTFFN_C_EXPORT fastffn_status fastffn_fff_route(fastffn_context* context, const fastffn_tensor* x,
                                                  fastffn_packed tree, const fastffn_tensor* leaf,
                                                  const fastffn_tensor* margin, fastffn_error* error);

/* ---- this machine; cpu.hpp ---- */

/* The instruction set in use ("avx2", "amx", …) and why; both live as long as the library. */
FASTFFN_C_EXPORT fastffn_status fastffn_isa(const char** isa, const char** reason, fastffn_error* error);

#ifdef __cplusplus
}
#endif

#endif /* FASTFFN_C_H */
