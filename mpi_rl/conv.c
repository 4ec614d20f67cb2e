/* Convolutions of n images, forward and backward: see convnet.py.

   Images are planes x height x width x channels, results height x width x outputs, kernels side x
   side x inputs x outputs. A place of the result sees `side` rows of each plane, in each of them a
   run of side * channels consecutive numbers; its right neighbour sees the run that begins
   stride * channels further on. So a convolution is a product of matrices whose rows overlap. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* A tile's sums take half of the 16 registers of AVX2 (or 32 of NEON); wider ones gain little. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
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

/* One of the nested loops of a sum: how many times, and how far apart the factors a and b are. */
typedef struct {
    size_t times, a, b;
} Loop;

/* c[r][k] += the sum of a[r] b[k] over three loops, for `rows` r, `a_row` apart, and COLUMNS k. */
INLINE void tile(size_t rows, Loop outer, Loop middle, Loop inner, const float *a, size_t a_row,
                 const float *b, float *c, size_t c_row)
{
    vector sum[ROWS][COLUMNS / WIDTH];
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < COLUMNS / WIDTH; k++)
            sum[r][k] = (vector){0};
    for (size_t i = 0; i < outer.times; i++)
        for (size_t j = 0; j < middle.times; j++) {
            const float *x = a + i * outer.a + j * middle.a, *y = b + i * outer.b + j * middle.b;
            for (size_t l = 0; l < inner.times; l++, x += inner.a, y += inner.b)
                for (size_t r = 0; r < rows; r++)
                    for (size_t k = 0; k < COLUMNS / WIDTH; k++)
                        sum[r][k] += x[r * a_row] * *(const vector *)(y + k * WIDTH);
        }
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < COLUMNS / WIDTH; k++)
            *(vector *)(c + r * c_row + k * WIDTH) += sum[r][k];
}

/* The same for any number of rows, and of columns that is a multiple of COLUMNS. */
INLINE void product(size_t rows, size_t columns, Loop outer, Loop middle, Loop inner, const float *a,
                    size_t a_row, const float *b, float *c, size_t c_row)
{
    for (size_t k = 0; k < columns; k += COLUMNS) {
        size_t r = 0;
        for (; r + ROWS <= rows; r += ROWS)
            tile(ROWS, outer, middle, inner, a + r * a_row, a_row, b + k, c + r * c_row + k, c_row);
        for (; r < rows; r++)
            tile(1, outer, middle, inner, a + r * a_row, a_row, b + k, c + r * c_row + k, c_row);
    }
}

static const Loop once = {1, 0, 0};

#define PITCH(s) ((s)->width * (s)->channels)
#define SIZE(s) ((s)->planes * (s)->height * PITCH(s))
#define RESULTS(s, length) (((s)->length - (s)->side) / (s)->stride + 1)

/* Return image i; bytes as floats in `room`, of ROOM(s). */
INLINE const float *image(const Shape *s, const void *images, size_t i, float *room)
{
    if (!s->are_bytes)
        return (const float *)images + i * SIZE(s);
    const uint8_t *bytes = (const uint8_t *)images + i * SIZE(s);
    for (size_t x = 0; x < SIZE(s); x++)
        room[x] = bytes[x] * (1 / 255.f);
    return room;
}
#define ROOM(s) ((s)->are_bytes ? SIZE(s) : 1)

/* outputs = relu(images * kernel + bias) */
VECTORS void conv_forward(size_t n, const Shape *s, const void *images, const float *kernel,
                          const float *bias, float *outputs)
{
    size_t height = RESULTS(s, height), width = RESULTS(s, width), pitch = PITCH(s);
    Loop down = {s->side, pitch, s->side * s->planes * s->channels * s->outputs};
    Loop planes = {s->planes, s->height * pitch, s->outputs};
    Loop run = {s->side * s->channels, 1, s->planes * s->outputs};
    float room[ROOM(s)];
    for (size_t i = 0; i < n; i++) {
        const float *from = image(s, images, i, room);
        for (size_t y = 0; y < height; y++, outputs += width * s->outputs) {
            for (size_t x = 0; x < width; x++)
                memcpy(outputs + x * s->outputs, bias, s->outputs * sizeof *bias);
            product(width, s->outputs, down, planes, run, from + y * s->stride * pitch,
                    s->stride * s->channels, kernel, outputs, s->outputs);
            for (size_t x = 0; x < width * s->outputs; x++)
                outputs[x] = outputs[x] < 0 ? 0 : outputs[x]; /* nan stays nan */
        }
    }
}

/* The gradients by kernel and bias, from the one by the outputs before their ReLU. */
VECTORS void conv_weight_grads(size_t n, const Shape *s, const void *images, const float *grads,
                               float *kernel_grad, float *bias_grad)
{
    size_t height = RESULTS(s, height), width = RESULTS(s, width), pitch = PITCH(s);
    size_t row = s->planes * s->outputs, run = s->side * s->channels;
    Loop down = {height, s->stride * pitch, width * s->outputs};
    Loop along = {width, s->stride * s->channels, s->outputs};
    float room[ROOM(s)];
    memset(kernel_grad, 0, s->side * run * row * sizeof *kernel_grad);
    memset(bias_grad, 0, s->outputs * sizeof *bias_grad);
    for (size_t i = 0; i < n; i++, grads += height * width * s->outputs) {
        const float *from = image(s, images, i, room);
        for (size_t x = 0; x < height * width; x++)
            for (size_t o = 0; o < s->outputs; o++)
                bias_grad[o] += grads[x * s->outputs + o];
        for (size_t k = 0; k < s->side; k++)
            for (size_t p = 0; p < s->planes; p++)
                product(run, s->outputs, once, down, along, from + (p * s->height + k) * pitch, 1,
                        grads, kernel_grad + k * run * row + p * s->outputs, row);
    }
}

/* The gradient by images of one plane, from the same. turned is the kernel, side x outputs x
   (side * channels). */
VECTORS void conv_image_grads(size_t n, const Shape *s, const float *turned, const float *grads,
                              float *image_grads)
{
    size_t height = RESULTS(s, height), width = RESULTS(s, width), pitch = PITCH(s);
    size_t run = s->side * s->channels;
    Loop outputs = {s->outputs, 1, run};
    memset(image_grads, 0, n * SIZE(s) * sizeof *image_grads);
    for (size_t i = 0; i < n; i++, image_grads += SIZE(s))
        for (size_t y = 0; y < height; y++, grads += width * s->outputs)
            for (size_t k = 0; k < s->side; k++)
                product(width, run, once, once, outputs, grads, s->outputs,
                        turned + k * s->outputs * run, image_grads + (y * s->stride + k) * pitch,
                        s->stride * s->channels);
}

/* The gradient by what a ReLU was given, in place, from its outputs and the gradient by them. */
VECTORS void relu_grads(size_t n, const float *restrict outputs, float *restrict grads)
{
    for (size_t i = 0; i < n; i++)
        grads[i] = outputs[i] <= 0 ? 0 : grads[i];
}
