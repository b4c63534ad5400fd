/* Hides AVX-512, AMX and VNNI from a program that loads this library first (LD_PRELOAD), at full speed: CPUID faults
 * (arch_prctl(2); flag `cpuid_fault` in /proc/cpuinfo), and the handler answers with those bits cleared.
 *
 * Threads and forks inherit the faulting; a program that is executed starts without it and loads the library again.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <cpuid.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

static void fault_on_cpuid(long faulting) {
    if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, !faulting) != 0) {
        static const char message[] = "this processor or kernel cannot let CPUID fault\n";
        (void)!write(2, message, sizeof message - 1);
        _exit(1);
    }
}

static void answer(int signal_number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *instruction = (const unsigned char *)registers[REG_RIP];
    (void)info;
    if (instruction[0] != 0x0f || instruction[1] != 0xa2) {
        signal(signal_number, SIG_DFL);
        return;
    }
    unsigned leaf = (unsigned)registers[REG_RAX], subleaf = (unsigned)registers[REG_RCX], a, b, c, d;
    fault_on_cpuid(0);
    __cpuid_count(leaf, subleaf, a, b, c, d);
    fault_on_cpuid(1);
    if (leaf == 7 && subleaf == 0) {
        b &= ~0xdc230000u;                /* f, dq, ifma, pf, er, cd, bw, vl */
        c &= ~0x00005842u;                /* vbmi, vbmi2, vnni, bitalg, vpopcntdq */
        d &= ~0x03c0010cu;                /* 4vnniw, 4fmaps, vp2intersect, AMX, fp16 */
    } else if (leaf == 7 && subleaf == 1) {
        a &= ~0x00200030u;                /* AVX-VNNI, bf16, AMX-FP16 */
    } else if (leaf == 0xd && subleaf == 0) {
        a &= ~0x000600e0u;                /* registers that the system saves */
    }
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void hide(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigaction(SIGSEGV, &action, NULL);
    fault_on_cpuid(1);
}
