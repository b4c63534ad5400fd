/* Loads a compiled model and runs its plans. */
#include "attar_model.h"

extern const attar_plan attar_plans[ATTAR_PLANS];

static const uint8_t magic[ATTAR_HEADER] = ATTAR_WEIGHTS_HEADER;

static attar_status refused(attar *model, attar_status status, size_t wanted, size_t found)
{
    model->wanted = wanted;
    model->found = found;
    return status;
}

attar_status attar_init(attar *model, void *sram, size_t sram_bytes, void *dram, size_t dram_bytes, const void *weights)
{
    attar_run *run = &model->run;
    if (sram_bytes < ATTAR_SRAM_BYTES)
        return refused(model, ATTAR_SRAM_TOO_SMALL, ATTAR_SRAM_BYTES, sram_bytes);
    if (dram_bytes < ATTAR_DRAM_BYTES)
        return refused(model, ATTAR_DRAM_TOO_SMALL, ATTAR_DRAM_BYTES, dram_bytes);
    if ((uintptr_t)sram % ATTAR_ALIGN != 0 || (uintptr_t)dram % ATTAR_ALIGN != 0 || (uintptr_t)weights % ATTAR_ALIGN != 0)
        return refused(model, ATTAR_MISALIGNED, ATTAR_ALIGN, 0);
    for (size_t at = 0; at < ATTAR_HEADER; at++)
        if (((const uint8_t *)weights)[at] != magic[at])
            return refused(model, ATTAR_OTHER_WEIGHTS, magic[at], ((const uint8_t *)weights)[at]);
    run->memories[ATTAR_SRAM] = sram;
    run->memories[ATTAR_DRAM] = dram;
    run->memories[ATTAR_WEIGHTS] = (uint8_t *)(uintptr_t)weights; /* never written */
    run->rings = model->rings;
    run->slots = model->slots;
    run->stored = model->stored;
    run->codes = model->codes;
    run->last_store = 0;
    for (unsigned queue = 0; queue < ATTAR_QUEUES; queue++)
        run->moved[queue] = 0;
    model->logits = 0;
    model->position = 0;
    model->verified = 0;
    return ATTAR_OK;
}

#if !ATTAR_ENCODER
/* The plan of most tokens, of which the last run computes logits. */
static const attar_plan *plan_for(const attar *model, size_t left)
{
    const attar_plan *best = 0;
    for (uint32_t at = 0; at < ATTAR_PLANS; at++) {
        const attar_plan *plan = &attar_plans[at];
        if (plan->rows > left || plan->past < model->position || (plan->rows == left && plan->logits == 0))
            continue;
        if (best == 0 || plan->rows > best->rows)
            best = plan;
    }
    return best;
}

#endif

#if ATTAR_POSITION_EMBEDDING || ATTAR_TOKEN_TYPE_EMBEDDING
static void add_row(attar_i16 *to, const attar_i16 *row)
{
    for (uint32_t at = 0; at < ATTAR_WIDTH; at++) {
        int32_t sum = to[at] + row[at];
        to[at] = (int16_t)(sum > INT16_MAX ? INT16_MAX : sum < INT16_MIN ? INT16_MIN : sum);
    }
}
#endif

/* A row of a table of first values. */
static const attar_i16 *row_of(const attar *model, size_t table, size_t row)
{
    return (const attar_i16 *)(model->run.memories[ATTAR_WEIGHTS] + table) + row * ATTAR_WIDTH;
}

/* The first values of `count` tokens of each sequence, which lie side by side; the plan's other rows hold the first ones again, and nothing reads what
   they make. */
static void put_tokens(attar *model, const attar_plan *plan, const uint32_t *tokens, const uint8_t *types, uint32_t count)
{
    attar_i16 *input = (attar_i16 *)(model->run.memories[ATTAR_DRAM] + plan->tensors[plan->input].offset);
    for (uint32_t row = 0; row < plan->rows * ATTAR_BATCH; row++, input += ATTAR_WIDTH) {
        uint32_t of = row < count * ATTAR_BATCH ? row : row % ATTAR_BATCH;
        const attar_i16 *values = row_of(model, ATTAR_EMBEDDING, tokens[of]);
        for (uint32_t at = 0; at < ATTAR_WIDTH; at++)
            input[at] = values[at];
#if ATTAR_POSITION_EMBEDDING
        add_row(input, row_of(model, ATTAR_POSITION_EMBEDDING, model->position + of / ATTAR_BATCH));
#endif
#if ATTAR_TOKEN_TYPE_EMBEDDING
        add_row(input, row_of(model, ATTAR_TOKEN_TYPE_EMBEDDING, types == 0 ? 0 : types[of]));
#else
        (void)types;
#endif
    }
}

#if ATTAR_ENCODER
attar_status attar_encode(attar *model, const uint32_t *tokens, const uint8_t *types, size_t count)
{
    if (count == 0)
        return refused(model, ATTAR_NO_PLAN, 0, 0);
    if (count > ATTAR_POSITIONS)
        return refused(model, ATTAR_NO_ROOM, ATTAR_POSITIONS, count);
    for (size_t at = 0; at < count; at++) {
        if (tokens[at] >= ATTAR_VOCABULARY)
            return refused(model, ATTAR_NO_TOKEN, ATTAR_VOCABULARY, tokens[at]);
        if (types != 0 && types[at] >= (ATTAR_TOKEN_TYPES == 0 ? 1 : ATTAR_TOKEN_TYPES))
            return refused(model, ATTAR_NO_TOKEN, ATTAR_TOKEN_TYPES, types[at]);
    }
    model->position = 0;
    put_tokens(model, &attar_plans[0], tokens, types, (uint32_t)count);
    attar_run_plan(&model->run, &attar_plans[0], (uint32_t)count);
    model->position = (uint32_t)count;
    return ATTAR_OK;
}

const int16_t *attar_row(const attar *model, size_t row)
{
    const attar_plan *plan = &attar_plans[0];
    return (const int16_t *)(model->run.memories[ATTAR_DRAM] + plan->tensors[plan->output].offset) + row * ATTAR_WIDTH;
}

#if ATTAR_POOLING
void attar_pooled(const attar *model, int32_t *embedding)
{
    for (uint32_t at = 0; at < ATTAR_WIDTH; at++)
        embedding[at] = 0;
    for (uint32_t row = 0; row < (ATTAR_POOLING == 2 ? 1 : model->position); row++) {
        const attar_i16 *values = (const attar_i16 *)attar_row(model, row);
        for (uint32_t at = 0; at < ATTAR_WIDTH; at++)
            embedding[at] += values[at];
    }
}
#endif
#else
static void run_tokens(attar *model, const attar_plan *plan, const uint32_t *tokens, uint32_t count)
{
    put_tokens(model, plan, tokens, 0, count);
    attar_run_plan(&model->run, plan, model->position);
    model->position += count;
    model->verified = 0;
    if (plan->logits > 0) {
        uint32_t row = plan->logits < plan->rows ? 0 : (count - 1) * ATTAR_BATCH;
        model->logits = (const int16_t *)(model->run.memories[ATTAR_DRAM] + plan->tensors[plan->output].offset) + (size_t)row * ATTAR_VOCABULARY;
    }
}

static attar_status check_tokens(attar *model, const uint32_t *tokens, size_t count)
{
    if (count > ATTAR_POSITIONS - model->position)
        return refused(model, ATTAR_NO_ROOM, ATTAR_POSITIONS - model->position, count);
    for (size_t at = 0; at < count * ATTAR_BATCH; at++)
        if (tokens[at] >= ATTAR_VOCABULARY)
            return refused(model, ATTAR_NO_TOKEN, ATTAR_VOCABULARY, tokens[at]);
    return ATTAR_OK;
}

static uint32_t largest(const attar_i16 *logits)
{
    uint32_t best = 0;
    for (uint32_t at = 1; at < ATTAR_VOCABULARY; at++)
        if (logits[at] > logits[best])
            best = at;
    return best;
}

attar_status attar_prefill(attar *model, const uint32_t *tokens, size_t count)
{
    attar_status status = check_tokens(model, tokens, count);
    if (status != ATTAR_OK)
        return status;
    while (count > 0) {
        const attar_plan *plan = plan_for(model, count);
        if (plan == 0)
            return refused(model, ATTAR_NO_PLAN, model->position, count);
        run_tokens(model, plan, tokens, plan->rows);
        tokens += plan->rows * ATTAR_BATCH;
        count -= plan->rows;
    }
    return ATTAR_OK;
}

#if ATTAR_BATCH == 1
attar_status attar_decode(attar *model, uint32_t token)
{
    return attar_prefill(model, &token, 1);
}
#endif

#if ATTAR_VERIFY
/* The plan with the logits of each of its tokens. */
static const attar_plan *verifying(void)
{
    for (uint32_t at = 0; at < ATTAR_PLANS; at++)
        if (attar_plans[at].rows == ATTAR_VERIFY && attar_plans[at].logits == ATTAR_VERIFY)
            return &attar_plans[at];
    return 0;
}

attar_status attar_verify(attar *model, const uint32_t *tokens, size_t count)
{
    const attar_plan *plan = verifying();
    attar_status status = check_tokens(model, tokens, count);
    if (status != ATTAR_OK)
        return status;
    if (plan == 0 || count == 0 || count > ATTAR_VERIFY)
        return refused(model, ATTAR_NO_PLAN, model->position, count);
    if (plan->past < model->position)
        return refused(model, ATTAR_NO_ROOM, ATTAR_POSITIONS - model->position, ATTAR_VERIFY);
    run_tokens(model, plan, tokens, (uint32_t)count);
    model->verified = (uint32_t)count;
    return ATTAR_OK;
}

const int16_t *attar_logits_of(const attar *model, size_t row)
{
    const attar_plan *plan = verifying();
    return (const int16_t *)(model->run.memories[ATTAR_DRAM] + plan->tensors[plan->output].offset) + row * ATTAR_VOCABULARY;
}

size_t attar_accept(attar *model, const uint32_t *tokens, size_t count)
{
    size_t good = 0;
    if (count == 0 || count != model->verified)
        return 0;
    while (good + 1 < count && largest((const attar_i16 *)attar_logits_of(model, good)) == tokens[good + 1])
        good++;
    model->position -= (uint32_t)(count - 1 - good);
    model->logits = attar_logits_of(model, good);
    model->verified = 0;
    return good;
}
#endif

void attar_rewind(attar *model, uint32_t position)
{
    if (position >= model->position)
        return;
    model->position = position;
    model->logits = 0;
    model->verified = 0;
}

const int16_t *attar_logits(const attar *model)
{
    return model->logits;
}

uint32_t attar_best_of(const attar *model, size_t sequence)
{
    return model->logits == 0 ? ATTAR_VOCABULARY : largest((const attar_i16 *)model->logits + sequence * ATTAR_VOCABULARY);
}

uint32_t attar_best(const attar *model)
{
    return attar_best_of(model, 0);
}
#endif
