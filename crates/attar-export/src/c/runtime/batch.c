/* Reads the token ids of ATTAR_BATCH prompts of one length, `/` between them, and prints the likeliest next token of each in a line; with -n COUNT it
   goes on from there, a line for each step. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attar_model.h"

static _Alignas(ATTAR_ALIGN) uint8_t sram[ATTAR_SRAM_BYTES], dram[ATTAR_DRAM_BYTES];
static attar model;
static uint32_t tokens[(ATTAR_POSITIONS + 1) * ATTAR_BATCH];

static void check(attar_status status)
{
    static const char *const words[] = {"", "bytes of on-chip memory", "bytes of memory", "alignment", "other weights", "no such token", "too many tokens",
                                        "no plan for so many tokens here"};
    if (status == ATTAR_OK)
        return;
    fprintf(stderr, "error: %s (%zu wanted, %zu found)\n", words[status], model.wanted, model.found);
    exit(1);
}

static int wrong(const char *name)
{
    fprintf(stderr, "usage: %s [-n COUNT] TOKEN... / TOKEN...: %u prompts of the same length\n", name, ATTAR_BATCH);
    return 2;
}

int main(int argc, char **argv)
{
    unsigned long more = 1;
    size_t sequence = 0, length = 0, first = 0;
    for (int at = 1; at < argc; at++) {
        char *end;
        if (strcmp(argv[at], "/") == 0) {
            if (length == 0 || (sequence > 0 && length != first))
                return wrong(argv[0]);
            first = length;
            length = 0;
            sequence++;
            continue;
        }
        int counts = strcmp(argv[at], "-n") == 0 && at + 1 < argc;
        unsigned long number = strtoul(argv[counts ? ++at : at], &end, 10);
        if (argv[at][0] < '0' || argv[at][0] > '9' || *end != 0 || number > UINT32_MAX || (counts && number == 0))
            return wrong(argv[0]);
        if (counts) {
            more = number;
        } else {
            if (sequence < ATTAR_BATCH && length <= ATTAR_POSITIONS)
                tokens[length * ATTAR_BATCH + sequence] = (uint32_t)number;
            length++;
        }
    }
    if (length == 0 || sequence + 1 != ATTAR_BATCH || (sequence > 0 && length != first))
        return wrong(argv[0]);
    check(attar_init(&model, sram, sizeof sram, dram, sizeof dram, attar_weights));
    check(attar_prefill(&model, tokens, length));
    for (;;) {
        for (size_t of = 0; of < ATTAR_BATCH; of++) {
            tokens[of] = attar_best_of(&model, of);
            printf("%s%u", of > 0 ? " " : "", (unsigned)tokens[of]);
        }
        printf("\n");
        if (--more == 0)
            return 0;
        check(attar_prefill(&model, tokens, 1));
    }
}
