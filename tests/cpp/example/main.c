/* Packs the weights of a gated layer and runs it on two tokens, from C. */
#include <fastffn/fastffn.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { tokens = 2, d_model = 4, d_ff = 8 };

static fastffn_error error;

static void check(fastffn_status status) {
    if (status == FASTFFN_OK) return;
    fprintf(stderr, "%s\n", error.message);
    exit(1);
}

/* A constant weight [out, in], as torch.nn.Linear holds it, packed as bf16. */
static fastffn_packed pack(float value, int64_t out, int64_t in) {
    float weights[d_ff * d_model];
    for (int i = 0; i < d_ff * d_model; ++i) weights[i] = value;
    const int64_t shape[] = {out, in};
    const fastffn_tensor w = fastffn_array(weights, FASTFFN_F32, 2, shape);
    fastffn_packed packed;
    check(fastffn_packed_bytes(&w, "bf16", NULL, 0, &packed.bytes, &error));
    void* bytes = malloc((size_t)packed.bytes);
    check(fastffn_pack(&w, "bf16", NULL, 0, bytes, packed.bytes, &error));
    packed.data = bytes;
    return packed;
}

int main(void) {
    fastffn_ffn_weights layer = {.size = sizeof layer, .activation = "silu"};
    layer.w_up = pack(0.5f, d_ff, d_model);
    layer.w_gate = pack(0.25f, d_ff, d_model);
    layer.w_down = pack(0.125f, d_model, d_ff);

    float x[tokens * d_model], y[tokens * d_model];
    for (int i = 0; i < tokens * d_model; ++i) x[i] = 1;
    const int64_t shape[] = {tokens, d_model};
    const fastffn_tensor in = fastffn_array(x, FASTFFN_F32, 2, shape), out = fastffn_array(y, FASTFFN_F32, 2, shape);
    fastffn_context* context = fastffn_context_new(0); /* threads and workspace, kept from call to call */
    check(fastffn_ffn(context, &in, &layer, &out, &error));

    /* silu(4 · 0.25) · (4 · 0.5), summed over 8 hidden units times 0.125, with the hidden value rounded to bf16. */
    const float expected = 1 / (1 + expf(-1)) * 2;
    printf("fastffn %s in C, %s: y = %f, expected %f\n", fastffn_version(), fastffn_context_last_kernel(context), y[0],
           expected);
    fastffn_context_free(context);
    free((void*)layer.w_up.data);
    free((void*)layer.w_gate.data);
    free((void*)layer.w_down.data);
    for (int i = 0; i < tokens * d_model; ++i)
        if (fabsf(y[i] - expected) > 0.01f) return 1;
    return 0;
}
