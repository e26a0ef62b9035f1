/* What torch does in many small calls, in one: attention of packed texts.
   Everything is float32 in the caller's memory; nothing is allocated or kept. Compiled by server/kernels.py. */

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 16, QUERIES = 4 };
typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t whole_lanes __attribute__((vector_size(4 * LANES)));

static inline lanes load(const float *from) {
    lanes x;
    memcpy(&x, from, sizeof x);
    return x;
}

static inline void store(float *to, lanes x) { memcpy(to, &x, sizeof x); }

/* exp(x) for x <= 0, within 2 units in the last place (Cephes' expf); what is smaller than exp(-87) becomes that. */
static inline lanes exp_lanes(lanes x) {
    const lanes zero = {0}, lowest = zero - 87.0f;
    whole_lanes too_low = x < lowest;
    x = (lanes)(((whole_lanes)x & ~too_low) | ((whole_lanes)lowest & too_low));
    const lanes magic = zero + 12582912.0f; /* adding and taking away 1.5 * 2^23 rounds to a whole number */
    lanes n = (x * 1.44269504f + magic) - magic;
    lanes r = x - n * 0.693359375f + n * 2.12194440e-4f;
    lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    whole_lanes exponent = (__builtin_convertvector(n, whole_lanes) + 127) << 23;
    return p * (lanes)exponent;
}

/* Scores become weights that add up to 1; those behind num_keys become 0. width: num_keys, rounded up to LANES. */
static void soften(float *scores, long num_keys, long width) {
    float highest = scores[0], total = 0;
    for (long j = num_keys; j < width; j++) scores[j] = highest;
    lanes most = load(scores);
    for (long j = LANES; j < width; j += LANES) {
        lanes other = load(scores + j);
        whole_lanes more = other > most;
        most = (lanes)(((whole_lanes)other & more) | ((whole_lanes)most & ~more));
    }
    for (int i = 0; i < LANES; i++) highest = most[i] > highest ? most[i] : highest;
    for (long j = 0; j < width; j += LANES) store(scores + j, exp_lanes(load(scores + j) - highest));
    for (long j = num_keys; j < width; j++) scores[j] = 0;
    lanes sum = {0};
    for (long j = 0; j < width; j += LANES) sum += load(scores + j);
    for (int i = 0; i < LANES; i++) total += sum[i];
    for (long j = 0; j < width; j += LANES) store(scores + j, load(scores + j) / total);
}

/* to[i][0..n * LANES) = sum over k of weights[i][k] * rows[k][0..n * LANES), for QUERIES i; n is 1 or 2. */
static inline __attribute__((always_inline)) void multiply(const float *const weights[QUERIES], const float *rows,
                                                           long row_stride, long num_rows, int n,
                                                           lanes to[QUERIES][2]) {
    lanes a0 = {0}, a1 = {0}, b0 = {0}, b1 = {0}, c0 = {0}, c1 = {0}, d0 = {0}, d1 = {0};
    for (long k = 0; k < num_rows; k++) {
        const float *row = rows + k * row_stride;
        float a = weights[0][k], b = weights[1][k], c = weights[2][k], d = weights[3][k];
        lanes first = load(row);
        a0 += first * a, b0 += first * b, c0 += first * c, d0 += first * d;
        if (n == 2) {
            lanes second = load(row + LANES);
            a1 += second * a, b1 += second * b, c1 += second * c, d1 += second * d;
        }
    }
    to[0][0] = a0, to[1][0] = b0, to[2][0] = c0, to[3][0] = d0;
    to[0][1] = a1, to[1][1] = b1, to[2][1] = c1, to[3][1] = d1;
}

/* Some queries (at most QUERIES) of one text and head.
   turned_keys [head_dim][width], values [num_keys][head_dim], scores [QUERIES][width]. */
static void attend_few(const float *queries, long query_stride, long count, const float *turned_keys,
                       const float *values, long num_keys, long width, long head_dim, float scale, float *scores,
                       float *out, long out_stride) {
    const float *from[QUERIES], *weights[QUERIES];
    lanes sums[QUERIES][2];
    for (int i = 0; i < QUERIES; i++) from[i] = queries + (i < count ? i : 0) * query_stride;
    for (int i = 0; i < QUERIES; i++) weights[i] = scores + i * width;
    for (long j = 0; j < width; j += 2 * LANES) {
        int n = j + LANES < width ? 2 : 1;
        if (n == 2)
            multiply(from, turned_keys + j, width, head_dim, 2, sums);
        else
            multiply(from, turned_keys + j, width, head_dim, 1, sums);
        for (int i = 0; i < QUERIES; i++)
            for (int m = 0; m < n; m++) store(scores + i * width + j + m * LANES, sums[i][m] * scale);
    }
    for (long i = 0; i < count; i++) soften(scores + i * width, num_keys, width);
    for (long k = 0; k < head_dim; k += 2 * LANES) {
        int n = k + LANES < head_dim ? 2 : 1;
        if (n == 2)
            multiply(weights, values + k, head_dim, num_keys, 2, sums);
        else
            multiply(weights, values + k, head_dim, num_keys, 1, sums);
        for (long i = 0; i < count; i++)
            for (int m = 0; m < n; m++) store(out + i * out_stride + k + m * LANES, sums[i][m]);
    }
}

/* Texts `first` to `last`: every query of a text attends to the text's prefix, if it has one, and to its tokens.

   queries, keys, values, out: rows of heads x head_dim floats, strides in floats. Text t has queries query_starts[t] to
   query_starts[t + 1] and tokens token_starts[t] to token_starts[t + 1]. prefix_keys[t], prefix_values[t]: of this
   layer, prefix_lengths[t] rows; element d of row j of head h is at h * head_strides[t] + j * row_strides[t] + d.
   scratch: 64-byte aligned, (2 * head_dim + QUERIES) * width floats, where width holds the longest prefix and text,
   rounded up to LANES. head_dim is a multiple of LANES. */
void attend(long first, long last, long num_heads, long head_dim, float scale, const float *queries, long query_stride,
            const float *keys, long key_stride, const float *values, long value_stride, float *out, long out_stride,
            const int64_t *query_starts, const int64_t *token_starts, const int64_t *prefix_lengths,
            const float *const *prefix_keys, const float *const *prefix_values, const int64_t *head_strides,
            const int64_t *row_strides, float *scratch) {
    for (long t = first; t < last; t++) {
        long prefix = prefix_lengths[t], length = token_starts[t + 1] - token_starts[t], num_keys = prefix + length;
        long width = (num_keys + LANES - 1) / LANES * LANES;
        float *turned = scratch, *joined = turned + head_dim * width, *scores = joined + head_dim * width;
        for (long h = 0; h < num_heads; h++) {
            for (long j = 0; j < num_keys; j++) {
                const float *key, *value;
                if (j < prefix) {
                    key = prefix_keys[t] + h * head_strides[t] + j * row_strides[t];
                    value = prefix_values[t] + h * head_strides[t] + j * row_strides[t];
                } else {
                    key = keys + (token_starts[t] + j - prefix) * key_stride + h * head_dim;
                    value = values + (token_starts[t] + j - prefix) * value_stride + h * head_dim;
                }
                for (long k = 0; k < head_dim; k++) turned[k * width + j] = key[k];
                memcpy(joined + j * head_dim, value, head_dim * sizeof *value);
            }
            for (long k = 0; k < head_dim; k++)
                for (long j = num_keys; j < width; j++) turned[k * width + j] = 0;
            for (long i = query_starts[t]; i < query_starts[t + 1]; i += QUERIES) {
                long count = query_starts[t + 1] - i < QUERIES ? query_starts[t + 1] - i : QUERIES;
                attend_few(queries + i * query_stride + h * head_dim, query_stride, count, turned, joined, num_keys,
                           width, head_dim, scale, scores, out + i * out_stride + h * head_dim, out_stride);
            }
        }
    }
}
