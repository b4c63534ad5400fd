/* The integer arithmetic of plans, and the buffers that they work in. */
#include "attar_runtime.h"

/* Vector kernels where the compiler may use them; ATTAR_PLAIN leaves them out. Results are the same. */
#if defined(__AVX2__) && !defined(ATTAR_PLAIN)
#define ATTAR_AVX2
#include <immintrin.h>
#endif

enum {
    RUN = 32,          /* keys that softmax takes at a time */
    LOGIT_BITS = 8,    /* fractional bits of logits in base 2 */
    GATE_FRACTION = 6, /* bits of a gate code between two entries of its table */
    ROTARY_BITS = 14,  /* fractional bits of cosines and sines */
    COLUMN_BYTES = 10, /* multiplier, bias, shift, shift of the residual */
    LARGEST_LOGIT = 1 << 22,
    NO_KEY = INT32_MIN
};

static uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }
static uint32_t most(uint32_t a, uint32_t b) { return a < b ? b : a; }

/* Loops. */

attar_loop attar_tiles(uint32_t from, uint32_t to, uint32_t tile, uint32_t first, uint32_t end)
{
    attar_loop loop = {most(first, from / tile), 0, 0, least(end, (to + tile - 1) / tile), tile, to};
    loop.index--;
    return loop;
}

int attar_next(attar_loop *loop)
{
    loop->index++;
    if ((int32_t)(loop->end - loop->index) <= 0)
        return 0;
    loop->start = loop->index * loop->tile;
    loop->length = least(loop->tile, loop->to - loop->start);
    return 1;
}

uint32_t attar_first_key(uint32_t before, uint32_t window)
{
    return window != 0 && before + 1 > window ? before + 1 - window : 0;
}

/* Buffers. */

static size_t bytes_of(size_t numbers, uint16_t bits, uint16_t per)
{
    return (size_t)(((uint64_t)numbers * bits + 8u * per - 1) / (8u * per));
}

static int contains(const attar_box *outer, const attar_box *inner)
{
    return outer->row <= inner->row && inner->row + inner->rows <= outer->row + outer->rows && outer->column <= inner->column
           && inner->column + inner->columns <= outer->column + outer->columns;
}

static attar_slot *slot_of(attar_run *run, uint32_t buffer, const attar_box *box)
{
    attar_ring *ring = &run->rings[buffer];
    for (uint32_t at = ring->held; at-- > 0;)
        if (contains(&ring->slots[at].box, box))
            return &ring->slots[at];
    return &ring->slots[0]; /* a proven plan does not come here */
}

static void forget(attar_ring *ring, uint32_t at)
{
    ring->held--;
    for (; at < ring->held; at++)
        ring->slots[at] = ring->slots[at + 1];
}

/* The next slot of a buffer, once it is stored. */
static attar_slot *next_slot(attar_run *run, uint32_t buffer, const attar_box *box)
{
    const attar_buffer *is = &run->call->body->buffers[buffer];
    attar_ring *ring = &run->rings[buffer];
    uint32_t index = 0, start = ring->filled;
    if (is->slots > 0) {
        index = ring->given % is->slots;
        start = index * (is->bytes / is->slots);
        if (ring->stored[index] != 0)
            attar_port_wait(ATTAR_STORES, ring->stored[index]);
        ring->stored[index] = 0;
    }
    ring->given++;
    attar_slot *slot = &ring->slots[ring->held++];
    slot->box = *box;
    slot->place = run->memories[ATTAR_SRAM] + run->call->offsets[buffer] + start;
    slot->index = index;
    slot->ticket = 0;
    slot->loaded = 0;
    return slot;
}

static uint32_t row_of(const attar_run *run, const attar_operand *operand)
{
    return operand->position ? run->past * operand->position : operand->row;
}

/* Bytes of a row of an operand that is stored by rows. */
static size_t width_of(const attar_operand *operand, const attar_tensor *tensor)
{
    return bytes_of((size_t)tensor->columns * operand->beside, tensor->bits, tensor->per);
}

/* The first byte of a box of an operand in memory. */
static uint8_t *place_of(const attar_run *run, const attar_operand *operand, const attar_box *box)
{
    const attar_tensor *tensor = &run->plan->tensors[operand->tensor];
    uint8_t *base = run->memories[tensor->memory] + tensor->offset;
    uint32_t row = row_of(run, operand) + box->row;
    if (tensor->tile_rows == 0)
        return base + row * width_of(operand, tensor) + bytes_of(box->column, tensor->bits, tensor->per);
    uint32_t height = tensor->tile_rows, width = tensor->tile_columns;
    uint32_t full = tensor->rows / height, rest = tensor->rows % height;
    size_t across = full * bytes_of((size_t)height * width, tensor->bits, tensor->per) + bytes_of((size_t)rest * width, tensor->bits, tensor->per);
    return base + box->column / width * across + row / height * bytes_of((size_t)height * box->columns, tensor->bits, tensor->per);
}

void attar_load(attar_run *run, uint32_t buffer, uint32_t index, attar_box box)
{
    const attar_operand *operand = &run->call->operands[index];
    const attar_tensor *tensor = &run->plan->tensors[operand->tensor];
    attar_slot *slot = next_slot(run, buffer, &box);
    attar_transfer transfer = {slot->place, place_of(run, operand, &box), 0, 1, 0, 0};
    size_t held;
    if (tensor->tile_rows != 0) {
        transfer.bytes = held = bytes_of((size_t)box.rows * box.columns, tensor->bits, tensor->per);
    } else {
        transfer.bytes = transfer.to_stride = bytes_of(box.columns, tensor->bits, tensor->per);
        transfer.from_stride = width_of(operand, tensor);
        transfer.rows = box.rows;
        held = transfer.bytes * box.rows;
    }
    if (run->call->body->buffers[buffer].slots == 0)
        run->rings[buffer].filled += (uint32_t)((held + run->plan->align - 1) / run->plan->align * run->plan->align);
    slot->queue = tensor->memory == ATTAR_WEIGHTS ? ATTAR_WEIGHT_LOADS : ATTAR_LOADS;
    slot->loaded = 1;
    slot->ticket = attar_port_start(slot->queue, &transfer);
    run->moved[slot->queue] += held;
}

void attar_wait(attar_run *run, uint32_t buffer, attar_box box)
{
    attar_slot *slot = slot_of(run, buffer, &box);
    if (slot->loaded)
        attar_port_wait(slot->queue, slot->ticket);
}

void attar_release(attar_run *run, uint32_t buffer)
{
    attar_ring *ring = &run->rings[buffer];
    if (run->call->body->buffers[buffer].slots == 0)
        ring->held = ring->filled = 0;
    else
        forget(ring, 0);
}

void attar_open(attar_run *run, uint32_t buffer, attar_box box)
{
    attar_ring *ring = &run->rings[buffer];
    const attar_buffer *is = &run->call->body->buffers[buffer];
    uint32_t index = is->slots > 0 ? ring->given % is->slots : 0;
    for (uint32_t at = ring->held; at-- > 0;)
        if (ring->slots[at].index == index)
            forget(ring, at);
    next_slot(run, buffer, &box);
}

void attar_store(attar_run *run, uint32_t buffer, attar_box box, const attar_part *parts, uint32_t count)
{
    attar_view view = attar_held(run, buffer, box);
    size_t bytes = view.bits / 8u;
    for (uint32_t at = 0; at < count; at++) {
        uint32_t end = box.column + box.columns;
        uint32_t from = most(box.column, parts[at].first), to = at + 1 < count ? least(end, parts[at + 1].first) : end;
        if (from >= to)
            continue;
        const attar_operand *operand = &run->call->operands[parts[at].operand];
        const attar_tensor *tensor = &run->plan->tensors[operand->tensor];
        attar_box part = {box.row, box.rows, from - parts[at].first, to - from};
        attar_transfer transfer = {place_of(run, operand, &part), view.at + (from - box.column) * bytes, (to - from) * bytes, box.rows,
                                   width_of(operand, tensor), view.stride};
        run->last_store = attar_port_start(ATTAR_STORES, &transfer);
        run->moved[ATTAR_STORES] += (uint64_t)transfer.bytes * box.rows;
    }
    attar_ring *ring = &run->rings[buffer];
    attar_slot *slot = slot_of(run, buffer, &box);
    ring->stored[slot->index] = run->last_store;
    if (slot->loaded)
        forget(ring, (uint32_t)(slot - ring->slots));
}

attar_view attar_held(attar_run *run, uint32_t buffer, attar_box box)
{
    const attar_buffer *is = &run->call->body->buffers[buffer];
    const attar_slot *slot = slot_of(run, buffer, &box);
    uint16_t bits = is->per == 1 ? is->bits : 0;
    size_t bytes = bits / 8u, stride = slot->box.columns * bytes;
    attar_view view = {slot->place + (box.row - slot->box.row) * stride + (box.column - slot->box.column) * bytes, stride, box, bits};
    return view;
}

attar_view attar_kept(attar_run *run, uint32_t index, attar_box box)
{
    const attar_operand *operand = &run->call->operands[index];
    const attar_tensor *tensor = &run->plan->tensors[operand->tensor];
    attar_view view = {place_of(run, operand, &box), width_of(operand, tensor), box, tensor->bits};
    return view;
}

void attar_run_plan(attar_run *run, const attar_plan *plan, uint32_t past)
{
    run->plan = plan;
    run->past = past;
    for (uint32_t at = 0; at < plan->count; at++) {
        const attar_call *call = &plan->calls[at];
        uint32_t slots = 0;
        run->call = call;
        for (uint32_t buffer = 0; buffer < call->body->count; buffer++) {
            const attar_buffer *is = &call->body->buffers[buffer];
            attar_ring ring = {run->slots + slots, run->stored + slots, 0, 0, 0};
            run->rings[buffer] = ring;
            for (uint32_t slot = 0; slot < most(is->slots, 1); slot++)
                ring.stored[slot] = 0;
            slots += most(is->held, most(is->slots, 1));
        }
        call->body->code(run);
        /* What follows reads what was stored. */
        if (run->last_store != 0)
            attar_port_wait(ATTAR_STORES, run->last_store);
    }
}

/* Arithmetic. */

static int32_t saturate(int64_t x, uint32_t bits)
{
    int64_t top = ((int64_t)1 << (bits - 1)) - 1;
    return (int32_t)(x > top ? top : x < -top - 1 ? -top - 1 : x);
}

static int64_t rescale(int32_t x, attar_rescale by)
{
    return ((int64_t)x * by.multiplier + ((int64_t)1 << (by.shift - 1))) >> by.shift;
}

static int32_t shift_down(int32_t x, uint32_t shift)
{
    return shift == 0 ? x : (int32_t)(((int64_t)x + ((int64_t)1 << (shift - 1))) >> shift);
}

static int32_t get(const uint8_t *at, uint16_t bits)
{
    return bits == 8 ? (int8_t)*at : bits == 16 ? *(const attar_i16 *)at : *(const attar_i32 *)at;
}

static void put(uint8_t *at, uint16_t bits, int32_t x)
{
    if (bits == 8)
        *at = (uint8_t)x;
    else if (bits == 16)
        *(attar_i16 *)at = (int16_t)x;
    else
        *(attar_i32 *)at = x;
}

/* The codes of a row of weights, `first` bits into a tile. */
static void unpack(int8_t *restrict to, const uint8_t *restrict tile, size_t first, uint32_t bits, uint32_t count)
{
    if (bits == 8) {
        for (uint32_t at = 0; at < count; at++)
            to[at] = (int8_t)tile[first / 8 + at];
        return;
    }
    if (bits == 4 && first % 8 == 0) {
        const uint8_t *from = tile + first / 8;
#ifdef ATTAR_AVX2
        for (; count >= 32; count -= 32, from += 16, to += 32) {
            __m128i both = _mm_loadu_si128((const __m128i *)from), mask = _mm_set1_epi8(15), sign = _mm_set1_epi8(8);
            __m128i low = _mm_sub_epi8(_mm_xor_si128(_mm_and_si128(both, mask), sign), sign);
            __m128i high = _mm_sub_epi8(_mm_xor_si128(_mm_and_si128(_mm_srli_epi16(both, 4), mask), sign), sign);
            _mm_storeu_si128((__m128i *)to, _mm_unpacklo_epi8(low, high));
            _mm_storeu_si128((__m128i *)(to + 16), _mm_unpackhi_epi8(low, high));
        }
#endif
        for (uint32_t at = 0; at < count / 2; at++) {
            to[2 * at] = (int8_t)((from[at] & 15) ^ 8) - 8;
            to[2 * at + 1] = (int8_t)(from[at] >> 4 ^ 8) - 8;
        }
        if (count % 2 != 0)
            to[count - 1] = (int8_t)((from[count / 2] & 15) ^ 8) - 8;
        return;
    }
    int32_t sign = 1 << (bits - 1);
    for (uint32_t at = 0; at < count; at++, first += bits) {
        uint32_t two = tile[first / 8];
        if (first % 8 + bits > 8)
            two |= (uint32_t)tile[first / 8 + 1] << 8;
        to[at] = (int8_t)((int32_t)((two >> first % 8 & ((1u << bits) - 1)) ^ (uint32_t)sign) - sign);
    }
}

#ifdef ATTAR_AVX2
/* Sums of the products of 32 pairs, in eight parts. */
static inline __m256i products(const int8_t *a, const int8_t *b)
{
    const __m128i *x = (const __m128i *)a, *w = (const __m128i *)b;
    __m256i low = _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(x)), _mm256_cvtepi8_epi16(_mm_loadu_si128(w)));
    __m256i high = _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(x + 1)), _mm256_cvtepi8_epi16(_mm_loadu_si128(w + 1)));
    return _mm256_add_epi32(low, high);
}

static inline int32_t all_of(__m256i parts)
{
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(parts), _mm256_extracti128_si256(parts, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
#endif

static int32_t dot(const int8_t *restrict a, const int8_t *restrict b, uint32_t count)
{
    int32_t sum = 0;
#ifdef ATTAR_AVX2
    __m256i parts = _mm256_setzero_si256();
    for (; count >= 32; count -= 32, a += 32, b += 32)
        parts = _mm256_add_epi32(parts, products(a, b));
    sum = all_of(parts);
#endif
    for (uint32_t at = 0; at < count; at++)
        sum += (int32_t)a[at] * b[at];
    return sum;
}

/* The product with one row of codes, of which each `group` has a scale. */
static int32_t scaled_dot(const int8_t *restrict a, const int8_t *restrict b, const int8_t *scales, uint32_t count, uint32_t group)
{
    int32_t sum = 0;
#ifdef ATTAR_AVX2
    if (group % 32 == 0 && count % group == 0) {
        __m256i parts = _mm256_setzero_si256();
        for (uint32_t at = 0; at < count; scales++) {
            __m256i part = products(a + at, b + at);
            for (at += 32; at % group != 0; at += 32)
                part = _mm256_add_epi32(part, products(a + at, b + at));
            parts = _mm256_add_epi32(parts, _mm256_mullo_epi32(part, _mm256_set1_epi32(*scales)));
        }
        return all_of(parts);
    }
#endif
    for (uint32_t at = 0; at < count; at += group)
        sum += dot(a + at, b + at, least(group, count - at)) * *scales++;
    return sum;
}

/* The same with int16: products of 256 pairs fit in 32 bits. */
static int64_t wide_dot(const attar_i16 *a, const int8_t *b, uint32_t count)
{
    int64_t sum = 0;
    while (count > 0) {
        uint32_t some = least(count, 256);
        int32_t part = 0;
        for (uint32_t at = 0; at < some; at++)
            part += (int32_t)a[at] * b[at];
        sum += part;
        a += some;
        b += some;
        count -= some;
    }
    return sum;
}

static int64_t wide_scaled_dot(const attar_i16 *a, const int8_t *b, const int8_t *scales, uint32_t count, uint32_t group)
{
    int64_t sum = 0;
    for (uint32_t at = 0; at < count; at += group)
        sum += wide_dot(a + at, b + at, least(group, count - at)) * *scales++;
    return sum;
}

void attar_multiply(attar_run *run, attar_view x, uint32_t weights, attar_box box, attar_view sums, int first)
{
    const attar_buffer *is = &run->call->body->buffers[weights];
    const uint8_t *tile = slot_of(run, weights, &box)->place;
    uint32_t depth = box.columns, group = is->per;
    uint32_t bits = group == 1 ? is->bits : (is->bits - 8u) / group, groups = (depth + group - 1) / group;
    const int8_t *scales = (const int8_t *)tile + ((size_t)box.rows * depth * bits + 7) / 8;
    for (uint32_t j = 0; j < box.rows; j++) {
        const int8_t *codes = run->codes;
        if (bits == 8)
            codes = (const int8_t *)tile + (size_t)j * depth;
        else
            unpack(run->codes, tile, (size_t)j * depth * bits, bits, depth);
        for (uint32_t i = 0; i < x.box.rows; i++) {
            if (x.bits == 16) {
                attar_i64 *sum = (attar_i64 *)(sums.at + i * sums.stride) + j;
                const attar_i16 *row = (const attar_i16 *)(x.at + i * x.stride);
                int64_t found = group == 1 ? wide_dot(row, codes, depth) : wide_scaled_dot(row, codes, scales + (size_t)j * groups, depth, group);
                *sum = first ? found : *sum + found;
                continue;
            }
            const int8_t *row = (const int8_t *)(x.at + i * x.stride);
            attar_i32 *sum = (attar_i32 *)(sums.at + i * sums.stride) + j;
            int32_t found = group == 1 ? dot(row, codes, depth) : scaled_dot(row, codes, scales + (size_t)j * groups, depth, group);
            *sum = first ? found : *sum + found;
        }
    }
}

typedef struct {
    attar_rescale rescale;
    int32_t bias;
    uint32_t coarser;
} column;

static int32_t word(const uint8_t *at)
{
    return (int32_t)((uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24);
}

static column column_of(attar_view columns, uint32_t at)
{
    const uint8_t *bytes = columns.at + (size_t)at * COLUMN_BYTES;
    column found = {{word(bytes), bytes[8]}, word(bytes + 4), bytes[9]};
    return found;
}

static int64_t rescaled(attar_view sums, uint32_t narrow, uint32_t row, uint32_t at, const column *by)
{
    const uint8_t *place = sums.at + row * sums.stride;
    int64_t sum = sums.bits == 64 ? ((const attar_i64 *)place)[at] : ((const attar_i32 *)place)[at];
    if (narrow > 0)
        sum = saturate((sum + ((int64_t)1 << (narrow - 1))) >> narrow, 32);
    return rescale(saturate(sum + by->bias, 32), by->rescale);
}

void attar_finish_rescale(attar_view sums, uint32_t narrow, attar_view columns, attar_view out)
{
    for (uint32_t at = 0; at < out.box.columns; at++) {
        column by = column_of(columns, at);
        for (uint32_t row = 0; row < out.box.rows; row++)
            put(out.at + row * out.stride + at * (out.bits / 8u), out.bits, saturate(rescaled(sums, narrow, row, at, &by), out.bits));
    }
}

void attar_finish_add(attar_view sums, uint32_t narrow, attar_view columns, attar_view residual, attar_view out)
{
    for (uint32_t at = 0; at < out.box.columns; at++) {
        column by = column_of(columns, at);
        for (uint32_t row = 0; row < out.box.rows; row++) {
            int32_t carried = shift_down(get(residual.at + row * residual.stride + at * (residual.bits / 8u), residual.bits), by.coarser);
            put(out.at + row * out.stride + at * (out.bits / 8u), out.bits, saturate(rescaled(sums, narrow, row, at, &by) + carried, out.bits));
        }
    }
}

static int32_t turned(int32_t a, int32_t b, int32_t c, int32_t d)
{
    return (int32_t)(((int64_t)a * b + (int64_t)c * d + (1 << (ROTARY_BITS - 1))) >> ROTARY_BITS);
}

/* An entry of a table, between two neighbours. */
static int32_t looked_up(const int16_t *table, int32_t code)
{
    int32_t place = code + (1 << 15), part = place & ((1 << GATE_FRACTION) - 1);
    const int16_t *entry = table + (place >> GATE_FRACTION);
    return entry[0] + (((entry[1] - entry[0]) * part + (1 << (GATE_FRACTION - 1))) >> GATE_FRACTION);
}

void attar_finish_activated(attar_view sums, uint32_t narrow, attar_view columns, attar_view out, const attar_constant *constant)
{
    for (uint32_t at = 0; at < out.box.columns; at++) {
        column by = column_of(columns, at);
        for (uint32_t row = 0; row < out.box.rows; row++) {
            int32_t activated = looked_up(constant->gate, saturate(rescaled(sums, narrow, row, at, &by), 16));
            put(out.at + row * out.stride + at * (out.bits / 8u), out.bits, saturate(rescale(activated, constant->rescale), out.bits));
        }
    }
}

void attar_finish_gated(attar_view sums, uint32_t narrow, attar_view columns, attar_view out, const attar_constant *constant)
{
    for (uint32_t at = 0; at < out.box.columns; at++) {
        column gate = column_of(columns, 2 * at), up = column_of(columns, 2 * at + 1);
        for (uint32_t row = 0; row < out.box.rows; row++) {
            int32_t gated = looked_up(constant->gate, saturate(rescaled(sums, narrow, row, 2 * at, &gate), 16));
            int32_t product = gated * saturate(rescaled(sums, narrow, row, 2 * at + 1, &up), 16);
            put(out.at + row * out.stride + at * (out.bits / 8u), out.bits, saturate(rescale(product, constant->rescale), out.bits));
        }
    }
}

/* 2^(2 shift) / x, of 61 bits at most, by long division. */
static uint64_t divided(uint32_t shift, uint64_t x)
{
    uint64_t quotient = 0, rest = 0;
    for (uint32_t bit = 2 * shift + 1; bit-- > 0;) {
        uint64_t high = rest >> 63;
        rest = rest << 1 | (bit == 2 * shift);
        quotient <<= 1;
        if (high != 0 || rest >= x) {
            rest -= x;
            quotient |= 1;
        }
    }
    return quotient;
}

static uint32_t root(uint64_t x)
{
    uint64_t found = 0;
    for (uint64_t bit = (uint64_t)1 << 62; bit != 0; bit >>= 2) {
        if (x >= found + bit) {
            x -= found + bit;
            found = (found >> 1) + bit;
        } else {
            found >>= 1;
        }
    }
    return (uint32_t)found;
}

static uint32_t length(uint64_t x)
{
    uint32_t bits = 0;
    for (; x != 0; x >>= 1)
        bits++;
    return bits;
}

/* (a * b + 2^(shift - 1)) >> shift, where a has 54 bits, b 31, and the shift is 22 at least. */
static int64_t shifted_product(int64_t a, uint32_t b, uint32_t shift)
{
    uint64_t low = (uint64_t)(a & 0xffffffff) * b;
    int64_t high = (a >> 32) * (int64_t)b + (int64_t)(low >> 32);
    low &= 0xffffffff;
    if (shift > 32)
        return shift > 94 ? 0 : (high + ((int64_t)1 << (shift - 33))) >> (shift - 32);
    return high * ((int64_t)1 << (32 - shift)) + (int64_t)((low + ((uint64_t)1 << (shift - 1))) >> shift);
}

/* What a number is in the least step of its row; the low bits of a gain are an exponent. */
static int64_t widened(int32_t x, int32_t gain)
{
    return (int64_t)x * ((int64_t)1 << least(gain & 15, 10));
}

static uint64_t with_square(uint64_t squares, int64_t wide)
{
    uint64_t square = (uint64_t)(wide * wide);
    return squares > UINT64_MAX - square ? UINT64_MAX : squares + square;
}

/* 1 / sqrt(squares): multiplier / 2^shift. */
typedef struct {
    uint32_t multiplier, shift;
} inverse_root;

static inverse_root inverse_root_of(uint64_t squares)
{
    squares = squares == 0 ? 1 : squares;
    uint32_t shift = (60 + length(squares) + 1) / 2;
    inverse_root found = {root(divided(shift, squares)), shift};
    return found;
}

static int32_t normed(int32_t x, int32_t gain, inverse_root by, uint32_t gain_shift, uint32_t bits)
{
    return saturate(shifted_product(widened(x, gain) * (gain >> 4), by.multiplier, by.shift + gain_shift), bits);
}

/* Divided by a positive number, rounded down. */
static int64_t floored(int64_t x, int64_t by)
{
    return x >= 0 ? x / by : -((-x + by - 1) / by);
}

/* The mean of a row in its least step, to the nearest integer. */
static int64_t mean_of(const attar_i16 *row, const attar_i32 *gain, uint32_t count)
{
    int64_t sum = 0;
    for (uint32_t at = 0; at < count; at++)
        sum += widened(row[at], gain[at]);
    return floored(2 * sum + count, 2 * (int64_t)count);
}

/* `residual` has no columns where there is none. */
static void norm_rows(attar_view x, attar_view gains, attar_view residual, attar_view out, const attar_constant *constant)
{
    uint32_t width = x.box.columns, bias_bits = constant->centered ? 8 : 0;
    const attar_i32 *gain = (const attar_i32 *)gains.at, *bias = (const attar_i32 *)(gains.at + gains.stride);
    const attar_i32 *shifts = (const attar_i32 *)(gains.at + (constant->centered ? 2 : 1) * gains.stride);
    for (uint32_t row = 0; row < x.box.rows; row++) {
        const attar_i16 *from = (const attar_i16 *)(x.at + row * x.stride);
        int64_t mean = constant->centered ? mean_of(from, gain, width) : 0;
        uint64_t squares = constant->epsilon;
        for (uint32_t at = 0; at < width; at++)
            squares = with_square(squares, widened(from[at], gain[at]) - mean);
        inverse_root by = inverse_root_of(squares);
        for (uint32_t at = 0; at < width; at++) {
            int64_t wide = widened(from[at], gain[at]) - mean;
            int64_t found = shifted_product(wide * (gain[at] >> 4), by.multiplier, by.shift + constant->gain_shift - bias_bits);
            if (constant->centered)
                found = (found + bias[at] + 128) >> 8;
            if (residual.box.columns != 0)
                found = saturate(found, 32) + (int64_t)shift_down(get(residual.at + row * residual.stride + 2 * at, 16), (uint32_t)shifts[at]);
            put(out.at + row * out.stride + at * (out.bits / 8u), out.bits, saturate(found, out.bits));
        }
    }
}

void attar_norm(attar_view x, attar_view gains, attar_view out, const attar_constant *constant)
{
    attar_view none = {0};
    norm_rows(x, gains, none, out, constant);
}

void attar_norm_add(attar_view x, attar_view gains, attar_view residual, attar_view out, const attar_constant *constant)
{
    norm_rows(x, gains, residual, out, constant);
}

/* A row of a head on its way from sums to int8. */
typedef struct {
    attar_view sums, columns;
    uint32_t narrow, row, first;
    const attar_head_norm *norm;
    inverse_root by;
} head_row;

static int32_t made(const head_row *of, uint32_t at)
{
    column by = column_of(of->columns, of->first + at);
    return saturate(rescaled(of->sums, of->narrow, of->row, of->first + at, &by), 16);
}

/* Finds what its numbers are multiplied by. */
static void find_root(head_row *of, uint32_t head)
{
    if (of->norm == 0)
        return;
    uint64_t squares = of->norm->epsilon;
    for (uint32_t at = 0; at < head; at++)
        squares = with_square(squares, widened(made(of, at), of->norm->gains[at]));
    of->by = inverse_root_of(squares);
}

static int32_t head_number(const head_row *of, uint32_t at)
{
    int32_t x = made(of, at);
    return of->norm == 0 ? x : normed(x, of->norm->gains[at], of->by, of->norm->gain_shift, 16);
}

static const attar_range *range_of(const attar_range *ranges, uint32_t at)
{
    while (at >= ranges->end)
        ranges++;
    return ranges;
}

void attar_finish_rotary(attar_view sums, uint32_t narrow, attar_view columns, attar_view table, attar_view out, uint32_t head, uint32_t rotated,
                         const attar_constant *constant)
{
    uint32_t half = head / 2;
    for (uint32_t first = 0; first < out.box.columns; first += head) {
        const attar_range *own = range_of(constant->ranges, out.box.column + first);
        for (uint32_t row = 0; row < out.box.rows; row++) {
            head_row of = {sums, columns, narrow, row, first, own->norm, {0, 0}};
            uint8_t *to = out.at + row * out.stride + first;
            find_root(&of, head);
            for (uint32_t at = 0; at < half; at++) {
                int32_t a = head_number(&of, at), b = head_number(&of, at + half);
                if (out.box.column + first < rotated) {
                    const attar_i16 *angles = (const attar_i16 *)(table.at + row * table.stride);
                    int32_t cosine = angles[at], sine = angles[half + at], before = a;
                    a = turned(before, cosine, -b, sine);
                    b = turned(b, cosine, before, sine);
                }
                put(to + at, 8, saturate(rescale(a, own->rescale), 8));
                put(to + at + half, 8, saturate(rescale(b, own->rescale), 8));
            }
        }
    }
}

/* 2^(-i / 256) in 15 fractional bits. */
static const uint16_t powers[256] = {
    32768, 32679, 32591, 32503, 32415, 32327, 32240, 32153, 32066, 31979, 31893, 31806, 31720, 31635, 31549, 31464,
    31379, 31294, 31209, 31125, 31041, 30957, 30873, 30790, 30706, 30623, 30541, 30458, 30376, 30293, 30212, 30130,
    30048, 29967, 29886, 29805, 29725, 29644, 29564, 29484, 29405, 29325, 29246, 29167, 29088, 29009, 28931, 28852,
    28774, 28697, 28619, 28542, 28464, 28388, 28311, 28234, 28158, 28082, 28006, 27930, 27855, 27779, 27704, 27629,
    27554, 27480, 27406, 27332, 27258, 27184, 27110, 27037, 26964, 26891, 26818, 26746, 26674, 26601, 26530, 26458,
    26386, 26315, 26244, 26173, 26102, 26031, 25961, 25891, 25821, 25751, 25681, 25612, 25543, 25474, 25405, 25336,
    25268, 25199, 25131, 25063, 24995, 24928, 24860, 24793, 24726, 24659, 24593, 24526, 24460, 24394, 24328, 24262,
    24196, 24131, 24066, 24001, 23936, 23871, 23806, 23742, 23678, 23614, 23550, 23486, 23423, 23359, 23296, 23233,
    23170, 23108, 23045, 22983, 22921, 22859, 22797, 22735, 22674, 22613, 22552, 22491, 22430, 22369, 22309, 22248,
    22188, 22128, 22068, 22009, 21949, 21890, 21831, 21772, 21713, 21654, 21595, 21537, 21479, 21421, 21363, 21305,
    21247, 21190, 21133, 21076, 21019, 20962, 20905, 20849, 20792, 20736, 20680, 20624, 20568, 20513, 20457, 20402,
    20347, 20292, 20237, 20182, 20127, 20073, 20019, 19965, 19911, 19857, 19803, 19750, 19696, 19643, 19590, 19537,
    19484, 19431, 19379, 19326, 19274, 19222, 19170, 19118, 19066, 19015, 18963, 18912, 18861, 18810, 18759, 18708,
    18658, 18607, 18557, 18507, 18457, 18407, 18357, 18308, 18258, 18209, 18160, 18110, 18061, 18013, 17964, 17915,
    17867, 17819, 17770, 17722, 17674, 17627, 17579, 17531, 17484, 17437, 17390, 17343, 17296, 17249, 17202, 17156,
    17109, 17063, 17017, 16971, 16925, 16879, 16834, 16788, 16743, 16697, 16652, 16607, 16562, 16518, 16473, 16428,
};

/* 2^(-distance / 256) in so many fractional bits, 15 at most. */
static int32_t weight_of(uint32_t distance, uint32_t bits)
{
    uint32_t whole = distance >> LOGIT_BITS, shift = whole + 15 - bits;
    if (whole >= bits + 2)
        return 0;
    return shift == 0 ? powers[distance & 255] : (powers[distance & 255] + (1 << (shift - 1))) >> shift;
}

/* One query row and one run of keys. */
static void attend_run(const int8_t *query, attar_view key, attar_view value, uint32_t first, uint32_t count, uint32_t from, uint32_t to,
                       uint32_t head, uint32_t bits, attar_rescale by, attar_i32 *sums, attar_i32 *state, int empty)
{
    int32_t logits[RUN], highest = NO_KEY;
    for (uint32_t at = 0; at < count; at++) {
        uint32_t position = key.box.row + first + at;
        logits[at] = NO_KEY;
        if (position < from || position >= to)
            continue;
        int64_t logit = rescale(dot(query, (const int8_t *)(key.at + (first + at) * key.stride), head), by);
        logits[at] = (int32_t)(logit > LARGEST_LOGIT ? LARGEST_LOGIT : logit < -LARGEST_LOGIT ? -LARGEST_LOGIT : logit);
        highest = logits[at] > highest ? logits[at] : highest;
    }
    if (highest == NO_KEY)
        return;
    int32_t wanted = (highest + (1 << LOGIT_BITS) - 1) >> LOGIT_BITS, shift = 0;
    if (!empty && wanted > state[0])
        shift = wanted - state[0] > 31 ? 31 : wanted - state[0];
    state[0] = empty || wanted > state[0] ? wanted : state[0];
    state[1] = shift_down(state[1], (uint32_t)shift);
    if (shift != 0)
        for (uint32_t at = 0; at < head; at++)
            sums[at] = shift_down(sums[at], (uint32_t)shift);
    for (uint32_t at = 0; at < count; at++) {
        int32_t weight = logits[at] == NO_KEY ? 0 : weight_of((uint32_t)(state[0] * (1 << LOGIT_BITS) - logits[at]), bits);
        const int8_t *values = (const int8_t *)(value.at + (first + at) * value.stride);
        if (weight == 0)
            continue;
        state[1] += weight;
        for (uint32_t column = 0; column < head; column++)
            sums[column] += weight * values[column];
    }
}

void attar_attend(attar_run *run, attar_view query, attar_view key, attar_view value, attar_view sums, attar_view softmax, uint32_t head,
                  uint32_t window, uint32_t bits, int first, const attar_constant *constant)
{
    uint32_t group = query.box.columns / head;
    for (uint32_t row = 0; row < query.box.rows; row++) {
        uint32_t before = run->past + query.box.row + row, from = attar_first_key(before, window);
        uint32_t to = window == ATTAR_PAST ? run->past : before + 1;
        for (uint32_t member = 0; member < group; member++) {
            attar_i32 *sum = (attar_i32 *)(sums.at + row * sums.stride) + member * head;
            attar_i32 *state = (attar_i32 *)(softmax.at + row * softmax.stride) + 2 * member;
            if (first) {
                state[0] = NO_KEY;
                state[1] = 0;
                for (uint32_t at = 0; at < head; at++)
                    sum[at] = 0;
            }
            for (uint32_t at = 0; at < key.box.rows; at += RUN)
                attend_run((const int8_t *)(query.at + row * query.stride) + member * head, key, value, at, least(RUN, key.box.rows - at),
                           from, to, head, bits, constant->rescale, sum, state, state[0] == NO_KEY);
        }
    }
}

void attar_attended(attar_view sums, attar_view softmax, attar_view out, uint32_t head, const attar_constant *constant)
{
    for (uint32_t row = 0; row < out.box.rows; row++)
        for (uint32_t at = 0; at < out.box.columns; at++) {
            int32_t sum = ((const attar_i32 *)(sums.at + row * sums.stride))[at];
            int32_t all = ((const attar_i32 *)(softmax.at + row * softmax.stride))[at / head * 2 + 1];
            int64_t scaled = (int64_t)sum * constant->rescale.multiplier, divisor = all > 1 ? all : 1;
            int64_t mean = floored((scaled >> (constant->rescale.shift - 1)) + divisor, 2 * divisor);
            put(out.at + row * out.stride + at * (out.bits / 8u), out.bits, saturate(mean, out.bits));
        }
}
