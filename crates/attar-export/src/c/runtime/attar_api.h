
#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    ATTAR_OK,
    /* `wanted` and `found` of the model say how many bytes. */
    ATTAR_SRAM_TOO_SMALL,
    ATTAR_DRAM_TOO_SMALL,
    /* An arena or the weights do not begin at a multiple of ATTAR_ALIGN. */
    ATTAR_MISALIGNED,
    /* The weights are those of another model or of another export. */
    ATTAR_OTHER_WEIGHTS,
    /* `found` is no token, or no type of one: there are `wanted`. */
    ATTAR_NO_TOKEN,
    /* `found` tokens do not fit: there is room for `wanted`. */
    ATTAR_NO_ROOM,
    /* No plan is for `found` tokens at the position `wanted`; those before them were read. */
    ATTAR_NO_PLAN
} attar_status;

/* A model in use. Its memory is the caller's. */
typedef struct {
    attar_run run;
    attar_ring rings[ATTAR_BUFFERS];
    attar_slot slots[ATTAR_SLOTS];
    uint32_t stored[ATTAR_SLOTS];
    int8_t codes[ATTAR_DEPTH];
    const int16_t *logits; /* of the last token of each sequence, of the last run that computes any */
    uint32_t position; /* tokens that were read, of each sequence */
    uint32_t verified; /* tokens of the last run, if it was attar_verify */
    size_t wanted, found;
} attar;

/* The weights, if attar_weights.S or attar_weights.c is linked. */
extern const uint8_t attar_weights[ATTAR_WEIGHTS_BYTES];

/* Takes two arenas and the weights, and checks them. */
attar_status attar_init(attar *model, void *sram, size_t sram_bytes, void *dram, size_t dram_bytes, const void *weights);

#if ATTAR_ENCODER
/* Reads a text of up to ATTAR_POSITIONS tokens, with special tokens if the model has any. `types` are those of its tokens; none: all are 0. */
attar_status attar_encode(attar *model, const uint32_t *tokens, const uint8_t *types, size_t count);

/* The last values of token `row` of that text, ATTAR_WIDTH numbers in steps of ATTAR_ROWS_STEP. */
const int16_t *attar_row(const attar *model, size_t row);

#if ATTAR_POOLING
/* The text's embedding, ATTAR_WIDTH numbers: the sum of all its rows, whose direction is that of their mean, or the first (ATTAR_POOLING). */
void attar_pooled(const attar *model, int32_t *embedding);
#endif
#else
/* Reads `count` tokens of each of ATTAR_BATCH sequences behind those that were read so far: by the largest plans that fit, the rest one by one. All first
   tokens lie before all second ones: token `i` of sequence `s` is tokens[i * ATTAR_BATCH + s]. */
attar_status attar_prefill(attar *model, const uint32_t *tokens, size_t count);

#if ATTAR_BATCH == 1
/* Reads one token. */
attar_status attar_decode(attar *model, uint32_t token);
#endif

#if ATTAR_VERIFY
/* Reads up to ATTAR_VERIFY tokens at once and keeps the logits of each. Needs room for ATTAR_VERIFY tokens, however few are read. */
attar_status attar_verify(attar *model, const uint32_t *tokens, size_t count);

/* The logits of token `row` of the last attar_verify. */
const int16_t *attar_logits_of(const attar *model, size_t row);

/* After attar_verify of these tokens, of which all but the first are a draft: forgets the draft from the first token on that is not the likeliest one
   there. Returns how many of the draft stay; attar_best is the token behind them. Does nothing unless attar_verify has just read so many tokens. */
size_t attar_accept(attar *model, const uint32_t *tokens, size_t count);
#endif

/* Forgets all tokens from `position` on. */
void attar_rewind(attar *model, uint32_t position);

/* The logits of the last token of each sequence, ATTAR_VOCABULARY numbers in steps of ATTAR_LOGITS_STEP, one sequence behind the other; none before
   the first, and behind attar_rewind. */
const int16_t *attar_logits(const attar *model);

/* The token of a sequence's largest logit, the first of equals; ATTAR_VOCABULARY where there are none. */
uint32_t attar_best_of(const attar *model, size_t sequence);

/* That of the first sequence. */
uint32_t attar_best(const attar *model);
#endif

#ifdef ATTAR_TEXTS
/* The bytes of a token's text, and how many: a text is those of its tokens. They are read only. */
const char *attar_text(uint32_t token, size_t *count);
#endif

#ifdef __cplusplus
}
#endif

#endif
