/* Runs a script of prompts (of all sequences of a batch) and rewinds, and writes the logits after each prompt, then the arena, then the bytes that each queue moved. */
#include "arenas.h"
#include "script.h"

int main(void)
{
    attar_status status = attar_init(&model, sram, sizeof sram, dram, sizeof dram, attar_weights);
    for (size_t at = 0; at < sizeof script / sizeof *script && status == ATTAR_OK; at += script[at] * ATTAR_BATCH + 1) {
        /* A prompt of no tokens is a rewind to the start. */
        if (script[at] == 0) {
            attar_rewind(&model, 0);
            continue;
        }
        status = attar_prefill(&model, script + at + 1, script[at]);
        put(attar_logits(&model), 2 * ATTAR_VOCABULARY * ATTAR_BATCH);
    }
    put(dram, sizeof dram);
    put(model.run.moved, sizeof model.run.moved);
    end(status);
}
