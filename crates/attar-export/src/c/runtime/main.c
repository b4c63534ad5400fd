/* Reads token ids, from the arguments or from standard input, and prints the likeliest next one; with -n COUNT it goes on from there, with -t it
   prints text. With -d, what followed the same two tokens before is a draft of what comes next, verified at once (Saxena 2023): the same tokens in fewer
   runs, whose number it prints to standard error. */
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

#if ATTAR_VERIFY
/* The last token, not read yet, and behind it what followed the last place with the two last tokens. Returns how many. */
static size_t drafted(uint32_t *draft)
{
    size_t length = 1;
    draft[0] = tokens[count - 1];
    for (size_t at = count - 1; at > 1 && length == 1; at--)
        if (tokens[at - 1] == tokens[count - 1] && tokens[at - 2] == tokens[count - 2])
            while (length < ATTAR_VERIFY && at < count)
                draft[length++] = tokens[at++];
    return length;
}
#endif

/* Says `more` tokens, reading each, or a draft of several at once. Returns in how many runs. */
static unsigned long go_on(unsigned long more, int as_text, int drafts)
{
    unsigned long runs = 0;
    while (more > 0) {
        uint32_t best = attar_best(&model);
        say(best, as_text);
        fflush(stdout);
        if (--more == 0)
            break;
        runs++;
#if ATTAR_VERIFY
        if (drafts && count <= ATTAR_POSITIONS)
            tokens[count++] = best;
        if (drafts && model.position + ATTAR_VERIFY <= ATTAR_POSITIONS) {
            uint32_t draft[ATTAR_VERIFY];
            size_t length = drafted(draft), good;
            check(attar_verify(&model, draft, length));
            good = attar_accept(&model, draft, length);
            for (size_t at = 1; at <= good && more > 0; at++, more--) {
                say(draft[at], as_text);
                if (count <= ATTAR_POSITIONS)
                    tokens[count++] = draft[at];
            }
            continue;
        }
#endif
        (void)drafts;
        check(attar_decode(&model, best));
    }
    return runs;
}

int main(int argc, char **argv)
{
    unsigned long more = 1;
    char word[32];
    int given = 0, as_text = 0, drafts = 0;
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
#if ATTAR_VERIFY
        } else if (strcmp(argv[at], "-d") == 0) {
            drafts = 1;
#endif
        } else {
            add(argv[at]);
            given = 1;
        }
    }
    while (!given && scanf("%31s", word) == 1)
        add(word);
    if (count == 0) {
        fprintf(stderr, "usage: %s [-n COUNT] [-t] [-d] TOKEN...\n", argv[0]);
        return 2;
    }
    check(attar_init(&model, sram, sizeof sram, dram, sizeof dram, attar_weights));
    check(attar_prefill(&model, tokens, count));
    more = go_on(more, as_text, drafts);
    if (drafts)
        fprintf(stderr, "%lu runs behind the prompt\n", more);
    return 0;
}
