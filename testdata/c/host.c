/* Writes to standard output. */
#include <stdio.h>
#include <stdlib.h>

void put(const void *bytes, size_t count)
{
    if (fwrite(bytes, 1, count, stdout) != count)
        exit(99);
}

_Noreturn void end(int status)
{
    exit(status);
}
