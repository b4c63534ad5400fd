/* Arm's MPS3 AN547 board (Cortex-M55) as QEMU has it: start, and files of the host by semihosting. */
#include <stddef.h>
#include <stdint.h>

extern uint32_t stack_top, bss_start, bss_end;
int main(void);
static int file;

/* Semihosting for AArch32 and AArch64, release 2.0. */
enum { OPEN = 1, CLOSE = 2, WRITE = 5, EXIT_EXTENDED = 0x20, APPLICATION_EXIT = 0x20026 };

static int host(int operation, const void *arguments)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void put(const void *bytes, size_t count)
{
    const uint32_t arguments[] = {(uint32_t)file, (uint32_t)bytes, count};
    host(WRITE, arguments);
}

_Noreturn void end(int status)
{
    const uint32_t handle[] = {(uint32_t)file}, arguments[] = {APPLICATION_EXIT, (uint32_t)status};
    host(CLOSE, handle);
    host(EXIT_EXTENDED, arguments);
    for (;;) {
    }
}

static void fault(void)
{
    end(98);
}

static void reset(void)
{
    static const char name[] = "board.out";
    const uint32_t arguments[] = {(uint32_t)name, 5 /* wb */, sizeof name - 1};
    /* Floating point and vectors are off until they are let in. */
    *(volatile uint32_t *)0xe000ed88 |= 0xfu << 20;
    __asm__ volatile("dsb\n isb" ::: "memory");
    for (uint32_t *word = &bss_start; word < &bss_end; word++)
        *word = 0;
    file = host(OPEN, arguments);
    main();
}

__attribute__((section(".vectors"), used)) static const void *const vectors[] = {&stack_top, reset, fault, fault, fault, fault, fault, fault};

void *memcpy(void *restrict to, const void *restrict from, size_t count)
{
    for (size_t at = 0; at < count; at++)
        ((volatile uint8_t *)to)[at] = ((const uint8_t *)from)[at];
    return to;
}

void *memset(void *to, int value, size_t count)
{
    for (size_t at = 0; at < count; at++)
        ((volatile uint8_t *)to)[at] = (uint8_t)value;
    return to;
}
