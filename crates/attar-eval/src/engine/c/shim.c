/* Compiled with an exported model: its arenas, its weights from their file, and functions without a type of the model's. */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "attar_model.h"

static _Alignas(ATTAR_ALIGN) uint8_t sram[ATTAR_SRAM_BYTES], dram[ATTAR_DRAM_BYTES];
static attar model;

/* -1: the file cannot be read. -2: it has another size. Otherwise a status. */
int attar_engine_open(const char *path)
{
    struct stat found;
    int file = open(path, O_RDONLY);
    void *weights;
    if (file < 0 || fstat(file, &found) != 0)
        return -1;
    if ((uint64_t)found.st_size != ATTAR_WEIGHTS_BYTES) {
        model.wanted = ATTAR_WEIGHTS_BYTES;
        model.found = (size_t)found.st_size;
        return -2;
    }
    weights = mmap(0, ATTAR_WEIGHTS_BYTES, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (weights == MAP_FAILED)
        return -1;
    return (int)attar_init(&model, sram, sizeof sram, dram, sizeof dram, weights);
}

void attar_engine_sizes(uint64_t *vocabulary, uint64_t *positions, float *step)
{
    *vocabulary = ATTAR_VOCABULARY;
    *positions = ATTAR_POSITIONS;
#if ATTAR_ENCODER
    *step = ATTAR_ROWS_STEP;
#else
    *step = ATTAR_LOGITS_STEP;
#endif
}

#if ATTAR_ENCODER
uint64_t attar_engine_width(void)
{
    return ATTAR_WIDTH;
}

/* How rows become one, and whether that is brought to length 1. */
void attar_engine_pooling(uint64_t *rows, uint64_t *normalized)
{
    *rows = ATTAR_POOLING;
    *normalized = ATTAR_NORMALIZED;
}

/* Reads a text and makes its embedding. The status, and the two numbers that it is about. */
int attar_engine_encode(const uint32_t *tokens, size_t count, int32_t *embedding, uint64_t *about)
{
    attar_status status = attar_encode(&model, tokens, 0, count);
#if ATTAR_POOLING
    if (status == ATTAR_OK)
        attar_pooled(&model, embedding);
#else
    (void)embedding;
#endif
    about[0] = model.wanted;
    about[1] = model.found;
    return (int)status;
}
#else
/* Numbers of an embedding; 0 of a model that predicts tokens. */
uint64_t attar_engine_width(void)
{
    return 0;
}

/* The same text in every sequence of a batch: what the first makes of it is read. Too many tokens are refused before they are looked at. */
static attar_status read_all(const uint32_t *tokens, size_t count)
{
#if ATTAR_BATCH > 1
    static uint32_t all[ATTAR_POSITIONS * ATTAR_BATCH];
    for (size_t at = 0; count <= ATTAR_POSITIONS && at < count * ATTAR_BATCH; at++)
        all[at] = tokens[at / ATTAR_BATCH];
    tokens = all;
#endif
    return attar_prefill(&model, tokens, count);
}

/* The status, and the two numbers that it is about. */
int attar_engine_read(const uint32_t *tokens, size_t count, uint64_t *about)
{
    attar_status status = read_all(tokens, count);
    about[0] = model.wanted;
    about[1] = model.found;
    return (int)status;
}

/* Tokens that the next function reads at once, at most; 0 if there is no plan of that. */
uint64_t attar_engine_verifies(void)
{
    return ATTAR_VERIFY;
}

/* The same as the function before, for tokens whose logits are all kept. */
int attar_engine_verify(const uint32_t *tokens, size_t count, uint64_t *about)
{
#if ATTAR_VERIFY
    attar_status status = attar_verify(&model, tokens, count);
#else
    attar_status status = read_all(tokens, count);
#endif
    about[0] = model.wanted;
    about[1] = model.found;
    return (int)status;
}

/* The logits of a token of these. */
const int16_t *attar_engine_logits_of(size_t row)
{
#if ATTAR_VERIFY
    return attar_logits_of(&model, row);
#else
    (void)row;
    return attar_logits(&model);
#endif
}

void attar_engine_rewind(uint32_t position)
{
    attar_rewind(&model, position);
}

const int16_t *attar_engine_logits(void)
{
    return attar_logits(&model);
}
#endif
