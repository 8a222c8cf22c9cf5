/* The recursions F1 F2 and B3 B4 for CPUs, one sequence a row. No header of torch or Python: called through ctypes.

   A row never meets another one, and what is added up for it is added in the order of k, whatever the blocks are: results
   depend neither on the number of threads nor on the other rows. Sums are kept in registers, for up to 6 rows and as many
   vectors of columns as fit, until f or f' has been applied. W lies in panels of one vector of columns, in the order of k.

   The file includes itself once for every instruction set and number: LANES numbers of type REAL are a vector. */

#ifndef REAL

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define JOIN_(a, b, c) a##_##b##_##c
#define JOIN(a, b, c) JOIN_(a, b, c)
#define NAME(stem) JOIN(stem, REAL, ISA)
#define INLINE static inline __attribute__((always_inline)) TARGET

#define PAIR_(a, b) a##_##b
#define PAIR(a, b) PAIR_(a, b)
typedef int32_t whole_float;
typedef int64_t whole_double;

enum { TANH, SIGMOID, RELU, IDENTITY };

/* Everything that one call hands over; arrays are contiguous, rows of step t are starts[t] … starts[t + 1] - 1. */
typedef struct {
    int64_t T, H, f;
    const int64_t *starts;
    void *steps;          /* forward: a, becomes h; backward: f', becomes da */
    const void *first;    /* forward: h0; backward: dh from outside */
    const void *panels;   /* W, packed */
    const double *xi;     /* backward: ξ_1 … ξ_T, or NULL */
} Work;

#if defined(__x86_64__) || defined(_M_X64)
#define HAS_X86 1
#endif

#ifdef HAS_X86
#define ISA avx512
#define BYTES 64
#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")))
#define REAL float
#include "native.c"
#undef REAL
#define REAL double
#include "native.c"
#undef REAL
#undef ISA
#undef BYTES
#undef TARGET
#define ISA avx2
#define BYTES 32
#define TARGET __attribute__((target("avx2,fma")))
#define REAL float
#include "native.c"
#undef REAL
#define REAL double
#include "native.c"
#undef REAL
#undef ISA
#undef BYTES
#undef TARGET
#endif
#define ISA plain
#define BYTES 16
#define TARGET
#define REAL float
#include "native.c"
#undef REAL
#define REAL double
#include "native.c"
#undef REAL
#undef ISA
#undef BYTES
#undef TARGET

typedef void (*Rows)(const Work *, int64_t, int64_t);
typedef struct { const Work *work; Rows rows; int64_t from, to; } Part;

static void *run_part(void *given) {
    const Part *part = given;
    part->rows(part->work, part->from, part->to);
    return NULL;
}

/* The best instruction set of this machine: 2 AVX-512, 1 AVX2 with FMA, 0 what the compiler takes for granted. */
int manual_bptt_isa(void) {
#ifdef HAS_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

#ifdef HAS_X86
#define CHOOSE(stem, type) (isa == 2 ? stem##_##type##_avx512 : isa == 1 ? stem##_##type##_avx2 : stem##_##type##_plain)
#else
#define CHOOSE(stem, type) (stem##_##type##_plain)
#endif

/* Runs one recursion. isa: at most what manual_bptt_isa says. W is (H, H), rows by rows; the forward pass multiplies with
   its transpose. Returns 0, or 1 where there is no memory. */
int manual_bptt_run(int backward, int is_double, int isa, int threads, int64_t T, int64_t H, int f, const int64_t *starts,
                    void *steps, const void *first, const void *W, const double *xi) {
    int64_t lanes = (isa == 2 ? 64 : isa == 1 ? 32 : 16) / (is_double ? 8 : 4), columns = (H + lanes - 1) / lanes * lanes;
    void *panels;
    if (posix_memalign(&panels, 64, (size_t)(columns * H) * (is_double ? 8 : 4) + 64)) return 1;
    if (is_double) CHOOSE(pack, double)(H, W, !backward, panels);
    else CHOOSE(pack, float)(H, W, !backward, panels);
    Work work = {T, H, f, starts, steps, first, panels, xi};
    Rows rows = backward ? (is_double ? CHOOSE(backward, double) : CHOOSE(backward, float))
                         : (is_double ? CHOOSE(forward, double) : CHOOSE(forward, float));
    int64_t B = starts[1] - starts[0];
    if (threads > B) threads = (int)B;
    if (threads > 64) threads = 64;
    pthread_t started[64];
    Part parts[64];
    int running = 0;
    for (int i = 1; i < threads; i++) {
        parts[i] = (Part){&work, rows, B * i / threads, B * (i + 1) / threads};
        if (pthread_create(&started[running], NULL, run_part, &parts[i])) rows(&work, parts[i].from, parts[i].to);
        else running++;
    }
    rows(&work, 0, threads > 1 ? B / threads : B);
    while (running > 0) pthread_join(started[--running], NULL);
    free(panels);
    return 0;
}

/* f of n numbers in place, for the tests of its accuracy. */
void manual_bptt_apply(int is_double, int isa, int f, int64_t n, void *values) {
    if (is_double) CHOOSE(apply, double)(f, n, values);
    else CHOOSE(apply, float)(f, n, values);
}

#else /* REAL: one instruction set, one kind of number */

#define LANES ((int64_t)(BYTES / sizeof(REAL)))
#define V NAME(vector)
#define M NAME(mask)
#define IS_DOUBLE (sizeof(REAL) == 8)
#define SIGN ((M){0} + (PAIR(whole, REAL))((uint64_t)1 << (IS_DOUBLE ? 63 : 31)))
typedef REAL V __attribute__((vector_size(BYTES)));
typedef PAIR(whole, REAL) M __attribute__((vector_size(BYTES)));

INLINE V NAME(load)(const REAL *from, int64_t n) {
    V v = {0};
    if (n >= LANES) memcpy(&v, from, sizeof v);
    else memcpy(&v, from, (size_t)n * sizeof(REAL));
    return v;
}

INLINE void NAME(store)(REAL *to, V v, int64_t n) {
    if (n >= LANES) memcpy(to, &v, sizeof v);
    else memcpy(to, &v, (size_t)n * sizeof(REAL));
}

INLINE V NAME(select)(M where, V yes, V no) { return (V)((where & (M)yes) | (~where & (M)no)); }

/* e^x for x ≤ 0, as q · 2^n with q in [1/√2, √2]; 2^n in two factors, so that denormal results come out. NaN stays NaN. */
INLINE V NAME(exp_negative)(V x) {
    const REAL least = IS_DOUBLE ? (REAL)-746.0 : (REAL)-104.0;
    const REAL round = IS_DOUBLE ? (REAL)6755399441055744.0 : (REAL)12582912.0; /* 1.5 · 2^52, 1.5 · 2^23 */
    x = NAME(select)((M)(x < least), (V){0} + least, x);
    V n = x * (REAL)1.4426950408889634 + round;
    n = n - round;
    V r = IS_DOUBLE ? (x - n * (REAL)0.693147180369123816490) - n * (REAL)1.90821492927058770002e-10
                    : (x - n * (REAL)0.693145751953125) - n * (REAL)1.42860677e-6;
    V p;
    if (IS_DOUBLE) { /* (e^r - 1 - r) / r², by Chebyshev points on ±ln 2 / 2 */
        p = (V){0} + (REAL)1.60871772343807823e-10;
        p = p * r + (REAL)2.09189618377957781e-9;
        p = p * r + (REAL)2.50520695947956848e-8;
        p = p * r + (REAL)2.75572610293437687e-7;
        p = p * r + (REAL)2.75573192486338255e-6;
        p = p * r + (REAL)0.0000248015873385653456;
        p = p * r + (REAL)0.000198412698412627626;
        p = p * r + (REAL)0.0013888888888878269;
        p = p * r + (REAL)0.00833333333333333408;
        p = p * r + (REAL)0.0416666666666666778;
        p = p * r + (REAL)0.166666666666666667;
        p = p * r + (REAL)0.5;
    } else {
        p = (V){0} + (REAL)0.000198919813139776902;
        p = p * r + (REAL)0.00139345419282702645;
        p = p * r + (REAL)0.00833331002422529243;
        p = p * r + (REAL)0.041666456809677876;
        p = p * r + (REAL)0.166666666825343561;
        p = p * r + (REAL)0.500000001428622342;
    }
    V q = (p * r) * r + r + (REAL)1;
    M whole = __builtin_convertvector(NAME(select)((M)(n == n), n, (V){0}), M);
    M half = whole >> 1, rest = whole - half;
    const int bits = IS_DOUBLE ? 52 : 23, bias = IS_DOUBLE ? 1023 : 127;
    return q * (V)((half + bias) << bits) * (V)((rest + bias) << bits);
}

INLINE V NAME(tanh)(V x) {
    V magnitude = (V)((M)x & ~SIGN);
    M small = (M)(magnitude < (REAL)0.6);
    V z = x * x, p;
    if (IS_DOUBLE) { /* (tanh x / x - 1) / x², by Chebyshev points on x² in [0, 0.36] */
        p = (V){0} + (REAL)-2.62222399240035886e-6;
        p = p * z + (REAL)0.0000126060825062310257;
        p = p * z + (REAL)-0.0000374550261333158141;
        p = p * z + (REAL)0.0000962435984783182131;
        p = p * z + (REAL)-0.000238958882224577596;
        p = p * z + (REAL)0.000589997513426251684;
        p = p * z + (REAL)-0.00145583076242446987;
        p = p * z + (REAL)0.00359212774113512551;
        p = p * z + (REAL)-0.00886323551439734129;
        p = p * z + (REAL)0.0218694885356697906;
        p = p * z + (REAL)-0.053968253968246057;
        p = p * z + (REAL)0.133333333333333283;
        p = p * z + (REAL)-0.333333333333333333;
    } else {
        p = (V){0} + (REAL)0.0023707656404977878;
        p = p * z + (REAL)-0.00841007080153073638;
        p = p * z + (REAL)0.0217883219971085213;
        p = p * z + (REAL)-0.0539615517813426909;
        p = p * z + (REAL)0.133333128668617992;
        p = p * z + (REAL)-0.33333333231207925;
    }
    V near = x * z * p + x;
    V e = NAME(exp_negative)((REAL)-2 * magnitude);
    V far = ((REAL)1 - e) / ((REAL)1 + e);
    return (V)((M)NAME(select)(small, near, far) | ((M)x & SIGN)); /* with the sign of x, also of -0 */
}

INLINE V NAME(sigmoid)(V x) {
    V e = NAME(exp_negative)((V)((M)x | SIGN));
    V whole = (REAL)1 + e, lost = e - (whole - (REAL)1); /* 1 + e = whole + lost */
    V y = NAME(select)((M)(x < 0), e, (V){0} + (REAL)1) / whole;
    V other = NAME(select)((M)(x < 0), (REAL)1 - y, y); /* 1 / whole */
    return y - y * (lost * other);
}

INLINE V NAME(activation)(int64_t f, V a) {
    if (f == TANH) return NAME(tanh)(a);
    if (f == SIGMOID) return NAME(sigmoid)(a);
    if (f == RELU) return NAME(select)((M)(a < 0), (V){0}, a); /* a NaN stays, and -0 */
    return a;
}

TARGET static void NAME(apply)(int64_t f, int64_t n, REAL *values) {
    for (int64_t i = 0; i < n; i += LANES) NAME(store)(values + i, NAME(activation)(f, NAME(load)(values + i, n - i)), n - i);
}

/* Panels of LANES columns of W, or of its transpose, each in the order of k; 0 beyond H. */
TARGET static void NAME(pack)(int64_t H, const REAL *W, int transposed, REAL *panels) {
    for (int64_t first = 0; first < H; first += LANES)
        for (int64_t k = 0; k < H; k++)
            for (int64_t lane = 0; lane < LANES; lane++) {
                int64_t column = first + lane;
                *panels++ = column >= H ? (REAL)0 : transposed ? W[column * H + k] : W[k * H + column];
            }
}

/* sums[r][v] = Σ_k before[r][k] · panel v of column k, for `rows` rows and `wide` panels, both known when compiled; 0
   where nothing comes. */
INLINE void NAME(product)(int rows, int wide, int64_t H, const REAL *before, const REAL *panels, V sums[6][8]) {
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < wide; v++) sums[r][v] = (V){0};
    for (int64_t k = 0; before && k < H; k++)
        for (int v = 0; v < wide; v++) {
            V w;
            memcpy(&w, panels + (v * H + k) * LANES, sizeof w);
            for (int r = 0; r < rows; r++) sums[r][v] += before[r * H + k] * w;
        }
}

/* F1 F2 of a block: h = f(a + before · panels). */
INLINE void NAME(forward_block)(int rows, int wide, int64_t H, int64_t f, const REAL *before, const REAL *panels, REAL *a,
                                int64_t columns) {
    V sums[6][8];
    NAME(product)(rows, wide, H, before, panels, sums);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < wide; v++) {
            REAL *place = a + r * H + v * LANES;
            int64_t n = columns - v * LANES;
            NAME(store)(place, NAME(activation)(f, NAME(load)(place, n) + sums[r][v]), n);
        }
}

/* B3 B4 of a block: da = f' ⊙ (dh + ξ · before · panels); relu selects. */
INLINE void NAME(backward_block)(int rows, int wide, int64_t H, int64_t f, const REAL *before, const REAL *panels,
                                 REAL *slope, const REAL *dh, REAL xi, int64_t columns) {
    V sums[6][8];
    NAME(product)(rows, wide, H, before, panels, sums);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < wide; v++) {
            int64_t place = r * H + v * LANES, n = columns - v * LANES;
            V s = NAME(load)(slope + place, n), total = NAME(load)(dh + place, n);
            if (before) total = xi == (REAL)1 ? total + sums[r][v] : total + xi * sums[r][v];
            NAME(store)(slope + place, f == RELU ? NAME(select)((M)(s <= 0), (V){0}, total) : s * total, n);
        }
}

/* All columns of up to 6 rows: the fewer rows, the more panels at once, so that there are sums enough to hide latency. */
#define COLUMNS(block, rows, most, ...)                                                                              \
    for (int64_t c = 0; c < H;) {                                                                                    \
        int64_t left = H - c, whole = left >= LANES * (most) ? (most) : 1;                                           \
        const REAL *panel = (const REAL *)work->panels + c * H;                                                      \
        if (whole == (most)) block(rows, most, H, work->f, before, panel, __VA_ARGS__, left);                        \
        else block(rows, 1, H, work->f, before, panel, __VA_ARGS__, left);                                           \
        c += whole * LANES;                                                                                          \
    }
#define BLOCKS(block, ...)                                                                                           \
    switch (rows) {                                                                                                  \
        case 1: COLUMNS(block, 1, 8, __VA_ARGS__) break;                                                             \
        case 2: COLUMNS(block, 2, 4, __VA_ARGS__) break;                                                             \
        case 3: COLUMNS(block, 3, 4, __VA_ARGS__) break;                                                             \
        case 4: COLUMNS(block, 4, 2, __VA_ARGS__) break;                                                             \
        case 5: COLUMNS(block, 5, 2, __VA_ARGS__) break;                                                             \
        default: COLUMNS(block, 6, 2, __VA_ARGS__) break;                                                            \
    }

TARGET static void NAME(forward)(const Work *work, int64_t from, int64_t to) {
    int64_t H = work->H;
    for (int64_t t = 0; t < work->T; t++) {
        int64_t here = work->starts[t], running = work->starts[t + 1] - here;
        const REAL *earlier = t ? (const REAL *)work->steps + work->starts[t - 1] * H : (const REAL *)work->first;
        int64_t end = to < running ? to : running;
        for (int64_t b = from; b < end;) {
            int64_t rows = end - b < 6 ? end - b : 6;
            const REAL *before = earlier + b * H;
            REAL *a = (REAL *)work->steps + (here + b) * H;
            BLOCKS(NAME(forward_block), a + c)
            b += rows;
        }
    }
}

TARGET static void NAME(backward)(const Work *work, int64_t from, int64_t to) {
    int64_t H = work->H;
    for (int64_t t = work->T - 1; t >= 0; t--) {
        int64_t here = work->starts[t], running = work->starts[t + 1] - here;
        int64_t going_on = t + 1 < work->T ? work->starts[t + 2] - work->starts[t + 1] : 0;
        REAL xi = t + 1 < work->T && work->xi ? (REAL)work->xi[t + 1] : (REAL)1;
        if (xi == (REAL)0) going_on = 0;
        int64_t end = to < running ? to : running;
        for (int64_t b = from; b < end;) {
            int64_t until = b < going_on && going_on < end ? going_on : end, rows = until - b < 6 ? until - b : 6;
            const REAL *before = b < going_on ? (const REAL *)work->steps + (work->starts[t + 1] + b) * H : NULL;
            REAL *slope = (REAL *)work->steps + (here + b) * H;
            const REAL *dh = (const REAL *)work->first + (here + b) * H;
            BLOCKS(NAME(backward_block), slope + c, dh + c, xi)
            b += rows;
        }
    }
}

#undef LANES
#undef V
#undef M
#undef IS_DOUBLE
#undef SIGN
#undef COLUMNS
#undef BLOCKS

#endif
