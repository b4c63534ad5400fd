/* Reads token ids, from the arguments or from standard input, and prints the likeliest next one; with -n COUNT it goes on from there, with -t it
   prints text. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attar_model.h"

static _Alignas(ATTAR_ALIGN) uint8_t sram[ATTAR_SRAM_BYTES], dram[ATTAR_DRAM_BYTES];
static attar model;
static uint32_t tokens[ATTAR_POSITIONS + 1];
static size_t count;

static void check(attar_status status)
{
    static const char *const words[] = {"", "bytes of on-chip memory", "bytes of memory", "alignment", "other weights", "no such token", "too many tokens",
                                        "no plan for so many tokens here"};
    if (status == ATTAR_OK)
        return;
    fprintf(stderr, "error: %s (%zu wanted, %zu found)\n", words[status], model.wanted, model.found);
    exit(1);
}

static void add(const char *word)
{
    char *end;
    unsigned long token = strtoul(word, &end, 10);
    if (*word < '0' || *word > '9' || *end != 0 || token > UINT32_MAX) {
        fprintf(stderr, "error: `%s` is no token id\n", word);
        exit(1);
    }
    if (count <= ATTAR_POSITIONS)
        tokens[count++] = (uint32_t)token;
}

static void say(uint32_t token, int as_text)
{
#ifdef ATTAR_TEXTS
    if (as_text) {
        size_t bytes;
        const char *text = attar_text(token, &bytes);
        fwrite(text, 1, bytes, stdout);
        return;
    }
#endif
    (void)as_text;
    printf("%u\n", (unsigned)token);
}

int main(int argc, char **argv)
{
    unsigned long more = 1;
    char word[32];
    int given = 0, as_text = 0;
    for (int at = 1; at < argc; at++) {
        if (strcmp(argv[at], "-n") == 0 && at + 1 < argc) {
            char *end;
            more = strtoul(argv[++at], &end, 10);
            if (*argv[at] < '0' || *argv[at] > '9' || more == 0 || *end != 0) {
                fprintf(stderr, "error: `%s` is no count\n", argv[at]);
                return 2;
            }
#ifdef ATTAR_TEXTS
        } else if (strcmp(argv[at], "-t") == 0) {
            as_text = 1;
#endif
        } else {
            add(argv[at]);
            given = 1;
        }
    }
    while (!given && scanf("%31s", word) == 1)
        add(word);
    if (count == 0) {
        fprintf(stderr, "usage: %s [-n COUNT] [-t] TOKEN...\n", argv[0]);
        return 2;
    }
    check(attar_init(&model, sram, sizeof sram, dram, sizeof dram, attar_weights));
    check(attar_prefill(&model, tokens, count));
    for (; more > 0; more--) {
        uint32_t best = attar_best(&model);
        say(best, as_text);
        fflush(stdout);
        if (more > 1)
            check(attar_decode(&model, best));
    }
    return 0;
}
