/* A model with its arenas, and what a board provides. */
#include "attar_model.h"

void put(const void *bytes, size_t count);
_Noreturn void end(int status);

static _Alignas(ATTAR_ALIGN) uint8_t sram[ATTAR_SRAM_BYTES] __attribute__((section(".sram")));
static _Alignas(ATTAR_ALIGN) uint8_t dram[ATTAR_DRAM_BYTES] __attribute__((section(".ddr")));
static attar model;
