/* What would take several passes over memory in NumPy, in one: see fused.py. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTORS
#endif

/* The update rules of updates.py. All take n floats each of: params and statistics, changed in place;
   grads, read; reply, where the new params are written too. scale multiplies the gradient. */

VECTORS void rmsprop(size_t n, float *restrict params, float *restrict mean_square,
                     const float *restrict grads, float *restrict reply, float scale, float decay,
                     float epsilon, float learning_rate)
{
    float rest = 1 - decay;
    for (size_t i = 0; i < n; i++) {
        float d = scale * grads[i];
        mean_square[i] = decay * mean_square[i] + rest * d * d;
        params[i] -= learning_rate * d / sqrtf(mean_square[i] + epsilon);
        reply[i] = params[i];
    }
}

/* correction = sqrt(1 - beta2^t); learning_rate has been divided by 1 - beta1^t. */
VECTORS void adam(size_t n, float *restrict params, float *restrict first_moment,
                  float *restrict second_moment, const float *restrict grads, float *restrict reply,
                  float scale, float beta1, float beta2, float correction, float epsilon,
                  float learning_rate)
{
    float rest1 = 1 - beta1, rest2 = 1 - beta2;
    for (size_t i = 0; i < n; i++) {
        float d = scale * grads[i];
        first_moment[i] = beta1 * first_moment[i] + rest1 * d;
        second_moment[i] = beta2 * second_moment[i] + rest2 * d * d;
        params[i] -= learning_rate * first_moment[i] / (sqrtf(second_moment[i]) / correction + epsilon);
        reply[i] = params[i];
    }
}

VECTORS void sgd(size_t n, float *restrict params, const float *restrict grads,
                 float *restrict reply, float scale, float weight_decay, float learning_rate)
{
    for (size_t i = 0; i < n; i++) {
        params[i] -= learning_rate * (scale * grads[i] + weight_decay * params[i]);
        reply[i] = params[i];
    }
}

VECTORS void momentum_sgd(size_t n, float *restrict params, float *restrict velocity,
                          const float *restrict grads, float *restrict reply, float scale,
                          float weight_decay, float momentum, float learning_rate)
{
    for (size_t i = 0; i < n; i++) {
        velocity[i] = momentum * velocity[i] + scale * grads[i] + weight_decay * params[i];
        params[i] -= learning_rate * velocity[i];
        reply[i] = params[i];
    }
}

/* A picture of 84 x 84 from two frames of height x width: the larger of each pair of bytes, averaged
   over areas. Result row i is the sum over k < row_taps of the rows row_start[i] + k, times
   row_weights[k * SIDE + i]; columns likewise. */

enum { SIDE = 84, WIDEST = 256 };

VECTORS void shrink(size_t height, size_t width, const uint8_t *first, const uint8_t *second,
                    uint8_t *picture, const int32_t *row_start, const float *row_weights,
                    size_t row_taps, const int32_t *column_start, const float *column_weights,
                    size_t column_taps)
{
    float row[WIDEST], line[SIDE];
    for (size_t i = 0; i < SIDE; i++, picture += SIDE) {
        for (size_t x = 0; x < width; x++)
            row[x] = 0;
        for (size_t k = 0; k < row_taps; k++) {
            const uint8_t *a = first + (row_start[i] + k) * width;
            const uint8_t *b = second + (row_start[i] + k) * width;
            float weight = row_weights[k * SIDE + i];
            for (size_t x = 0; x < width; x++)
                row[x] += weight * (a[x] > b[x] ? a[x] : b[x]);
        }
        for (size_t j = 0; j < SIDE; j++)
            line[j] = 0;
        for (size_t k = 0; k < column_taps; k++)
            for (size_t j = 0; j < SIDE; j++)
                line[j] += column_weights[k * SIDE + j] * row[column_start[j] + k];
        for (size_t j = 0; j < SIDE; j++)
            picture[j] = (uint8_t)rintf(line[j]);
    }
}
