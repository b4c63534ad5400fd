/* A port that finds missing waits: a transfer is made when it is waited for, no earlier, and what a load will fill is garbage until then. */
#include "attar_port.h"

enum { PENDING = 4096 };

static struct {
    attar_transfer pending[PENDING];
    uint32_t started, complete;
} queues[ATTAR_QUEUES];

static void make(const attar_transfer *transfer)
{
    for (size_t row = 0; row < transfer->rows; row++) {
        uint8_t *to = (uint8_t *)transfer->to + row * transfer->to_stride;
        const uint8_t *from = (const uint8_t *)transfer->from + row * transfer->from_stride;
        for (size_t at = 0; at < transfer->bytes; at++)
            to[at] = from[at];
    }
}

uint32_t attar_port_start(unsigned queue, const attar_transfer *transfer)
{
    if (queues[queue].started - queues[queue].complete == PENDING)
        attar_port_wait(queue, queues[queue].complete + 1);
    queues[queue].pending[queues[queue].started % PENDING] = *transfer;
    if (queue != ATTAR_STORES)
        for (size_t row = 0; row < transfer->rows; row++)
            for (size_t at = 0; at < transfer->bytes; at++)
                ((uint8_t *)transfer->to)[row * transfer->to_stride + at] = 0xa5;
    return ++queues[queue].started;
}

void attar_port_wait(unsigned queue, uint32_t ticket)
{
    for (; queues[queue].complete != queues[queue].started && (int32_t)(ticket - queues[queue].complete) > 0; queues[queue].complete++)
        make(&queues[queue].pending[queues[queue].complete % PENDING]);
}
