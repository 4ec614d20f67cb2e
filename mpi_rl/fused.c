/* What would take several passes over memory in NumPy, in one: see fused.py. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORS __attribute__((target_clones("avx512f", "arch=haswell", "default")))
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

/* Pictures of 84 x 84 from n pairs of frames of height x width: the larger of each pair of bytes,
   averaged over areas. Result row i is the sum of row_taps rows from row_start[i] on, times
   row_weights[i * row_taps ...]; columns likewise. */

enum { SIDE = 84, WIDEST = 256 };

VECTORS void shrink(size_t n, size_t height, size_t width, const uint8_t *first,
                    const uint8_t *second, uint8_t *pictures, const int32_t *row_start,
                    const float *row_weights, size_t row_taps, const int32_t *column_start,
                    const float *column_weights, size_t column_taps)
{
    float row[WIDEST];
    for (size_t p = 0; p < n; p++, first += height * width, second += height * width) {
        for (size_t i = 0; i < SIDE; i++, pictures += SIDE) {
            for (size_t x = 0; x < width; x++)
                row[x] = 0;
            for (size_t k = 0; k < row_taps; k++) {
                const uint8_t *a = first + (row_start[i] + k) * width;
                const uint8_t *b = second + (row_start[i] + k) * width;
                float weight = row_weights[i * row_taps + k];
                for (size_t x = 0; x < width; x++)
                    row[x] += weight * (a[x] > b[x] ? a[x] : b[x]);
            }
            for (size_t j = 0; j < SIDE; j++) {
                const float *from = row + column_start[j];
                float sum = 0;
                for (size_t k = 0; k < column_taps; k++)
                    sum += column_weights[j * column_taps + k] * from[k];
                pictures[j] = (uint8_t)rintf(sum);
            }
        }
    }
}
