/* Atomics over 64-bit cells in shared memory, for the kernels.
 *
 * Cython has no atomics of its own.  gcc and clang both know these builtins, on x86-64 and aarch64.
 */
#ifndef ACTORMQ_ATOMICS_H
#define ACTORMQ_ATOMICS_H

typedef unsigned long long amq_cell;

static inline amq_cell amq_load_acquire(const amq_cell *cell) { return __atomic_load_n(cell, __ATOMIC_ACQUIRE); }

static inline void amq_store_release(amq_cell *cell, amq_cell value) { __atomic_store_n(cell, value, __ATOMIC_RELEASE); }

static inline amq_cell amq_fetch_add(amq_cell *cell, amq_cell value) { return __atomic_fetch_add(cell, value, __ATOMIC_ACQ_REL); }

static inline void amq_full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* Have a byte that is soon changed brought near; never faults. */
static inline void amq_prefetch(const void *at) { __builtin_prefetch(at, 1); }

/* One turn of a spinning wait. */
static inline void amq_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif
