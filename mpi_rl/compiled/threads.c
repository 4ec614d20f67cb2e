/* Threads that share out work over long vectors: each has its own share, the same every time, so
   that its core's caches hold it. Between two works they sleep, if the next does not come at once. */

#include <pthread.h>
#include <signal.h>
#include <stddef.h>

enum {
    MOST = 255,      /* helpers */
    UNIT = 1024,     /* stretches begin at multiples of it */
    LEAST = 1 << 16, /* numbers that are worth waking a helper */
    LOOKS = 1 << 16, /* at what others do, before sleeping until it is done: some 50 us */
};

typedef void (*Work)(const void *what, size_t thread, size_t threads);

static struct {
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    size_t helpers; /* threads besides the one that calls */
    size_t threads; /* that share this work */
    size_t round;   /* works so far */
    size_t busy;    /* helpers that have not done theirs */
    Work work;
    const void *what;
    size_t begun[MOST + 1]; /* works before each helper */
} pool = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, 0, 0, 0, 0, {0}};

/* Say which of n numbers are a thread's: from begin to end - 1, if any. */
void stretch_of(size_t n, size_t thread, size_t threads, size_t *begin, size_t *end)
{
    size_t units = (n + UNIT - 1) / UNIT;
    *begin = units * thread / threads * UNIT;
    *end = units * (thread + 1) / threads * UNIT;
    *end = *end < n ? *end : n;
}

static void *help(void *number)
{
    size_t thread = (size_t)number;
    for (size_t round = pool.begun[thread];; round++) {
        for (size_t look = 0; look < LOOKS; look++)
            if (__atomic_load_n(&pool.round, __ATOMIC_ACQUIRE) != round)
                break;
        pthread_mutex_lock(&pool.lock);
        while (pool.round == round)
            pthread_cond_wait(&pool.wake, &pool.lock);
        pthread_mutex_unlock(&pool.lock);
        pool.work(pool.what, thread, pool.threads);
        if (__atomic_sub_fetch(&pool.busy, 1, __ATOMIC_ACQ_REL) == 0) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.done);
            pthread_mutex_unlock(&pool.lock);
        }
    }
    return NULL;
}

/* Have so many threads at least, the caller among them, from now on; return how many there are.
   Signals are the caller's: it may be asleep, and has to hear them. */
size_t start_threads(size_t threads)
{
    pthread_t started;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (size_t next; (next = pool.helpers + 1) < threads && next <= MOST; pool.helpers = next) {
        pool.begun[next] = pool.round;
        if (pthread_create(&started, NULL, help, (void *)next))
            break;
        pthread_detach(started);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pool.helpers + 1;
}

/* Let all threads do their shares of a work on n numbers; return when they have. */
void share_out(Work work, const void *what, size_t n)
{
    pool.work = work, pool.what = what;
    pool.threads = n < LEAST ? 1 : pool.helpers + 1;
    if (pool.threads > 1) {
        pthread_mutex_lock(&pool.lock);
        pool.busy = pool.helpers;
        __atomic_add_fetch(&pool.round, 1, __ATOMIC_RELEASE);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.lock);
    }
    work(what, 0, pool.threads);
    for (size_t look = 0; look < LOOKS && __atomic_load_n(&pool.busy, __ATOMIC_ACQUIRE); look++)
        ;
    if (__atomic_load_n(&pool.busy, __ATOMIC_ACQUIRE)) {
        pthread_mutex_lock(&pool.lock);
        while (__atomic_load_n(&pool.busy, __ATOMIC_ACQUIRE))
            pthread_cond_wait(&pool.done, &pool.lock);
        pthread_mutex_unlock(&pool.lock);
    }
}
