/* Reads token ids of two texts or more, from the arguments, each behind `--` but the first, and prints the cosine of the first text with each of the
   others; of one text, prints its embedding. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attar_model.h"

static _Alignas(ATTAR_ALIGN) uint8_t sram[ATTAR_SRAM_BYTES], dram[ATTAR_DRAM_BYTES];
static attar model;

static void check(attar_status status)
{
    static const char *const words[] = {"", "bytes of on-chip memory", "bytes of memory", "alignment", "other weights", "no such token", "too many tokens",
                                        "no tokens"};
    if (status == ATTAR_OK)
        return;
    fprintf(stderr, "error: %s (%zu wanted, %zu found)\n", words[status], model.wanted, model.found);
    exit(1);
}

/* Reads tokens up to `--` or the end, and returns what is behind them. */
static char **encode(char **word, int32_t *embedding)
{
    static uint32_t tokens[ATTAR_POSITIONS + 1];
    size_t count = 0;
    for (; *word != 0 && strcmp(*word, "--") != 0; word++) {
        char *end;
        unsigned long token = strtoul(*word, &end, 10);
        if (**word < '0' || **word > '9' || *end != 0 || token > UINT32_MAX) {
            fprintf(stderr, "error: `%s` is no token id\n", *word);
            exit(1);
        }
        if (count <= ATTAR_POSITIONS)
            tokens[count++] = (uint32_t)token;
    }
    check(attar_encode(&model, tokens, 0, count));
    attar_pooled(&model, embedding);
    return *word == 0 ? word : word + 1;
}

static double product(const int32_t *a, const int32_t *b)
{
    double sum = 0;
    for (size_t at = 0; at < ATTAR_WIDTH; at++)
        sum += (double)a[at] * b[at];
    return sum;
}

int main(int argc, char **argv)
{
    static int32_t first[ATTAR_WIDTH], other[ATTAR_WIDTH];
    char **rest = argv + 1;
    if (argc < 2) {
        fprintf(stderr, "usage: %s TOKEN... [-- TOKEN...]\n", argv[0]);
        return 2;
    }
    check(attar_init(&model, sram, sizeof sram, dram, sizeof dram, attar_weights));
    rest = encode(rest, first);
    if (*rest == 0)
        for (size_t at = 0; at < ATTAR_WIDTH; at++)
            printf("%ld\n", (long)first[at]);
    while (*rest != 0) {
        rest = encode(rest, other);
        printf("%.4f\n", product(first, other) / sqrt(product(first, first) * product(other, other)));
    }
    return 0;
}
