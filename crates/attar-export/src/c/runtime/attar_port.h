/* What a port provides: copies between on-chip and off-chip memory. */
#ifndef ATTAR_PORT_H
#define ATTAR_PORT_H

#include <stddef.h>
#include <stdint.h>

/* Queues. Transfers of a queue complete in the order in which they were started. */
enum { ATTAR_LOADS, ATTAR_WEIGHT_LOADS, ATTAR_STORES, ATTAR_QUEUES };

/* `rows` pieces of `bytes` bytes each; strides count bytes from piece to piece. */
typedef struct {
    void *to;
    const void *from;
    size_t bytes, rows, to_stride, from_stride;
} attar_transfer;

/* Starts a transfer on a queue and returns its ticket. The tickets of a queue count up from 1. */
uint32_t attar_port_start(unsigned queue, const attar_transfer *transfer);

/* Returns once this transfer and all earlier ones of the queue are complete. */
void attar_port_wait(unsigned queue, uint32_t ticket);

#endif
