/* What native.c does for binding.c. Numbers are float or double, arrays contiguous; T, B, D, H, f as there. */

#ifndef MANUAL_BPTT_NATIVE_H
#define MANUAL_BPTT_NATIVE_H

#include <stdint.h>

/* What starts threads: GOMP_parallel of the OpenMP runtime that the process has loaded, or NULL for one thread. */
typedef void (*Team)(void (*)(void *), void *, unsigned, unsigned);

/* Of a whole recurrence, with its inputs. isa: at most what manual_bptt_isa says. */
typedef struct {
    int64_t is_double, isa, threads;
    Team team;
    int64_t T, B, D, H, f;
    const void *x, *h0, *U, *W, *b, *b2; /* b and b2 may be NULL */
    void *h, *copy, *last;               /* written: (T, B, H), once more or NULL, and the last step, (B, H) or NULL */
} Forward;
typedef struct {
    int64_t is_double, isa, threads;
    Team team;
    int64_t T, B, D, H, f;
    const void *dh, *dlast;              /* from outside, of all states and of the last ones, either may be NULL */
    void *h;                             /* read */
    const void *x, *h0, *U, *W;          /* x, h0, U may be NULL where they are not needed */
    void *dx, *dh0, *dU, *dW, *db, *db2; /* written where they are not NULL; db2 as db */
} Backward;

/* The best instruction set of this machine: 2 AVX-512, 1 AVX2 with FMA, 0 what the compiler takes for granted. */
int manual_bptt_isa(void);

/* The next three return 0, or 1 where there is no memory. */

/* Runs one recursion. first: h0, or dh. W is (H, H), rows by rows; the forward pass multiplies with its transpose. */
int manual_bptt_run(int backward, int is_double, int isa, int64_t threads, Team team, int64_t T, int64_t B, int64_t H,
                    int64_t f, const int64_t *starts, void *h, const void *first, void *da, const void *W,
                    const double *xi);

/* h of a whole recurrence, from x. */
int manual_bptt_forward_all(const Forward *given);

/* The gradients of a whole recurrence. */
int manual_bptt_backward_all(const Backward *given);

/* f of n numbers in place, for the tests of its accuracy. */
void manual_bptt_apply(int is_double, int isa, int64_t f, int64_t n, void *values);

#endif
