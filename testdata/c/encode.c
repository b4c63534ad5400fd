/* Encodes the prompts of a script, each on its own, and writes the rows of their tokens, then the bytes that each queue moved. */
#include "arenas.h"
#include "script.h"

int main(void)
{
    attar_status status = attar_init(&model, sram, sizeof sram, dram, sizeof dram, attar_weights);
    for (size_t at = 0; at < sizeof script / sizeof *script && status == ATTAR_OK; at += script[at] + 1) {
        if (script[at] == 0)
            continue;
        status = attar_encode(&model, script + at + 1, 0, script[at]);
        for (size_t row = 0; row < script[at]; row++)
            put(attar_row(&model, row), 2 * ATTAR_WIDTH);
    }
    put(model.run.moved, sizeof model.run.moved);
    end(status);
}
