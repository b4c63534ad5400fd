/* Reads a prompt and writes the text of the tokens that follow it, each by a call of its own. */
#include "arenas.h"
#include "prompt.h"

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
