/* Screens of ALE games, as envs/ale.py sees them: in grey, and averaged down to one picture. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTORS
#endif

/* Screens repeat their rows: what would be computed from the same again is copied. */

static inline int repeats(const uint8_t *image, size_t y, size_t width) /* the row above */
{
    return y && memcmp(image + y * width, image + (y - 1) * width, width) == 0;
}

/* frame = the screen's colours in grey. Return 0 if there is a colour of unknown grey, above 255.
   `other` is another screen, whose grey is in other_frame. */
int grey(size_t height, size_t width, const uint16_t *greys, const uint8_t *screen, uint8_t *frame,
         const uint8_t *other, const uint8_t *other_frame)
{
    unsigned all = 0;
    for (size_t y = 0; y < height; y++) {
        uint8_t *row = frame + y * width;
        if (memcmp(screen + y * width, other + y * width, width) == 0)
            memcpy(row, other_frame + y * width, width);
        else if (repeats(screen, y, width))
            memcpy(row, row - width, width);
        else
            for (size_t x = 0; x < width; x++) {
                unsigned value = greys[screen[y * width + x]];
                all |= value;
                row[x] = (uint8_t)value;
            }
    }
    return all < 256;
}

/* A picture of 84 x 84 from two frames of height x width: the larger of each pair of bytes, averaged
   over areas. Result row i is the sum over k < row_taps of the rows row_start[i] + k, times
   row_weights[row_taps * i + k]; columns likewise, with COLUMN_TAPS. */

enum { SIDE = 84, WIDEST = 256, COLUMN_TAPS = 4 };

typedef float taps __attribute__((vector_size(4 * COLUMN_TAPS), aligned(4), may_alias));

VECTORS void shrink(size_t height, size_t width, const uint8_t *first, const uint8_t *second,
                    uint8_t *picture, const int32_t *row_start, const float *row_weights,
                    size_t row_taps, const int32_t *column_start, const float *column_weights)
{
    float row[WIDEST], line[SIDE];
    size_t y = 0, same = 0; /* rows seen, and how many of the last equal the one above */
    for (size_t i = 0; i < SIDE; i++, picture += SIDE) {
        for (size_t end = row_start[i] + row_taps; y < end; y++)
            same = repeats(first, y, width) && repeats(second, y, width) ? same + 1 : 0;
        if (i && row_start[i - 1] + same + 1 >= y) {
            memcpy(picture, picture - SIDE, SIDE);
            continue;
        }
        for (size_t x = 0; x < width; x++)
            row[x] = 0;
        for (size_t k = 0; k < row_taps; k++) {
            const uint8_t *a = first + (row_start[i] + k) * width;
            const uint8_t *b = second + (row_start[i] + k) * width;
            float weight = row_weights[row_taps * i + k];
            for (size_t x = 0; x < width; x++)
                row[x] += weight * (a[x] > b[x] ? a[x] : b[x]);
        }
        for (size_t j = 0; j < SIDE; j++) {
            taps part = *(const taps *)(row + column_start[j]);
            part *= *(const taps *)(column_weights + COLUMN_TAPS * j);
            line[j] = part[0] + part[1] + part[2] + part[3];
        }
        for (size_t j = 0; j < SIDE; j++)
            picture[j] = (uint8_t)rintf(line[j]);
    }
}
