/* Runs compiled plans in integers: C99, freestanding, without allocation and without a library. */
#ifndef ATTAR_RUNTIME_H
#define ATTAR_RUNTIME_H

#include "attar_port.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "plans are for little-endian processors"
#endif

/* Numbers in an arena of bytes. */
#ifdef __GNUC__
typedef int16_t __attribute__((may_alias)) attar_i16;
typedef int32_t __attribute__((may_alias)) attar_i32;
typedef int64_t __attribute__((may_alias)) attar_i64;
#else
typedef int16_t attar_i16;
typedef int32_t attar_i32;
typedef int64_t attar_i64;
#endif

enum { ATTAR_SRAM, ATTAR_DRAM, ATTAR_WEIGHTS, ATTAR_MEMORIES };

/* A matrix: by rows, or in tiles of so many rows and columns, columns of tiles first. Its numbers take `bits` bits for every `per` along a row. */
typedef struct {
    size_t offset;
    uint32_t rows, columns, tile_rows, tile_columns;
    uint16_t bits, per;
    uint8_t memory;
} attar_tensor;

/* A tensor from a row on; with `position`, from the row of the run's first token, so many rows for each before it. `beside` of its rows are one
   of the operand, side by side. */
typedef struct {
    uint32_t tensor, row, position, beside;
} attar_operand;

/* On-chip bytes: `slots` equal slots, used in turn; with 0 slots boxes one after another. At most `held` boxes are held at once. */
typedef struct {
    uint32_t bytes, slots, held;
    uint16_t bits, per;
} attar_buffer;

/* x * multiplier / 2^shift, rounded half up. */
typedef struct {
    int32_t multiplier;
    uint8_t shift;
} attar_rescale;

/* The norm of a head, with the gains of its columns. */
typedef struct {
    uint64_t epsilon;
    uint32_t gain_shift;
    const int32_t *gains;
} attar_head_norm;

/* Heads up to the column `end`; `norm` is 0 where they have none. */
typedef struct {
    uint32_t end;
    attar_rescale rescale;
    const attar_head_norm *norm;
} attar_range;

/* A constant of a layer: which fields are used depends on what reads it. */
typedef struct {
    uint64_t epsilon;
    uint32_t gain_shift, centered;
    attar_rescale rescale;
    const attar_range *ranges;
    const int16_t *gate;
} attar_constant;

typedef struct attar_run attar_run;

typedef struct {
    void (*code)(attar_run *run);
    const attar_buffer *buffers;
    uint32_t count;
} attar_body;

typedef struct {
    const attar_body *body;
    const attar_operand *operands;
    const uint32_t *offsets;
    const attar_constant *constants;
} attar_call;

/* All calls for one run of so many tokens, behind `past` at most. */
typedef struct {
    const attar_call *calls;
    const attar_tensor *tensors;
    uint32_t count, rows, past, input, output, align, logits; /* tokens whose logits it computes: none, the last, or all */
} attar_plan;

/* Rows and columns of a tensor. */
typedef struct {
    uint32_t row, rows, column, columns;
} attar_box;

typedef struct {
    attar_box box;
    uint8_t *place;
    uint32_t index, ticket;
    uint8_t loaded, queue;
} attar_slot;

typedef struct {
    attar_slot *slots;
    uint32_t *stored;
    uint32_t held, given, filled;
} attar_ring;

/* A box in on-chip memory. */
typedef struct {
    uint8_t *at;
    size_t stride;
    attar_box box;
    uint16_t bits;
} attar_view;

struct attar_run {
    uint8_t *memories[ATTAR_MEMORIES];
    const attar_plan *plan;
    const attar_call *call;
    uint32_t past;
    attar_ring *rings;
    attar_slot *slots;
    uint32_t *stored;
    /* One row of weight codes. */
    int8_t *codes;
    uint32_t last_store;
    /* Bytes of each queue since the model was initialized. */
    uint64_t moved[ATTAR_QUEUES];
};

/* A walk over tiles. */
typedef struct {
    uint32_t index, start, length, end, tile, to;
} attar_loop;

attar_loop attar_tiles(uint32_t from, uint32_t to, uint32_t tile, uint32_t first, uint32_t end);
int attar_next(attar_loop *loop);

#define ATTAR_FOR(v, from, to, tile, first, end) for (attar_loop v = attar_tiles(from, to, tile, first, end); attar_next(&v);)

/* The first key that a row sees which has `before` keys before its own. */
uint32_t attar_first_key(uint32_t before, uint32_t window);

void attar_run_plan(attar_run *run, const attar_plan *plan, uint32_t past);

void attar_load(attar_run *run, uint32_t buffer, uint32_t operand, attar_box box);
void attar_wait(attar_run *run, uint32_t buffer, attar_box box);
void attar_release(attar_run *run, uint32_t buffer);
void attar_open(attar_run *run, uint32_t buffer, attar_box box);

/* An operand of a store, with its first column among those of all. */
typedef struct {
    uint32_t operand, first;
} attar_part;

void attar_store(attar_run *run, uint32_t buffer, attar_box box, const attar_part *parts, uint32_t count);

attar_view attar_held(attar_run *run, uint32_t buffer, attar_box box);
attar_view attar_kept(attar_run *run, uint32_t operand, attar_box box);

void attar_multiply(attar_run *run, attar_view x, uint32_t weights, attar_box box, attar_view sums, int first);
/* `sums` of 64 bits are shifted down by `narrow` before they are rescaled. */
void attar_finish_rescale(attar_view sums, uint32_t narrow, attar_view columns, attar_view out);
void attar_finish_add(attar_view sums, uint32_t narrow, attar_view columns, attar_view residual, attar_view out);
void attar_finish_rotary(attar_view sums, uint32_t narrow, attar_view columns, attar_view table, attar_view out, uint32_t head, uint32_t rotated,
                         const attar_constant *constant);
void attar_finish_gated(attar_view sums, uint32_t narrow, attar_view columns, attar_view out, const attar_constant *constant);
void attar_finish_activated(attar_view sums, uint32_t narrow, attar_view columns, attar_view out, const attar_constant *constant);
/* Of the centered rows, if the constant says so. */
void attar_norm(attar_view x, attar_view gains, attar_view out, const attar_constant *constant);
/* The same with a residual added. */
void attar_norm_add(attar_view x, attar_view gains, attar_view residual, attar_view out, const attar_constant *constant);
/* `past` keys are before those of the run's first row; a row sees `window` keys, all up to its own with 0, or with ATTAR_PAST those `past` and no
   others. Weights of keys have `bits` fractional bits. */
#define ATTAR_PAST UINT32_MAX
void attar_attend(attar_run *run, attar_view query, attar_view key, attar_view value, attar_view sums, attar_view softmax, uint32_t head,
                  uint32_t window, uint32_t bits, int first, const attar_constant *constant);
void attar_attended(attar_view sums, attar_view softmax, attar_view out, uint32_t head, const attar_constant *constant);

#endif
