/* What torch does in many small calls, in one: attention of packed texts, and what every adapter changes at a site.
   Everything lies in the caller's memory, float32 unless it is called rounded; nothing is allocated or kept.
   Compiled by server/kernels.py. */

#include <immintrin.h>
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

static inline lanes choose(whole_lanes is_first, lanes first, lanes second) {
    return (lanes)(((whole_lanes)first & is_first) | ((whole_lanes)second & ~is_first));
}

/* bfloat16: the upper half of a float32. */
static inline lanes load_rounded(const uint16_t *from) {
    __m256i x;
    memcpy(&x, from, sizeof x);
    return (lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16);
}

/* To the nearest, halves to even; what is no number stays none. */
static inline void store_rounded(uint16_t *to, lanes x) {
    whole_lanes bits = (whole_lanes)x, is_number = x == x;
    whole_lanes nearest = bits + 0x7fff + ((bits >> 16) & 1);
    nearest = (nearest & is_number) | ~is_number;
    __m256i rounded = _mm512_cvtepi32_epi16((__m512i)(nearest >> 16));
    memcpy(to, &rounded, sizeof rounded);
}

/* Two vectors as groups of 8, 4, 2 or 1 lanes: the even groups of both in turn, and the odd ones. */
#if defined(__clang__)
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (whole_lanes){__VA_ARGS__})
#endif
#define EVEN_8(a, b) PICK(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define ODD_8(a, b) PICK(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#define EVEN_4(a, b) PICK(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27)
#define ODD_4(a, b) PICK(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31)
#define EVEN_2(a, b) PICK(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define ODD_2(a, b) PICK(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define EVEN_1(a, b) PICK(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30)
#define ODD_1(a, b) PICK(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31)

/* Lane i of the result is the sum of all lanes of x[i]. */
static inline __attribute__((always_inline)) lanes sum_each(lanes x[LANES]) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) x[i] = EVEN_8(x[i], x[i + 8]) + ODD_8(x[i], x[i + 8]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) x[i] = EVEN_4(x[i], x[i + 4]) + ODD_4(x[i], x[i + 4]);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) x[i] = EVEN_2(x[i], x[i + 2]) + ODD_2(x[i], x[i + 2]);
    return EVEN_1(x[0], x[1]) + ODD_1(x[0], x[1]);
}

/* Rows become columns: lane j of x[i] and lane i of x[j] change places. */
static inline __attribute__((always_inline)) void turn(lanes x[LANES]) {
    lanes y[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (!(i & 8)) y[i] = EVEN_8(x[i], x[i + 8]), y[i + 8] = ODD_8(x[i], x[i + 8]);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (!(i & 4)) x[i] = EVEN_4(y[i], y[i + 4]), x[i + 4] = ODD_4(y[i], y[i + 4]);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (!(i & 2)) y[i] = EVEN_2(x[i], x[i + 2]), y[i + 2] = ODD_2(x[i], x[i + 2]);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (!(i & 1)) x[i] = EVEN_1(y[i], y[i + 1]), x[i + 1] = ODD_1(y[i], y[i + 1]);
}

/* exp(x) for x <= 0, within 2 units in the last place (Cephes' expf); what is smaller than exp(-87) becomes that. */
static inline lanes exp_lanes(lanes x) {
    const lanes zero = {0}, lowest = zero - 87.0f;
    x = choose(x < lowest, lowest, x);
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

/* Scores become weights, those behind num_keys 0; returns what one has to multiply them by for a sum of 1.
   width: num_keys, rounded up to LANES. */
static float soften(float *scores, long num_keys, long width) {
    for (long j = num_keys; j < width; j++) scores[j] = scores[0];
    lanes most = load(scores), sum = {0};
    for (long j = LANES; j < width; j += LANES) {
        lanes other = load(scores + j);
        most = choose(other > most, other, most);
    }
    float highest = _mm512_reduce_max_ps((__m512)most);
    for (long j = 0; j < width; j += LANES) store(scores + j, exp_lanes(load(scores + j) - highest));
    for (long j = num_keys; j < width; j++) scores[j] = 0;
    for (long j = 0; j < width; j += LANES) sum += load(scores + j);
    return 1.0f / _mm512_reduce_add_ps((__m512)sum);
}

/* to[i][0..n * LANES) = sum over k of weights[i][k] * rows[k][0..n * LANES), for QUERIES i; n is 1 or 2. */
static inline __attribute__((always_inline)) void multiply(const float *const weights[QUERIES], const float *rows,
                                                           long row_stride, long num_rows, int n,
                                                           lanes to[QUERIES][2]) {
    lanes sums[QUERIES][2] = {0};
    for (long k = 0; k < num_rows; k++) {
        const float *row = rows + k * row_stride;
#pragma GCC unroll 8
        for (int i = 0; i < QUERIES; i++) {
            sums[i][0] += load(row) * weights[i][k];
            if (n == 2) sums[i][1] += load(row + LANES) * weights[i][k];
        }
    }
    memcpy(to, sums, sizeof sums);
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
    float shares[QUERIES];
    for (long i = 0; i < count; i++) shares[i] = soften(scores + i * width, num_keys, width);
    for (long k = 0; k < head_dim; k += 2 * LANES) {
        int n = k + LANES < head_dim ? 2 : 1;
        if (n == 2)
            multiply(weights, values + k, head_dim, num_keys, 2, sums);
        else
            multiply(weights, values + k, head_dim, num_keys, 1, sums);
        for (long i = 0; i < count; i++)
            for (int m = 0; m < n; m++) store(out + i * out_stride + k + m * LANES, sums[i][m] * shares[i]);
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
            for (long j = 0; j < width; j += LANES) {
                const float *key[LANES];
                for (long l = 0; l < LANES; l++) {
                    const float *value;
                    if (j + l < prefix) {
                        long offset = h * head_strides[t] + (j + l) * row_strides[t];
                        key[l] = prefix_keys[t] + offset, value = prefix_values[t] + offset;
                    } else {
                        long row = token_starts[t] + (j + l < num_keys ? j + l : num_keys - 1) - prefix;
                        key[l] = keys + row * key_stride + h * head_dim;
                        value = values + row * value_stride + h * head_dim;
                    }
                    if (j + l < num_keys) memcpy(joined + (j + l) * head_dim, value, head_dim * sizeof *value);
                }
                for (long k = 0; k < head_dim; k += LANES) {
                    lanes block[LANES];
#pragma GCC unroll 16
                    for (int l = 0; l < LANES; l++) block[l] = load(key[l] + k);
                    turn(block);
#pragma GCC unroll 16
                    for (int l = 0; l < LANES; l++) store(turned + (k + l) * width + j, block[l]);
                }
            }
            for (long i = query_starts[t]; i < query_starts[t + 1]; i += QUERIES) {
                long count = query_starts[t + 1] - i < QUERIES ? query_starts[t + 1] - i : QUERIES;
                attend_few(queries + i * query_stride + h * head_dim, query_stride, count, turned, joined, num_keys,
                           width, head_dim, scale, scores, out + i * out_stride + h * head_dim, out_stride);
            }
        }
    }
}

/* Low-rank updates of some adapters: at most MAX_ROWS rows of the batch and MAX_RANK each. */
enum { MAX_ROWS = 128, MAX_RANK = 64, TILE = 4 };
enum { NOTHING, RELU, GELU, SILU };

/* What an adapter has at a site: down [rank][d_in], up [d_out][rank]; down_bias [rank] and up_bias [d_out] may be null.
   server/kernels.py writes it. */
struct update {
    const float *down, *up, *down_bias, *up_bias;
    int64_t rank, activation;
    double scale;
};

/* What is there of LANES floats, then zeros. */
static inline lanes load_some(const float *from, long available) {
    if (available >= LANES) return load(from);
    lanes x = {0};
    for (long i = 0; i < available; i++) x[i] = from[i];
    return x;
}

/* Ask for memory that is needed soon; adapters' weights are rarely in the cache. It is never read here. */
static inline void fetch(const float *from, long count) {
    for (long k = 0; k < count; k += LANES) __builtin_prefetch(from + k);
}

/* Lane TILE * i + j is the product of rows x[i] and w[j], n floats each; TILE * n floats from `next` on are fetched. */
static inline __attribute__((always_inline)) lanes multiply_rows(const float *const x[TILE], const float *const w[TILE],
                                                                 long n, const float *next) {
    lanes sums[LANES] = {0};
    for (long k = 0; k < n; k += LANES) {
        fetch(next + TILE * k, TILE * LANES);
        lanes w0 = load(w[0] + k), w1 = load(w[1] + k), w2 = load(w[2] + k), w3 = load(w[3] + k);
#pragma GCC unroll 4
        for (int i = 0; i < TILE; i++) {
            lanes row = load(x[i] + k);
            sums[TILE * i] += row * w0, sums[TILE * i + 1] += row * w1;
            sums[TILE * i + 2] += row * w2, sums[TILE * i + 3] += row * w3;
        }
    }
    return sum_each(sums);
}

/* GELU: x * (1 - erfc(x / sqrt 2) / 2) with erfc of Abramowitz and Stegun, 7.1.26, right to 1.5e-7. */
static inline lanes activate(lanes x, int activation) {
    const lanes zero = {0};
    whole_lanes is_positive = x > zero;
    lanes size = choose(is_positive, x, -x);
    if (activation == RELU) return choose(x < zero, zero, x);
    if (activation == GELU) {
        lanes z = size * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * z);
        lanes p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
        lanes half = x * (0.5f * p * exp_lanes(-z * z));
        return choose(is_positive, x - half, half);
    }
    if (activation == SILU) {
        lanes e = exp_lanes(-size);
        return x * choose(is_positive, zero + 1.0f, e) / (1.0f + e);
    }
    return x;
}

/* low [rows][MAX_RANK] = activation(x @ down^T + down_bias) */
static void go_down(const float *x, long x_stride, long num_rows, long d_in, const struct update *update, float *low) {
    const float *down = update->down, *bias = update->down_bias;
    long rank = update->rank;
    int activation = (int)update->activation;
    for (long c = 0; c < rank; c += TILE) {
        const float *from[TILE], *weights[TILE];
        const float *next = c + TILE < rank ? down + (c + TILE) * d_in : update->up;
        for (int j = 0; j < TILE; j++) weights[j] = down + (c + j < rank ? c + j : c) * d_in;
        for (long i = 0; i < num_rows; i += TILE) {
            for (int j = 0; j < TILE; j++) from[j] = x + (i + j < num_rows ? i + j : i) * x_stride;
            if (c == 0 && i + TILE < num_rows) fetch(x + (i + TILE) * x_stride, TILE * d_in);
            lanes sums = multiply_rows(from, weights, d_in, next);
            for (int j = 0; j < TILE; j++)
                for (int m = 0; m < TILE; m++) low[(i + j) * MAX_RANK + c + m] = sums[TILE * j + m];
        }
    }
    for (long c = 0; c < rank && (bias || activation != NOTHING); c += LANES) {
        lanes offset = bias ? load_some(bias + c, rank - c) : (lanes){0};
        for (long i = 0; i < num_rows; i++) {
            float *place = low + i * MAX_RANK + c;
            store(place, activate(load(place) + offset, activation));
        }
    }
}

/* y += scale * (low @ up^T + up_bias); 2 * LANES rows of `up` at a time are turned. */
static void go_up(const float *low, long num_rows, const struct update *update, float *y, long y_stride, long d_out) {
    const float *up = update->up, *bias = update->up_bias;
    const float scale = (float)update->scale;
    long rank = update->rank;
    float turned[MAX_RANK * 2 * LANES] __attribute__((aligned(64)));
    for (long o = 0; o < d_out; o += 2 * LANES) {
        int n = o + LANES < d_out ? 2 : 1;
        fetch(up + (o + 2 * LANES) * rank, o + 2 * LANES < d_out ? 2 * LANES * rank : 0);
        for (int m = 0; m < n; m++)
            for (long c = 0; c < rank; c += LANES) {
                const float *corner = up + (o + m * LANES) * rank + c;
                long available = (d_out - o - m * LANES) * rank - c;
                lanes block[LANES];
#pragma GCC unroll 16
                for (int l = 0; l < LANES; l++) block[l] = load_some(corner + l * rank, available - l * rank);
                turn(block);
#pragma GCC unroll 16
                for (int l = 0; l < LANES; l++) store(turned + (c + l) * 2 * LANES + m * LANES, block[l]);
            }
        for (long i = 0; i < num_rows; i += QUERIES) {
            long count = num_rows - i < QUERIES ? num_rows - i : QUERIES;
            const float *weights[QUERIES];
            lanes sums[QUERIES][2];
            for (int j = 0; j < QUERIES; j++) weights[j] = low + (i + (j < count ? j : 0)) * MAX_RANK;
            if (n == 2)
                multiply(weights, turned, 2 * LANES, rank, 2, sums);
            else
                multiply(weights, turned, 2 * LANES, rank, 1, sums);
            for (long j = 0; j < count; j++)
                for (int m = 0; m < n; m++) {
                    float *to = y + (i + j) * y_stride + o + m * LANES;
                    __builtin_prefetch(to + 2 * LANES, 1);
                    lanes offset = bias ? load(bias + o + m * LANES) : (lanes){0};
                    store(to, load(to) + (sums[j][m] + offset) * scale);
                }
        }
    }
}

/* Segments `first` to `last`: y += scale * (activation(x @ down^T + down_bias) @ up^T + up_bias), in place.

   x, y: rows of d_in and d_out floats, both multiples of LANES; strides in floats; y may be x. Segment s covers rows
   starts[s] to stops[s], at most MAX_ROWS, and no two cover the same; its rank is at most MAX_RANK. */
void add_low_rank(long first, long last, const float *x, long x_stride, long d_in, float *y, long y_stride, long d_out,
                  const int64_t *starts, const int64_t *stops, const struct update *updates) {
    float low[MAX_ROWS * MAX_RANK] __attribute__((aligned(64))) = {0};
    for (long s = first; s < last; s++) {
        const struct update *update = updates + s;
        long num_rows = stops[s] - starts[s];
        go_down(x + starts[s] * x_stride, x_stride, num_rows, d_in, update, low);
        if (s + 1 < last) fetch(update[1].down, TILE * d_in);
        go_up(low, num_rows, update, y + starts[s] * y_stride, y_stride, d_out);
    }
}

/* Segments `first` to `last`: rows starts[s] to stops[s] times scales[s] [width], in place. width is a multiple of LANES,
   the stride in numbers. */
void scale(long first, long last, float *x, long stride, long width, const int64_t *starts, const int64_t *stops,
           const float *const *scales) {
    for (long s = first; s < last; s++)
        for (long i = starts[s]; i < stops[s]; i++)
            for (long k = 0; k < width; k += LANES)
                store(x + i * stride + k, load(x + i * stride + k) * load(scales[s] + k));
}

void scale_rounded(long first, long last, uint16_t *x, long stride, long width, const int64_t *starts,
                   const int64_t *stops, const float *const *scales) {
    for (long s = first; s < last; s++)
        for (long i = starts[s]; i < stops[s]; i++)
            for (long k = 0; k < width; k += LANES)
                store_rounded(x + i * stride + k, load_rounded(x + i * stride + k) * load(scales[s] + k));
}
