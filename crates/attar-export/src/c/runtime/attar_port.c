/* A port for processors without a DMA engine: every transfer is a copy, complete when it is started. */
#include "attar_port.h"

uint32_t attar_port_start(unsigned queue, const attar_transfer *transfer)
{
    static uint32_t tickets[ATTAR_QUEUES];
    for (size_t row = 0; row < transfer->rows; row++) {
        uint8_t *to = (uint8_t *)transfer->to + row * transfer->to_stride;
        const uint8_t *from = (const uint8_t *)transfer->from + row * transfer->from_stride;
#ifdef __GNUC__
        __builtin_memcpy(to, from, transfer->bytes);
#else
        for (size_t at = 0; at < transfer->bytes; at++)
            to[at] = from[at];
#endif
    }
    return ++tickets[queue];
}

void attar_port_wait(unsigned queue, uint32_t ticket)
{
    (void)queue;
    (void)ticket;
}
