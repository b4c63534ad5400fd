/* Reads a prompt and writes the text of the tokens that follow it, each by a call of its own. */
#include "attar_model.h"
#include "prompt.h"

void put(const void *bytes, size_t count);
_Noreturn void end(int status);

static _Alignas(ATTAR_ALIGN) uint8_t sram[ATTAR_SRAM_BYTES] __attribute__((section(".sram")));
static _Alignas(ATTAR_ALIGN) uint8_t dram[ATTAR_DRAM_BYTES] __attribute__((section(".ddr")));
static attar model;

int main(void)
{
    attar_status status = attar_init(&model, sram, sizeof sram, dram, sizeof dram, attar_weights);
    if (status == ATTAR_OK)
        status = attar_prefill(&model, prompt, sizeof prompt / sizeof *prompt);
    for (int more = MORE; more > 0 && status == ATTAR_OK; more--) {
        size_t bytes;
        const char *text = attar_text(attar_best(&model), &bytes);
        put(text, bytes);
        if (more > 1)
            status = attar_decode(&model, attar_best(&model));
    }
    end(status);
}
