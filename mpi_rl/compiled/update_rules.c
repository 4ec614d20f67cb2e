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

void share_out(void (*work)(const void *what, size_t thread, size_t threads), const void *what, size_t n);
void stretch_of(size_t n, size_t thread, size_t threads, size_t *begin, size_t *end);

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

/* A tile of a product or of two rows, of as many numbers as a processor's registers hold. */
enum { WIDTH = 16, TILE = 4 * WIDTH };

typedef float vector __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

/* d = the sum of x[r] times the row that delta[r] points to, for n <= TILE numbers from j on. */
INLINE void product(size_t n, size_t rows, const float *x, const float *const *delta, size_t j, float *d)
{
    if (n == TILE) {
        vector a = {0}, b = {0}, c = {0}, e = {0};
        for (size_t r = 0; r < rows; r++) {
            const vector *y = (const vector *)(delta[r] + j);
            a += x[r] * y[0], b += x[r] * y[1], c += x[r] * y[2], e += x[r] * y[3];
        }
        vector *to = (vector *)d;
        to[0] = a, to[1] = b, to[2] = c, to[3] = e;
        return;
    }
    for (size_t k = 0; k < n; k++)
        d[k] = 0;
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < n; k++)
            d[k] += x[r] * delta[r][j + k];
}

/* Some of the parameters, and where in grads theirs are: their gradients; or, of a weight with so
   many inputs, inputs x outputs, its factors, `rows` rows of what its layer was given, then of deltas. */
typedef struct {
    size_t begin, end, at, inputs;
} Part;

typedef struct {
    size_t rule, num_parts, rows;
    size_t is_sparse; /* a parameter whose gradient is 0 stays as it is */
    const Part *parts;
    const Numbers *numbers;
    float *params, *first, *second;
    const float *grads;
    float *reply;
    size_t *count;   /* updates so far, of all bindings of the rule; begins at 1 */
    size_t *touched; /* for each input of the weights with factors: the last one that changed its row */
    size_t *held;    /* the last one that reply has what came of; 0: none */
} Update;

typedef void Rule(VECTORS_OF_A_RULE);
enum { RMSPROP, ADAM, SGD, MOMENTUM_SGD };

/* Change parameters begin to end - 1 by gradients d. */
INLINE void change(const Update *u, Rule rule, size_t begin, size_t end, const float *d)
{
    rule(end - begin, u->numbers, u->params + begin, u->first + begin, u->second + begin, d,
         u->reply + begin);
}

/* What RMSProp does to n <= TILE mean squares in so many updates whose gradients are 0, to the bit. */
INLINE void decay_tile(float *mean_square, size_t n, float by, size_t times)
{
    enum { MANY = 256 };
    for (size_t run; times; times -= run) {
        run = times < MANY ? times : MANY;
        if (n == TILE) {
            vector *g = (vector *)mean_square, a = g[0], b = g[1], c = g[2], e = g[3];
            for (size_t k = run; k--;)
                a *= by, b *= by, c *= by, e *= by;
            g[0] = a, g[1] = b, g[2] = c, g[3] = e;
        } else
            for (size_t i = 0; i < n; i++)
                for (size_t k = run; k--;)
                    mean_square[i] *= by;
        if (run == MANY) { /* what is 0 stays so */
            int is_zero = 1;
            for (size_t i = 0; i < n; i++)
                is_zero &= mean_square[i] == 0;
            if (is_zero)
                return;
        }
    }
}

INLINE void decay(float *mean_square, size_t n, float by, size_t times)
{
    for (; n > TILE; n -= TILE, mean_square += TILE)
        decay_tile(mean_square, TILE, by, times);
    decay_tile(mean_square, n, by, times);
}

/* The rows of so many inputs are a thread's, then come another's: some parts of a screen have more to do.
   Not a power of 2, or a thread's rows would fall into some sets of its cache only. */
enum { CHUNK = 48 };

/* Change the rows of the inputs from `first` to `end` of a weight, by its factors. Of rows whose inputs
   are all 0, reply gets those that it lacks. */
INLINE void change_rows(const Update *u, Rule rule, const Part *part, size_t *touched, size_t first, size_t end)
{
    size_t inputs = part->inputs, outputs = (part->end - part->begin) / inputs, count = 0;
    const float *x = u->grads + part->at, *deltas = x + u->rows * inputs, *delta[u->rows];
    float given[u->rows], d[TILE];
    int is_given[CHUNK], changes[CHUNK];
    size_t row[CHUNK];
    for (size_t i = first; i < end; i++)
        is_given[i - first] = !u->is_sparse;
    for (size_t r = 0; r < u->rows; r++)
        for (size_t i = first; i < end; i++)
            is_given[i - first] |= x[r * inputs + i] != 0; /* nan is not */
    for (size_t i = first; i < end; i++) {
        row[count] = i, changes[count] = is_given[i - first];
        count += changes[count] | (touched[i] > *u->held);
    }
    for (size_t i = 0; i < count; i++) {
        size_t at = part->begin + row[i] * outputs;
        size_t next = part->begin + row[i + 1 < count ? i + 1 : i] * outputs;
        size_t rows = 0, missed = *u->count - touched[row[i]];
        for (size_t r = 0; r < u->rows && changes[i]; r++) {
            given[rows] = x[r * inputs + row[i]], delta[rows] = deltas + r * outputs;
            rows += given[rows] != 0;
        }
        for (size_t j = 0, n; j < outputs; j += n) {
            n = outputs - j < TILE ? outputs - j : TILE;
            for (size_t l = j; l < j + n; l += WIDTH) { /* it may be anywhere: no processor foresees it */
                __builtin_prefetch(u->params + next + l, 1);
                __builtin_prefetch(u->first + next + l, 1);
                __builtin_prefetch(u->reply + next + l, 1);
            }
            if (!changes[i]) {
                memcpy(u->reply + at + j, u->params + at + j, n * sizeof *u->reply);
                continue;
            }
            if (u->rule == RMSPROP)
                decay_tile(u->first + at + j, n, u->numbers->decay, missed);
            product(n, rows, given, delta, j, d);
            if (n == TILE)
                change(u, rule, at + j, at + j + TILE, d);
            else
                change(u, rule, at + j, at + j + n, d);
        }
        if (changes[i])
            touched[row[i]] = *u->count + 1;
    }
}

/* Do a thread's part of an update. */
INLINE void change_share(const Update *u, Rule rule, size_t thread, size_t threads)
{
    size_t *touched = u->touched;
    for (const Part *part = u->parts; part < u->parts + u->num_parts; touched += part++->inputs) {
        size_t begin, end;
        stretch_of(part->end - part->begin, thread, threads, &begin, &end);
        if (!part->inputs && begin < end)
            change(u, rule, part->begin + begin, part->begin + end, u->grads + part->at + begin);
        for (size_t i = thread * CHUNK; i < part->inputs; i += threads * CHUNK)
            change_rows(u, rule, part, touched, i, i + CHUNK < part->inputs ? i + CHUNK : part->inputs);
    }
}

#define SHARE(rule)                                                                               \
    VECTORS static void rule##_share(const void *update, size_t thread, size_t threads)           \
    {                                                                                             \
        change_share(update, rule, thread, threads);                                              \
    }
SHARE(rmsprop)
SHARE(adam)
SHARE(sgd)
SHARE(momentum_sgd)

/* Apply what was pushed to all parameters. */
void update(const Update *u)
{
    static void (*const shares[])(const void *, size_t, size_t) = {
        rmsprop_share, adam_share, sgd_share, momentum_sgd_share};
    share_out(shares[u->rule], u, u->parts[u->num_parts - 1].end);
    *u->held = ++*u->count;
}

/* Do to all statistics what updates have left for later. */
VECTORS void settle(const Update *u)
{
    size_t *touched = u->touched;
    for (const Part *part = u->parts; part < u->parts + u->num_parts; part++)
        for (size_t i = 0; i < part->inputs; i++, touched++) {
            size_t outputs = (part->end - part->begin) / part->inputs, missed = *u->count - *touched;
            if (u->rule == RMSPROP)
                decay(u->first + part->begin + i * outputs, outputs, u->numbers->decay, missed);
            *touched = *u->count;
        }
}

/* Mixing: params <- keep params + share others. What is multiplied is rounded before it is added, as
   NumPy does: a compiler would make one operation of both, but not of two loops. */
typedef struct {
    size_t n;
    float *params;
    const float *others;
    float keep, share;
} Mix;

VECTORS static void mix_share(const void *what, size_t thread, size_t threads)
{
    const Mix *m = what;
    float part[TILE];
    size_t begin, end;
    stretch_of(m->n, thread, threads, &begin, &end);
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
    Mix what = {n, params, others, keep, share};
    share_out(mix_share, &what, n);
}

static void copy_share(const void *what, size_t thread, size_t threads)
{
    const Mix *m = what;
    size_t begin, end;
    stretch_of(m->n, thread, threads, &begin, &end);
    if (begin >= end)
        return;
    memcpy(m->params + begin, m->others + begin, (end - begin) * sizeof *m->params);
}

void copy(size_t n, float *params, const float *others)
{
    Mix what = {n, params, others, 0, 1};
    share_out(copy_share, &what, n);
}
