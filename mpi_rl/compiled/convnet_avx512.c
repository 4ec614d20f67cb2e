/* The convolutions of convnet.c for processors that have AVX-512: the same sums in wider registers. Other
   functions have target_clones; these have tiles of another shape. */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx512f,fma")
#define AVX512
#define conv_forward conv_forward_avx512
#define conv_weight_grads conv_weight_grads_avx512
#define conv_image_grads conv_image_grads_avx512
#define relu_grads relu_grads_avx512
#define sparse_forward sparse_forward_avx512
#define sparse_image_grads sparse_image_grads_avx512
#include "convnet.c"

int has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma");
}
#else
int has_avx512(void)
{
    return 0;
}
#endif
