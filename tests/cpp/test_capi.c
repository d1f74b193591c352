/* The C interface from C: results against plain loops, errors, and the shared library's exported names (see CMakeLists.txt). */
#include <fastffn/fastffn.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0, checks = 0;

#define CHECK(condition)                                                           \
    do {                                                                           \
        ++checks;                                                                  \
        if (!(condition)) {                                                        \
            ++failures;                                                            \
            fprintf(stderr, "%s:%d: %s failed\n", __FILE__, __LINE__, #condition); \
        }                                                                          \
    } while (0)

#define OK(call)                                                                          \
    do {                                                                                  \
        ++checks;                                                                         \
        if ((call) != FASTFFN_OK || error.status != FASTFFN_OK || error.message[0]) {     \
            ++failures;                                                                   \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, error.message); \
        }                                                                                 \
    } while (0)

/* A refused call: its status, and a part of its message. */
#define REFUSED(code, text, call)                                                                            \
    do {                                                                                                     \
        ++checks;                                                                                            \
        memset(&error, 0, sizeof error);                                                                     \
        const fastffn_status status_ = (call);                                                               \
        if (status_ != (code) || error.status != (int)(code) || !strstr(error.message, text)) {              \
            ++failures;                                                                                      \
            fprintf(stderr, "%s:%d: %s: %d '%s'\n", __FILE__, __LINE__, #call, (int)status_, error.message); \
        }                                                                                                    \
    } while (0)

enum { tokens = 3, d_model = 20, d_ff = 37, experts = 4 };

static fastffn_error error;
static float random_state = 0.37f;

/* In [-1, 1], from the logistic map: no two arrays alike, the same on every machine that computes in float. */
static void fill(float* values, size_t count) {
    for (size_t i = 0; i < count; ++i) {
        random_state = 3.99f * random_state * (1 - random_state);
        values[i] = 2 * random_state - 1;
    }
}

static fastffn_tensor array(const float* data, int64_t rows, int64_t cols) {
    const int64_t shape[] = {rows, cols};
    return fastffn_array(data, FASTFFN_F32, 2, shape);
}

static fastffn_packed pack(const fastffn_tensor* w, const char* format, const fastffn_option* options, size_t count) {
    fastffn_packed packed = {NULL, 0};
    OK(fastffn_packed_bytes(w, format, options, count, &packed.bytes, &error));
    void* out = malloc((size_t)packed.bytes);
    OK(fastffn_pack(w, format, options, count, out, packed.bytes, &error));
    packed.data = out;
    OK(fastffn_verify(packed, &error));
    return packed;
}

static void drop(fastffn_packed packed) { free((void*)packed.data); }

/* y = (relu(x · gateᵀ) ⊙ (x · upᵀ)) · downᵀ of one row, in double. */
static void gated(const float* x, const float* up, const float* gate, const float* down, double* y) {
    double hidden[d_ff];
    for (int h = 0; h < d_ff; ++h) {
        double u = 0, g = 0;
        for (int k = 0; k < d_model; ++k) {
            u += (double)x[k] * up[h * d_model + k];
            g += (double)x[k] * gate[h * d_model + k];
        }
        hidden[h] = g > 0 ? g * u : 0;
    }
    for (int o = 0; o < d_model; ++o) {
        y[o] = 0;
        for (int h = 0; h < d_ff; ++h) y[o] += hidden[h] * down[o * d_ff + h];
    }
}

static float up[experts * d_ff * d_model], gate[experts * d_ff * d_model], down[experts * d_model * d_ff];
static float x[tokens * d_model], y[tokens * d_model];

static void test_ffn(fastffn_context* context) {
    const fastffn_tensor w_up = array(up, d_ff, d_model), w_gate = array(gate, d_ff, d_model);
    const fastffn_tensor w_down = array(down, d_model, d_ff);
    const fastffn_tensor in = array(x, tokens, d_model), out = array(y, tokens, d_model);
    fastffn_ffn_weights weights = {.size = sizeof weights, .activation = "relu"};
    weights.w_up = pack(&w_up, "f32", NULL, 0);
    weights.w_gate = pack(&w_gate, "f32", NULL, 0);
    weights.w_down = pack(&w_down, "f32", NULL, 0);

    fastffn_packed_info info;
    OK(fastffn_inspect(weights.w_up, &info, &error));
    CHECK(!strcmp(info.format, "f32") && info.out_features == d_ff && info.in_features == d_model && info.count == 1);
    CHECK(info.bytes == weights.w_up.bytes);
    float* back = malloc(sizeof(float) * d_ff * d_model);
    const fastffn_tensor unpacked = array(back, d_ff, d_model);
    OK(fastffn_unpack(weights.w_up, &unpacked, &error));
    CHECK(!memcmp(back, up, sizeof(float) * d_ff * d_model));
    free(back);

    memset(y, 0xff, sizeof y);
    OK(fastffn_ffn(context, &in, &weights, &out, &error));
    for (int t = 0; t < tokens; ++t) {
        double expected[d_model];
        gated(x + t * d_model, up, gate, down, expected);
        for (int o = 0; o < d_model; ++o) CHECK(fabs(y[t * d_model + o] - expected[o]) < 1e-4);
    }
    CHECK(strstr(fastffn_context_last_kernel(context), "f32/") != NULL);
    int64_t bytes = 0;
    OK(fastffn_ffn_workspace(&in, &weights, 1, &bytes, &error));
    CHECK(bytes > 0 && bytes <= fastffn_context_workspace_bytes(context));

    /* One thread for each call's own context gives the same bits. */
    float again[tokens * d_model];
    const fastffn_tensor out2 = array(again, tokens, d_model);
    fastffn_context* other = fastffn_context_new(2);
    OK(fastffn_ffn(other, &in, &weights, &out2, &error));
    CHECK(!memcmp(again, y, sizeof y));
    fastffn_context_free(other);

    /* All of d_ff as one segment is the layer; a bias moves every output. */
    const int64_t segment[] = {0, d_ff};
    weights.segments = segment;
    weights.segment_count = 1;
    float bias_values[d_model];
    for (int o = 0; o < d_model; ++o) bias_values[o] = 0.5f;
    const int64_t bias_shape[] = {d_model};
    const fastffn_tensor bias = fastffn_array(bias_values, FASTFFN_F32, 1, bias_shape);
    weights.b_down = &bias;
    OK(fastffn_ffn(context, &in, &weights, &out2, &error));
    for (int i = 0; i < tokens * d_model; ++i) CHECK(fabsf(again[i] - y[i] - 0.5f) < 1e-4f);
    weights.b_down = NULL;
    weights.segment_count = 0;
    REFUSED(FASTFFN_INVALID_ARGUMENT, "segments is empty", fastffn_ffn(context, &in, &weights, &out, &error));
    weights.segments = NULL;

    /* Refusals, each before any work. */
    memset(y, 0x5a, sizeof y);
    weights.activation = "sillu";
    REFUSED(FASTFFN_INVALID_ARGUMENT, "sillu", fastffn_ffn(context, &in, &weights, &out, &error));
    weights.activation = NULL;
    REFUSED(FASTFFN_INVALID_ARGUMENT, "activation is NULL", fastffn_ffn(context, &in, &weights, &out, &error));
    weights.activation = "relu";
    REFUSED(FASTFFN_INVALID_ARGUMENT, "x is NULL", fastffn_ffn(context, NULL, &weights, &out, &error));
    REFUSED(FASTFFN_INVALID_ARGUMENT, "context is NULL", fastffn_ffn(NULL, &in, &weights, &out, &error));
    REFUSED(FASTFFN_INVALID_ARGUMENT, "weights is NULL", fastffn_ffn(context, &in, NULL, &out, &error));
    weights.size = 0;
    REFUSED(FASTFFN_INVALID_ARGUMENT, "size is 0", fastffn_ffn(context, &in, &weights, &out, &error));
    weights.size = sizeof weights;
    fastffn_tensor wrong = in;
    wrong.dtype = 17;
    REFUSED(FASTFFN_INVALID_ARGUMENT, "dtype number 17", fastffn_ffn(context, &wrong, &weights, &out, &error));
    wrong = in;
    wrong.ndim = 9;
    REFUSED(FASTFFN_INVALID_ARGUMENT, "9 dimensions", fastffn_ffn(context, &wrong, &weights, &out, &error));
    const fastffn_tensor narrow = array(x, tokens, d_model - 1);
    REFUSED(FASTFFN_INVALID_ARGUMENT, "(3, 19)", fastffn_ffn(context, &narrow, &weights, &out, &error));
    const fastffn_packed whole = weights.w_down;
    weights.w_down.bytes -= 1;
    REFUSED(FASTFFN_CORRUPT, "w_down", fastffn_ffn(context, &in, &weights, &out, &error));
    weights.w_down = whole;
    CHECK(fastffn_ffn(context, NULL, &weights, &out, NULL) == FASTFFN_INVALID_ARGUMENT); /* no room for a message */
    for (size_t i = 0; i < sizeof y; ++i) CHECK(((unsigned char*)y)[i] == 0x5a);

    drop(weights.w_up);
    drop(weights.w_gate);
    drop(weights.w_down);
}

static void test_options(fastffn_context* context) {
    const fastffn_tensor w = array(up, d_ff, d_model), in = array(x, tokens, d_model);
    float wide[tokens * d_ff], again[tokens * d_ff];
    const fastffn_tensor out = array(wide, tokens, d_ff), out2 = array(again, tokens, d_ff);
    const fastffn_option group[] = {{"group", FASTFFN_OPTION_INTEGER, {.integer = 32}},
                                    {"act", FASTFFN_OPTION_TEXT, {.text = "int8"}}};
    const fastffn_packed int4 = pack(&w, "int4", group, 2);
    OK(fastffn_linear(context, &in, int4, NULL, &out, &error));
    float* back = malloc(sizeof(float) * d_ff * d_model);
    const fastffn_tensor unpacked = array(back, d_ff, d_model);
    OK(fastffn_unpack(int4, &unpacked, &error));
    for (int i = 0; i < d_ff * d_model; ++i) CHECK(fabsf(back[i] - up[i]) < 1.0f / 7);

    /* The same dequantised weights in f32: activations of int8 are all that differs. */
    const fastffn_packed plain = pack(&unpacked, "f32", NULL, 0);
    OK(fastffn_linear(context, &in, plain, NULL, &out2, &error));
    for (int i = 0; i < tokens * d_ff; ++i) CHECK(fabsf(wide[i] - again[i]) < d_model / 127.0f);
    drop(plain);
    drop(int4);

    /* Codes with a scale of their own: an array among the options. */
    for (int i = 0; i < d_ff * d_model; ++i) back[i] = (float)(i % 3 - 1);
    float scale_value = 0.25f;
    const int64_t one[] = {1};
    const fastffn_tensor scale = fastffn_array(&scale_value, FASTFFN_F32, 1, one);
    const fastffn_option given[] = {{"scale", FASTFFN_OPTION_ARRAY, {.array = &scale}}};
    const fastffn_packed ternary = pack(&unpacked, "ternary", given, 1);
    float* codes = malloc(sizeof(float) * d_ff * d_model);
    const fastffn_tensor read = array(codes, d_ff, d_model);
    OK(fastffn_unpack(ternary, &read, &error));
    for (int i = 0; i < d_ff * d_model; ++i) CHECK(codes[i] == 0.25f * back[i]);
    drop(ternary);
    free(codes);
    free(back);

    int64_t bytes = 0;
    REFUSED(FASTFFN_INVALID_ARGUMENT, "int5", fastffn_packed_bytes(&w, "int5", NULL, 0, &bytes, &error));
    const fastffn_option unknown[] = {{"grup", FASTFFN_OPTION_INTEGER, {.integer = 32}}};
    REFUSED(FASTFFN_INVALID_ARGUMENT, "grup", fastffn_packed_bytes(&w, "int4", unknown, 1, &bytes, &error));
    const fastffn_option kind[] = {{"group", 9, {.integer = 32}}};
    REFUSED(FASTFFN_INVALID_ARGUMENT, "kind is 9", fastffn_packed_bytes(&w, "int4", kind, 1, &bytes, &error));
    const fastffn_tensor shapeless = fastffn_array(x, FASTFFN_F32, 2, NULL);
    REFUSED(FASTFFN_INVALID_ARGUMENT, "-1 dimensions",
            fastffn_packed_bytes(&shapeless, "int4", NULL, 0, &bytes, &error));
    REFUSED(FASTFFN_INVALID_ARGUMENT, "bytes is NULL", fastffn_packed_bytes(&w, "int4", NULL, 0, NULL, &error));
    REFUSED(FASTFFN_INVALID_ARGUMENT, "out is NULL", fastffn_pack(&w, "int4", NULL, 0, NULL, 0, &error));
    const fastffn_packed foreign = {x, sizeof x};
    REFUSED(FASTFFN_CORRUPT, "packed", fastffn_verify(foreign, &error));
}

static void test_low_rank(fastffn_context* context) {
    enum { rank = 5 };
    const fastffn_tensor u = array(up, rank, d_model), v = array(gate, d_ff, rank), in = array(x, tokens, d_model);
    fastffn_packed packed = {NULL, 0};
    OK(fastffn_packed_factors_bytes(&u, &v, "f32", &packed.bytes, &error));
    void* bytes = malloc((size_t)packed.bytes);
    OK(fastffn_pack_factors(&u, &v, "f32", bytes, packed.bytes, &error));
    packed.data = bytes;
    float wide[tokens * d_ff];
    const fastffn_tensor out = array(wide, tokens, d_ff);
    OK(fastffn_linear(context, &in, packed, NULL, &out, &error));
    for (int t = 0; t < tokens; ++t)
        for (int o = 0; o < d_ff; ++o) {
            double expected = 0;
            for (int r = 0; r < rank; ++r) {
                double p = 0;
                for (int k = 0; k < d_model; ++k) p += (double)x[t * d_model + k] * up[r * d_model + k];
                expected += p * gate[o * rank + r];
            }
            CHECK(fabs(wide[t * d_ff + o] - expected) < 1e-4);
        }
    drop(packed);
}

static void test_moe(fastffn_context* context) {
    enum { picks = 2 };
    float logits[tokens * experts];
    fill(logits, tokens * experts);
    int32_t ids[tokens * picks];
    float weights[tokens * picks];
    const int64_t route_shape[] = {tokens, picks};
    const fastffn_tensor logit_array = array(logits, tokens, experts);
    const fastffn_tensor id_array = fastffn_array(ids, FASTFFN_I32, 2, route_shape);
    const fastffn_tensor weight_array = fastffn_array(weights, FASTFFN_F32, 2, route_shape);
    fastffn_topk_options options = {.size = sizeof options, .k = picks, .renormalize = 1};
    OK(fastffn_route_topk(context, &logit_array, &options, &id_array, &weight_array, &error));
    for (int t = 0; t < tokens; ++t) {
        CHECK(fabsf(weights[t * picks] + weights[t * picks + 1] - 1) < 1e-6f);
        for (int e = 0; e < experts; ++e) CHECK(logits[t * experts + e] <= logits[t * experts + ids[t * picks]]);
    }
    options.score = "sofmax";
    REFUSED(FASTFFN_INVALID_ARGUMENT, "sofmax",
            fastffn_route_topk(context, &logit_array, &options, &id_array, &weight_array, &error));

    const int64_t up_shape[] = {experts, d_ff, d_model}, down_shape[] = {experts, d_model, d_ff};
    const fastffn_tensor w_up = fastffn_array(up, FASTFFN_F32, 3, up_shape);
    const fastffn_tensor w_gate = fastffn_array(gate, FASTFFN_F32, 3, up_shape);
    const fastffn_tensor w_down = fastffn_array(down, FASTFFN_F32, 3, down_shape);
    fastffn_moe_experts stack = {0};
    stack.w_up = pack(&w_up, "f32", NULL, 0);
    stack.w_gate = pack(&w_gate, "f32", NULL, 0);
    stack.w_down = pack(&w_down, "f32", NULL, 0);
    fastffn_moe_weights layer = {.size = sizeof layer, .experts = &stack, .stacks = 1, .activation = "relu"};
    const fastffn_tensor in = array(x, tokens, d_model), out = array(y, tokens, d_model);
    int64_t load[experts] = {-1, -1, -1, -1}, total = 0, bytes = 0;
    OK(fastffn_moe(context, &in, &id_array, &weight_array, &layer, &out, load, &error));
    OK(fastffn_moe_workspace(&in, picks, &layer, 1, &bytes, &error));
    CHECK(bytes > 0);
    for (int e = 0; e < experts; ++e) total += load[e];
    CHECK(total == tokens * picks);
    for (int t = 0; t < tokens; ++t) {
        double expected[d_model] = {0};
        for (int j = 0; j < picks; ++j) {
            const int e = ids[t * picks + j];
            double part[d_model];
            gated(x + t * d_model, up + e * d_ff * d_model, gate + e * d_ff * d_model, down + e * d_model * d_ff, part);
            for (int o = 0; o < d_model; ++o) expected[o] += weights[t * picks + j] * part[o];
        }
        for (int o = 0; o < d_model; ++o) CHECK(fabs(y[t * d_model + o] - expected[o]) < 1e-4);
    }

    /* The stack once more as shared experts adds the sum of all of them. */
    float with_shared[tokens * d_model];
    const fastffn_tensor out2 = array(with_shared, tokens, d_model);
    const fastffn_moe_shared shared = {.experts = stack};
    layer.shared = &shared;
    layer.shared_stacks = 1;
    OK(fastffn_moe(context, &in, &id_array, &weight_array, &layer, &out2, NULL, &error));
    for (int t = 0; t < tokens; ++t) {
        double sum[d_model] = {0};
        for (int e = 0; e < experts; ++e) {
            double part[d_model];
            gated(x + t * d_model, up + e * d_ff * d_model, gate + e * d_ff * d_model, down + e * d_model * d_ff, part);
            for (int o = 0; o < d_model; ++o) sum[o] += part[o];
        }
        for (int o = 0; o < d_model; ++o)
            CHECK(fabs(with_shared[t * d_model + o] - y[t * d_model + o] - sum[o]) < 2e-4);
    }
    ids[3] = experts;
    REFUSED(FASTFFN_INVALID_ARGUMENT, "ids",
            fastffn_moe(context, &in, &id_array, &weight_array, &layer, &out, NULL, &error));
    layer.stacks = 0;
    REFUSED(FASTFFN_INVALID_ARGUMENT, "at least one stack",
            fastffn_moe(context, &in, &id_array, &weight_array, &layer, &out, NULL, &error));
    drop(stack.w_up);
    drop(stack.w_gate);
    drop(stack.w_down);
}

static void test_fff(fastffn_context* context) {
    enum { depth = 3, nodes = (1 << (depth + 1)) - 1 };
    const fastffn_tensor w_node = array(up, nodes, d_model), w_out = array(gate, nodes, d_model);
    fastffn_tree_parts parts = {.size = sizeof parts, .w_node = &w_node, .w_out = &w_out, .tie = "gt"};
    fastffn_fff_weights weights = {.size = sizeof weights, .activation = "relu"};
    OK(fastffn_tree_bytes(&parts, &weights.tree.bytes, &error));
    void* tree = malloc((size_t)weights.tree.bytes);
    OK(fastffn_pack_tree(&parts, tree, weights.tree.bytes, &error));
    weights.tree.data = tree;
    const fastffn_tensor in = array(x, tokens, d_model), out = array(y, tokens, d_model);
    OK(fastffn_fff(context, &in, &weights, &out, &error));
    int32_t leaf[tokens];
    float margin[tokens];
    const int64_t shape[] = {tokens, 1};
    const fastffn_tensor leaves = fastffn_array(leaf, FASTFFN_I32, 2, shape);
    const fastffn_tensor margins = fastffn_array(margin, FASTFFN_F32, 2, shape);
    OK(fastffn_fff_route(context, &in, weights.tree, &leaves, &margins, &error));
    for (int t = 0; t < tokens; ++t) {
        double expected[d_model] = {0}, closest = INFINITY;
        int node = 0;
        for (int level = 0; level <= depth; ++level) {
            double z = 0;
            for (int k = 0; k < d_model; ++k) z += (double)x[t * d_model + k] * up[node * d_model + k];
            if (z > 0)
                for (int o = 0; o < d_model; ++o) expected[o] += z * gate[node * d_model + o];
            if (level == depth) break;
            closest = fmin(closest, fabs(z));
            node = 2 * node + (z > 0 ? 2 : 1);
        }
        CHECK(leaf[t] == node - ((1 << depth) - 1));
        CHECK(fabs(margin[t] - closest) < 1e-5);
        for (int o = 0; o < d_model; ++o) CHECK(fabs(y[t * d_model + o] - expected[o]) < 1e-4);
    }
    parts.tie = "ne";
    REFUSED(FASTFFN_INVALID_ARGUMENT, "tie is 'ne'", fastffn_pack_tree(&parts, tree, weights.tree.bytes, &error));
    drop(weights.tree);
}

int main(void) {
    const char *isa = NULL, *reason = NULL;
    OK(fastffn_isa(&isa, &reason, &error));
    printf("fastffn %s, C interface %d, %s: %s\n", fastffn_version(), (int)fastffn_c_api(), isa, reason);
    CHECK(fastffn_c_api() == FASTFFN_C_API);
    CHECK(strchr(fastffn_version(), '.') != NULL);
    fill(up, sizeof up / sizeof *up);
    fill(gate, sizeof gate / sizeof *gate);
    fill(down, sizeof down / sizeof *down);
    fill(x, sizeof x / sizeof *x);
    fastffn_context* context = fastffn_context_new(1);
    test_ffn(context);
    test_options(context);
    test_low_rank(context);
    test_moe(context);
    test_fff(context);
    fastffn_context_release(context);
    CHECK(fastffn_context_workspace_bytes(context) == 0);
    fastffn_context_free(context);
    fastffn_context_free(NULL);
    printf("%d checks, %d failed\n", checks, failures);
    return failures != 0;
}
