/* The layers of the Atari networks, for n images at once: see networks/convnet.py.

   Convolutions: images are planes x height x width x channels, results height x width x outputs,
   kernels side x side x inputs x outputs. A place of the result sees `side` rows of each plane, in
   each of them a run of side * channels consecutive numbers; its right neighbour sees the run that
   begins stride * channels further on. So a convolution is a product of matrices whose rows overlap. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* A tile's sums take half of the 16 registers of AVX2 (or 32 of NEON); wider ones gain little. A third
   of AVX-512's 32 hides how long an addition takes. No sum depends on a tile's width or rows. */
#if defined(AVX512) /* see convnet_avx512.c */
#define VECTORS
enum { WIDTH = 16, ROWS = 10, COLUMNS = 16 };
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORS __attribute__((target_clones("fma", "default")))
enum { WIDTH = 8, ROWS = 4, COLUMNS = 16 };
#else
#define VECTORS
enum { WIDTH = 4, ROWS = 4, COLUMNS = 16 };
#endif

typedef float vector __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

typedef struct {
    size_t planes, height, width, channels; /* one plane of floats, or some of bytes (channels 1) */
    size_t side, stride, outputs;           /* outputs: a multiple of COLUMNS */
    size_t are_bytes;                       /* 0 to 255, which mean 0 to 1 */
} Shape;

/* A part of a sum of products: where it begins in the factors a and b, and how many there are. */
typedef struct {
    size_t a, b, times;
} Run;

/* c[r][k] += the sum of a[r] b[k] over the runs, for `rows` r, `a_row` apart, and COLUMNS k. Within
   a run the factors are `a_step` and `b_step` apart. */
INLINE void tile(size_t rows, size_t runs, const Run *run, size_t a_step, size_t b_step,
                 const float *a, size_t a_row, const float *b, float *c, size_t c_row)
{
    vector sum[ROWS + 1][COLUMNS / WIDTH];
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < COLUMNS / WIDTH; k++)
            sum[r][k] = (vector){0};
    for (size_t i = 0; i < runs; i++) {
        const float *x = a + run[i].a, *y = b + run[i].b;
        for (size_t l = run[i].times; l--; x += a_step, y += b_step)
            for (size_t r = 0; r < rows; r++)
                for (size_t k = 0; k < COLUMNS / WIDTH; k++)
                    sum[r][k] += x[r * a_row] * *(const vector *)(y + k * WIDTH);
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < COLUMNS / WIDTH; k++)
            *(vector *)(c + r * c_row + k * WIDTH) += sum[r][k];
}

/* The same for any number of rows, and of columns that is a multiple of COLUMNS. */
INLINE void product(size_t rows, size_t columns, size_t runs, const Run *run, size_t a_step,
                    size_t b_step, const float *a, size_t a_row, const float *b, float *c,
                    size_t c_row)
{
#define TILE(n) tile(n, runs, run, a_step, b_step, a + r * a_row, a_row, b + k, c + r * c_row + k, c_row)
    for (size_t k = 0; k < columns; k += COLUMNS) {
        size_t r = 0;
        for (; r + ROWS < rows && r + ROWS + 1 != rows; r += ROWS)
            TILE(ROWS);
        switch (rows - r) {
#ifdef AVX512
        case 11: TILE(11); break;
        case 10: TILE(10); break;
        case 9: TILE(9); break;
        case 8: TILE(8); break;
        case 7: TILE(7); break;
        case 6: TILE(6); break;
#endif
        case 5: TILE(5); break;
        case 4: TILE(4); break;
        case 3: TILE(3); break;
        case 2: TILE(2); break;
        case 1: TILE(1); break;
        }
    }
#undef TILE
}

#define PITCH(s) ((s)->width * (s)->channels)
#define SIZE(s) ((s)->planes * (s)->height * PITCH(s))
#define RESULTS(s, length) (((s)->length - (s)->side) / (s)->stride + 1)

/* Much of a game's picture is black, and adds nothing. Bit g of what is `lit` in a row of PIXELS bytes
   says that its group g, of GROUP bytes, is not all black. */
enum { PIXELS = 84, GROUP = 4 };

static const uint32_t bit[PIXELS / GROUP] = {
    1 << 0,  1 << 1,  1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,  1 << 8,  1 << 9,  1 << 10,
    1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20,
};

/* Return image i; bytes as floats in `room`, of ROOM(s), but for black rows, and what is lit in
   each row in `lit`, of LIT(s). */
INLINE const float *image(const Shape *s, const void *images, size_t i, float *room, uint32_t *lit)
{
    if (!s->are_bytes)
        return (const float *)images + i * SIZE(s);
    const uint8_t *bytes = (const uint8_t *)images + i * SIZE(s);
    for (size_t y = 0; y < s->planes * s->height; y++, bytes += PIXELS, room += PIXELS) {
        uint32_t bits = 0;
        for (size_t g = 0; g < PIXELS / GROUP; g++) {
            uint32_t group;
            memcpy(&group, bytes + g * GROUP, GROUP);
            bits |= group ? bit[g] : 0;
        }
        lit[y] = bits;
        if (bits)
            for (size_t x = 0; x < PIXELS; x++)
                room[x] = bytes[x] * (1 / 255.f);
    }
    return room - SIZE(s);
}
#define ROOM(s) ((s)->are_bytes ? SIZE(s) : 1)
#define LIT(s) ((s)->are_bytes ? (s)->planes * (s)->height : 1)

/* Take over of `all` runs, plane by plane, those that the results x to x + results - 1 of row y see
   lit; return how many. */
INLINE size_t take_lit(const Shape *s, const uint32_t *lit, size_t y, size_t x, size_t results,
                       const Run *all, Run *some)
{
    size_t last = (x + results - 1) * s->stride + s->side - 1, count = 0;
    uint32_t seen = (2u << last / GROUP) - (1u << x * s->stride / GROUP);
    for (size_t p = 0; p < s->planes; p++)
        for (size_t k = 0; k < s->side; k++) {
            some[count] = *all++;
            count += (lit[p * s->height + y * s->stride + k] & seen) != 0;
        }
    return count;
}

/* outputs = relu(images * kernel + bias) */
VECTORS void conv_forward(size_t n, const Shape *s, const void *images, const float *kernel,
                          const float *bias, float *outputs)
{
    size_t height = RESULTS(s, height), width = RESULTS(s, width), pitch = PITCH(s);
    size_t step = s->stride * s->channels, run = s->side * s->channels;
    float room[ROOM(s)];
    uint32_t lit[LIT(s)];
    Run all[s->side * s->planes], some[s->side * s->planes];
    for (size_t p = 0, j = 0; p < s->planes; p++)
        for (size_t k = 0; k < s->side; k++)
            all[j++] = (Run){(p * s->height + k) * pitch, (k * run * s->planes + p) * s->outputs, run};
    for (size_t i = 0; i < n; i++) {
        const float *from = image(s, images, i, room, lit);
        for (size_t y = 0; y < height; y++)
            for (size_t x = 0, block = s->are_bytes ? ROWS : width; x < width; x += block) {
                size_t results = width - x < block ? width - x : block, count = s->side * s->planes;
                if (s->are_bytes)
                    count = take_lit(s, lit, y, x, results, all, some);
                for (size_t r = 0; r < results; r++)
                    memcpy(outputs + r * s->outputs, bias, s->outputs * sizeof *bias);
                product(results, s->outputs, count, s->are_bytes ? some : all, 1,
                        s->planes * s->outputs, from + y * s->stride * pitch + x * step, step, kernel,
                        outputs, s->outputs);
                for (; results--; outputs += s->outputs)
                    for (size_t o = 0; o < s->outputs; o++)
                        outputs[o] = outputs[o] < 0 ? 0 : outputs[o]; /* nan stays nan */
            }
    }
}

/* The gradients by kernel and bias, from the one by the outputs before their ReLU. */
VECTORS void conv_weight_grads(size_t n, const Shape *s, const void *images, const float *grads,
                               float *kernel_grad, float *bias_grad)
{
    size_t height = RESULTS(s, height), width = RESULTS(s, width), pitch = PITCH(s);
    size_t columns = s->planes * s->outputs, step = s->stride * s->channels;
    size_t run = s->side * s->channels;
    float room[ROOM(s)];
    uint32_t lit[LIT(s)];
    Run runs[height];
    memset(kernel_grad, 0, s->side * run * columns * sizeof *kernel_grad);
    memset(bias_grad, 0, s->outputs * sizeof *bias_grad);
    for (size_t i = 0; i < n; i++, grads += height * width * s->outputs) {
        const float *from = image(s, images, i, room, lit);
        for (size_t x = 0; x < height * width; x++)
            for (size_t o = 0; o < s->outputs; o++)
                bias_grad[o] += grads[x * s->outputs + o];
        for (size_t k = 0; k < s->side; k++)
            for (size_t p = 0; p < s->planes; p++) {
                size_t count = 0;
                for (size_t y = 0; y < height; y++) {
                    size_t row = p * s->height + y * s->stride + k, x = 0, end = width;
                    if (s->are_bytes) { /* from the first result that sees light to the last */
                        if (!lit[row])
                            continue;
                        size_t dark = GROUP * (size_t)__builtin_ctz(lit[row]);
                        size_t lights = GROUP * (32 - (size_t)__builtin_clz(lit[row]));
                        x = dark < s->side ? 0 : (dark - s->side) / s->stride + 1;
                        end = (lights - 1) / s->stride + 1 < width ? (lights - 1) / s->stride + 1 : width;
                    }
                    if (x < end)
                        runs[count++] =
                            (Run){row * pitch + x * step, (y * width + x) * s->outputs, end - x};
                }
                product(run, s->outputs, count, runs, step, s->outputs, from, 1, grads,
                        kernel_grad + k * run * columns + p * s->outputs, columns);
            }
    }
}

/* grads = 0 where the outputs of a ReLU are: the gradient by what it was given. */
VECTORS void relu_grads(size_t n, const float *restrict outputs, float *restrict grads)
{
    for (size_t i = 0; i < n; i++)
        grads[i] = outputs[i] <= 0 ? 0 : grads[i];
}

/* The gradient by images of one plane, before the ReLU that made them, from the same. turned is the
   kernel, side x outputs x (side * channels). */
VECTORS void conv_image_grads(size_t n, const Shape *s, const float *images, const float *turned,
                              const float *grads, float *image_grads)
{
    size_t height = RESULTS(s, height), width = RESULTS(s, width), pitch = PITCH(s);
    size_t run = s->side * s->channels;
    Run outputs = {0, 0, s->outputs};
    for (size_t i = 0; i < n; i++, images += SIZE(s), image_grads += SIZE(s)) {
        memset(image_grads, 0, SIZE(s) * sizeof *image_grads);
        for (size_t y = 0; y < height; y++, grads += width * s->outputs)
            for (size_t k = 0; k < s->side; k++)
                product(width, run, 1, &outputs, 1, run, grads, s->outputs,
                        turned + k * s->outputs * run, image_grads + (y * s->stride + k) * pitch,
                        s->stride * s->channels);
        for (size_t x = 0; x < SIZE(s); x++)
            image_grads[x] = images[x] <= 0 ? 0 : image_grads[x];
    }
}

/* A dense layer whose weight is inputs x outputs, of multiples of LANES. Most of what it is given is 0, after a
   ReLU: these rows of the weight are not read. Where a worker acts, the weight is rarely in the cache. */
enum { SUMS = WIDTH < 16 ? 8 : 16, LANES = 16, NEAR = 2, PAIR = 2, MOST = 5 };

/* Write to `given` the inputs that are other than 0 in any of n images, and the last of them NEAR times
   more; return how many. */
INLINE size_t take_given(size_t n, size_t inputs, const float *images, uint32_t *given)
{
    size_t count = 0;
    int is_given[inputs];
    for (size_t i = 0; i < inputs; i++)
        is_given[i] = images[i] != 0; /* nan is not */
    for (size_t r = 1; r < n; r++)
        for (size_t i = 0; i < inputs; i++)
            is_given[i] |= images[r * inputs + i] != 0;
    for (size_t i = 0; i < inputs; i++) {
        given[count] = (uint32_t)i;
        count += (size_t)is_given[i];
    }
    for (size_t k = 0; k < NEAR; k++)
        given[count + k] = given[count ? count - 1 : 0];
    return count;
}

/* sum[k] += the sum of x[i] times row i of the weight, for `vectors` k, and `count` given i. */
INLINE void add_rows(size_t vectors, size_t count, const uint32_t *given, const float *x,
                     const float *weight, size_t outputs, vector *sum)
{
    for (size_t i = 0; i < count; i++) {
        const float *row = weight + given[i] * outputs, *next = weight + given[i + NEAR] * outputs;
        for (size_t k = 0; k < vectors; k++) {
            if (k * WIDTH % LANES == 0)
                __builtin_prefetch(next + k * WIDTH);
            sum[k] += x[given[i]] * *(const vector *)(row + k * WIDTH);
        }
    }
}

/* results = relu(images * weight + bias); each sum has its terms one after the other. */
VECTORS void sparse_forward(size_t n, size_t inputs, size_t outputs, const float *images,
                            const float *weight, const float *bias, float *results)
{
    uint32_t given[inputs + NEAR];
    for (; n--; images += inputs, results += outputs) {
        size_t count = take_given(1, inputs, images, given);
        for (size_t o = 0, run; o < outputs; o += run * WIDTH) {
            vector sum[SUMS];
            run = o + SUMS * WIDTH <= outputs ? SUMS : LANES / WIDTH;
            memcpy(sum, bias + o, run * sizeof *sum);
            if (run == SUMS)
                add_rows(SUMS, count, given, images, weight + o, outputs, sum);
            else
                add_rows(LANES / WIDTH, count, given, images, weight + o, outputs, sum);
            for (size_t k = 0; k < run; k++)
                *(vector *)(results + o + k * WIDTH) = sum[k];
        }
        for (size_t o = 0; o < outputs; o++)
            results[o] = results[o] < 0 ? 0 : results[o]; /* nan stays nan */
    }
}

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* The sum of a vector's numbers: halves are added, and their halves. */
INLINE float sum_of(lanes v)
{
#if defined(__GNUC__) && !defined(__clang__)
    typedef int32_t order __attribute__((vector_size(4 * LANES)));
    v += __builtin_shuffle(v, (order){8, 9, 10, 11, 12, 13, 14, 15});
    v += __builtin_shuffle(v, (order){4, 5, 6, 7});
    v += __builtin_shuffle(v, (order){2, 3});
    v += __builtin_shuffle(v, (order){1});
#else
    for (int k = LANES / 2; k; k /= 2)
        for (int l = 0; l < k; l++)
            v[l] += v[l + k];
#endif
    return v[0];
}

/* c[i][r] = the dot product of rows[i] and a[r], for `count` i and `n` r. */
INLINE void dots_of_rows(size_t count, size_t n, size_t outputs, const float *const *rows,
                         const float *a, float c[PAIR][MOST])
{
    lanes sum[PAIR][MOST];
    for (size_t i = 0; i < count; i++)
        for (size_t r = 0; r < n; r++)
            sum[i][r] = (lanes){0};
    for (size_t o = 0; o < outputs; o += LANES)
        for (size_t i = 0; i < count; i++)
            for (size_t r = 0; r < n; r++)
                sum[i][r] += *(const lanes *)(rows[i] + o) * *(const lanes *)(a + r * outputs + o);
    for (size_t i = 0; i < count; i++)
        for (size_t r = 0; r < n; r++)
            c[i][r] = sum_of(sum[i][r]);
}

/* The gradient by the images, before the ReLU that made them, from the one by the outputs before theirs. */
VECTORS void sparse_image_grads(size_t n, size_t inputs, size_t outputs, const float *weight,
                                const float *images, const float *grads, float *image_grads)
{
    uint32_t given[inputs + NEAR];
    memset(image_grads, 0, n * inputs * sizeof *image_grads);
    for (size_t rows; n; n -= rows) {
        rows = n < MOST ? n : MOST;
        size_t count = take_given(rows, inputs, images, given);
        for (size_t i = 0; i < count; i += PAIR) { /* the last one may be there twice */
            const float *pair[PAIR] = {weight + given[i] * outputs, weight + given[i + 1] * outputs};
            float c[PAIR][MOST];
#define DOTS(rows) dots_of_rows(PAIR, rows, outputs, pair, grads, c)
            switch (rows) {
            case 1: DOTS(1); break;
            case 2: DOTS(2); break;
            case 3: DOTS(3); break;
            case 4: DOTS(4); break;
            default: DOTS(5);
            }
#undef DOTS
            for (size_t k = 0; k < PAIR; k++)
                for (size_t r = 0; r < rows; r++) {
                    size_t at = r * inputs + given[i + k];
                    image_grads[at] = images[at] <= 0 ? 0 : c[k][r];
                }
        }
        images += rows * inputs, grads += rows * outputs, image_grads += rows * inputs;
    }
}

#ifndef AVX512 /* what follows waits for memory */

/* A dense layer: each output is a dot product with a row of the weight, which is outputs x inputs.
   Where a worker acts, its weight is rarely in the cache. So whoever is the first to need rows of it
   asks for the next ones meanwhile. */
enum { OUTPUTS = 4, TOGETHER = 3 };

/* c[r][k] += a[r] . b[k], for `rows` r and OUTPUTS k of n numbers each, one after the other. `next` is what
   b will be, or 0: it is asked for already. */
INLINE void dots(size_t rows, const float *next, size_t n, const float *a, const float *b, float *c,
                 size_t c_row)
{
    vector sum[TOGETHER][OUTPUTS];
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < OUTPUTS; k++)
            sum[r][k] = (vector){0};
    for (size_t x = 0; x < n; x += WIDTH) {
        if (next)
            for (size_t k = 0; k < OUTPUTS; k++)
                __builtin_prefetch(next + k * n + x, 0, 2);
        for (size_t r = 0; r < rows; r++)
            for (size_t k = 0; k < OUTPUTS; k++)
                sum[r][k] += *(const vector *)(a + r * n + x) * *(const vector *)(b + k * n + x);
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < OUTPUTS; k++)
            for (size_t x = 0; x < WIDTH; x++)
                c[r * c_row + k] += sum[r][k][x];
}

/* results = relu(images * weight^T + bias); of images of a multiple of WIDTH numbers, and a multiple
   of OUTPUTS results. The weight is larger than a core's cache: a pass that goes the other way than the
   one before finds in the cache what that read last. */
VECTORS void dense_forward(size_t n, size_t inputs, size_t outputs, size_t backwards,
                           const float *images, const float *weight, const float *bias, float *results)
{
    for (size_t i = 0; i < n; i++)
        memcpy(results + i * outputs, bias, outputs * sizeof *bias);
    ptrdiff_t step = backwards ? -OUTPUTS : OUTPUTS;
    size_t o = backwards ? outputs - OUTPUTS : 0;
    for (size_t count = outputs / OUTPUTS; count--; o += step) {
        const float *rows = weight + o * inputs, *next = rows + step * (ptrdiff_t)inputs;
        size_t i = 0;
        for (; i + TOGETHER <= n; i += TOGETHER)
            if (i)
                dots(TOGETHER, 0, inputs, images + i * inputs, rows, results + i * outputs + o, outputs);
            else
                dots(TOGETHER, next, inputs, images, rows, results + o, outputs);
        for (; i < n; i++)
            dots(1, 0, inputs, images + i * inputs, rows, results + i * outputs + o, outputs);
    }
    for (size_t i = 0; i < n * outputs; i++)
        results[i] = results[i] < 0 ? 0 : results[i]; /* nan stays nan */
}
#endif
