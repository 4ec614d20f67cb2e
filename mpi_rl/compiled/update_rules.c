/* The update rules of learning/update_rules.py, each in one pass over memory; NumPy takes several.

   All take n floats each of: params and statistics, changed in place; grads, read; reply, where the
   new params are written too, which may be grads itself (hence "omp simd": no turn of a loop waits
   for another). scale multiplies the gradient. */

#include <math.h>
#include <stddef.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTORS
#endif

VECTORS void rmsprop(size_t n, float *restrict params, float *restrict mean_square,
                     const float *grads, float *reply, float scale, float decay, float epsilon,
                     float learning_rate)
{
    float rest = 1 - decay;
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        float d = scale * grads[i];
        mean_square[i] = decay * mean_square[i] + rest * d * d;
        params[i] -= learning_rate * d / sqrtf(mean_square[i] + epsilon);
        reply[i] = params[i];
    }
}

/* correction = sqrt(1 - beta2^t); learning_rate has been divided by 1 - beta1^t. */
VECTORS void adam(size_t n, float *restrict params, float *restrict first_moment,
                  float *restrict second_moment, const float *grads, float *reply, float scale,
                  float beta1, float beta2, float correction, float epsilon, float learning_rate)
{
    float rest1 = 1 - beta1, rest2 = 1 - beta2;
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        float d = scale * grads[i];
        first_moment[i] = beta1 * first_moment[i] + rest1 * d;
        second_moment[i] = beta2 * second_moment[i] + rest2 * d * d;
        params[i] -= learning_rate * first_moment[i] / (sqrtf(second_moment[i]) / correction + epsilon);
        reply[i] = params[i];
    }
}

VECTORS void sgd(size_t n, float *restrict params, const float *grads, float *reply, float scale,
                 float weight_decay, float learning_rate)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        params[i] -= learning_rate * (scale * grads[i] + weight_decay * params[i]);
        reply[i] = params[i];
    }
}

VECTORS void momentum_sgd(size_t n, float *restrict params, float *restrict velocity,
                          const float *grads, float *reply, float scale, float weight_decay,
                          float momentum, float learning_rate)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        velocity[i] = momentum * velocity[i] + scale * grads[i] + weight_decay * params[i];
        params[i] -= learning_rate * velocity[i];
        reply[i] = params[i];
    }
}
