/* The update rules of learning/update_rules.py, each in one pass over memory; NumPy takes several.

   A rule changes params and its statistics, floats, in place, and writes the new params to reply
   too, which may be grads itself (hence "omp simd": no turn of a loop waits for another).

   grads holds what was pushed: gradients, or the factors of a weight's. Of these the product is
   formed here, some numbers at a time, between the memory accesses of the update; it is never
   written to memory. Rows of it are summed up one after the other, as libraries do. */

#include <math.h>
#include <stddef.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTORS
#endif

void share_out(void (*work)(const void *what, size_t begin, size_t end), const void *what, size_t n);

/* What a rule multiplies and adds; the first two are of each update. */
typedef struct {
    float scale, learning_rate; /* of the gradient; of the step */
    float decay, decay2, epsilon, correction, weight_decay;
} Numbers;

/* n numbers of each vector. */
#define VECTORS_OF_A_RULE                                                                         \
    size_t n, const Numbers *k, float *restrict params, float *restrict first,                   \
        float *restrict second, const float *grads, float *reply

INLINE void rmsprop(VECTORS_OF_A_RULE)
{
    float scale = k->scale, decay = k->decay, rest = 1 - k->decay, epsilon = k->epsilon;
    float learning_rate = k->learning_rate;
    (void)second;
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        float d = scale * grads[i];
        first[i] = decay * first[i] + rest * d * d;
        params[i] -= learning_rate * d / sqrtf(first[i] + epsilon);
        reply[i] = params[i];
    }
}

/* correction = sqrt(1 - decay2^t); learning_rate has been divided by 1 - decay^t. */
INLINE void adam(VECTORS_OF_A_RULE)
{
    float scale = k->scale, beta1 = k->decay, beta2 = k->decay2, epsilon = k->epsilon;
    float learning_rate = k->learning_rate, correction = k->correction;
    float rest1 = 1 - beta1, rest2 = 1 - beta2;
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        float d = scale * grads[i];
        first[i] = beta1 * first[i] + rest1 * d;
        second[i] = beta2 * second[i] + rest2 * d * d;
        params[i] -= learning_rate * first[i] / (sqrtf(second[i]) / correction + epsilon);
        reply[i] = params[i];
    }
}

INLINE void sgd(VECTORS_OF_A_RULE)
{
    float scale = k->scale, weight_decay = k->weight_decay, learning_rate = k->learning_rate;
    (void)first, (void)second;
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        params[i] -= learning_rate * (scale * grads[i] + weight_decay * params[i]);
        reply[i] = params[i];
    }
}

INLINE void momentum_sgd(VECTORS_OF_A_RULE)
{
    float scale = k->scale, weight_decay = k->weight_decay, learning_rate = k->learning_rate;
    float momentum = k->decay;
    (void)second;
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        first[i] = momentum * first[i] + scale * grads[i] + weight_decay * params[i];
        params[i] -= learning_rate * first[i];
        reply[i] = params[i];
    }
}

/* A product is formed TILE numbers at a time, which a processor's registers hold. */
enum { WIDTH = 16, TILE = 6 * WIDTH, TOGETHER = 2, AHEAD = 1024 };

typedef float vector __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

/* d = the sum over the rows of delta times x, for n <= TILE columns of x. Rows are so far apart. */
INLINE void product(size_t n, size_t rows, const float *delta, size_t delta_row, const float *x,
                    size_t x_row, float *d)
{
    if (n == TILE) {
        vector a = {0}, b = {0}, c = {0}, e = {0}, f = {0}, g = {0};
        for (; rows--; delta += delta_row, x += x_row) {
            const vector *y = (const vector *)x;
            a += *delta * y[0], b += *delta * y[1], c += *delta * y[2];
            e += *delta * y[3], f += *delta * y[4], g += *delta * y[5];
        }
        vector *to = (vector *)d;
        to[0] = a, to[1] = b, to[2] = c, to[3] = e, to[4] = f, to[5] = g;
        return;
    }
    for (size_t j = 0; j < n; j++)
        d[j] = 0;
    for (; rows--; delta += delta_row, x += x_row)
        for (size_t j = 0; j < n; j++)
            d[j] += *delta * x[j];
}

/* Some of the parameters, and where in grads theirs are: their gradients; or, of a weight with so
   many inputs, its factors, `rows` rows of what its layer was given, then of deltas. */
typedef struct {
    size_t begin, end, at, inputs;
} Part;

typedef struct {
    size_t rule, num_parts, rows;
    const Part *parts;
    const Numbers *numbers;
    float *params, *first, *second;
    const float *grads;
    float *reply;
} Update;

typedef void Rule(VECTORS_OF_A_RULE);

/* Change parameters begin to end - 1 by gradients d. */
INLINE void change(const Update *u, Rule rule, size_t begin, size_t end, const float *d)
{
    rule(end - begin, u->numbers, u->params + begin, u->first + begin, u->second + begin, d,
         u->reply + begin);
}

/* The same by the factors of a part, which these parameters are of: for up to TOGETHER outputs of the
   layer at once, so that a tile of x is read from a near cache. */
INLINE void change_by_factors(const Update *u, Rule rule, const Part *part, size_t begin, size_t end)
{
    const float *x = u->grads + part->at, *delta = x + u->rows * part->inputs;
    size_t inputs = part->inputs, outputs = (part->end - part->begin) / inputs;
    float d[TILE];
    for (size_t i = begin, run, together; i < end; i += run * together) {
        size_t output = (i - part->begin) / inputs, column = (i - part->begin) % inputs;
        run = inputs - column < end - i ? inputs - column : end - i;
        together = run < inputs ? 1 : (end - i) / inputs < TOGETHER ? (end - i) / inputs : TOGETHER;
        for (size_t j = 0, n; j < run; j += n) {
            n = run - j < TILE ? run - j : TILE;
            for (size_t k = 0, at = i + j; k < together; k++, at += inputs) {
                for (size_t l = 0; l < n; l += WIDTH) /* a worker's cache has it: stores would wait */
                    __builtin_prefetch(u->reply + at + AHEAD + l, 1);
                product(n, u->rows, delta + output + k, outputs, x + column + j, inputs, d);
                change(u, rule, at, at + n, d);
            }
        }
    }
}

INLINE void change_stretch(const Update *u, Rule rule, size_t begin, size_t end)
{
    for (const Part *part = u->parts; part < u->parts + u->num_parts; part++) {
        size_t from = part->begin < begin ? begin : part->begin;
        size_t to = part->end < end ? part->end : end;
        if (from < to && part->inputs)
            change_by_factors(u, rule, part, from, to);
        else if (from < to)
            change(u, rule, from, to, u->grads + part->at + (from - part->begin));
    }
}

#define STRETCH(rule)                                                                             \
    VECTORS static void rule##_stretch(const void *update, size_t begin, size_t end)              \
    {                                                                                             \
        change_stretch(update, rule, begin, end);                                                 \
    }
STRETCH(rmsprop)
STRETCH(adam)
STRETCH(sgd)
STRETCH(momentum_sgd)

/* Apply what was pushed to all parameters. */
void update(const Update *u)
{
    static void (*const stretches[])(const void *, size_t, size_t) = {
        rmsprop_stretch, adam_stretch, sgd_stretch, momentum_sgd_stretch};
    share_out(stretches[u->rule], u, u->parts[u->num_parts - 1].end);
}

/* Mixing: params <- keep params + share others. What is multiplied is rounded before it is added, as
   NumPy does: a compiler would make one operation of both, but not of two loops. */
typedef struct {
    float *params;
    const float *others;
    float keep, share;
} Mix;

VECTORS static void mix_stretch(const void *what, size_t begin, size_t end)
{
    const Mix *m = what;
    float part[TILE];
    for (size_t i = begin; i < end; i += TILE) {
        size_t n = end - i < TILE ? end - i : TILE;
        float *restrict params = m->params + i;
        const float *restrict others = m->others + i;
        for (size_t j = 0; j < n; j++)
            part[j] = m->share * others[j];
        for (size_t j = 0; j < n; j++)
            params[j] *= m->keep;
        for (size_t j = 0; j < n; j++)
            params[j] += part[j];
    }
}

void mix(size_t n, float *params, const float *others, float keep, float share)
{
    Mix what = {params, others, keep, share};
    share_out(mix_stretch, &what, n);
}

static void copy_stretch(const void *what, size_t begin, size_t end)
{
    const Mix *m = what;
    memcpy(m->params + begin, m->others + begin, (end - begin) * sizeof *m->params);
}

void copy(size_t n, float *params, const float *others)
{
    Mix what = {params, others, 0, 1};
    share_out(copy_stretch, &what, n);
}
