/* The recursions F1 F2 and B3 B4 for CPUs, one sequence a row. Knows numbers in memory, neither torch nor Python.

   A row never meets another one, and what is added up for it is added in the order of k, whatever the blocks are: results
   depend neither on the number of threads nor on the other rows. Sums are kept in registers, for up to 6 rows and as many
   vectors of columns as fit, until f or f' has been applied. W lies in panels of one vector of columns, in the order of k.

   The file includes itself once for every instruction set and number: LANES numbers of type REAL are a vector. */

#ifndef REAL

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"

#define JOIN_(a, b, c) a##_##b##_##c
#define JOIN(a, b, c) JOIN_(a, b, c)
#define NAME(stem) JOIN(stem, REAL, ISA)
#define INLINE static inline __attribute__((always_inline)) TARGET

#define PAIR_(a, b) a##_##b
#define PAIR(a, b) PAIR_(a, b)
typedef int32_t whole_float;
typedef int64_t whole_double;

enum { TANH, SIGMOID, RELU, IDENTITY };
enum { CHUNK = 128 }; /* rows that a weight gradient takes at a time */
#ifndef TOGETHER      /* bytes of da, h and x that are turned into gradients while they are in the cache */
#define TOGETHER (512 * 1024)
#endif

/* What one recursion reads and writes; arrays are contiguous, rows of step t are START(work, t) … START(work, t + 1) - 1. */
typedef struct {
    int64_t T, B, H, f;
    const int64_t *starts; /* NULL: B rows at every step */
    void *h;               /* forward: a, becomes h; backward: read */
    void *copy;            /* forward: becomes h too, or NULL */
    const void *h0, *dh;   /* forward; backward: from outside, or NULL for nothing */
    const void *dlast;     /* backward: from outside at the last step, beside dh, (B, H) or NULL */
    void *da;              /* backward: written */
    const void *later;     /* backward: da of the step after the last one, (B, H), or NULL where there is none */
    const void *panels;    /* W, packed */
    const void *x, *inputs, *bias; /* forward: what a is made of, with U, packed; x is NULL where it is there already */
    int64_t D;
    const double *xi;      /* backward: ξ_1 … ξ_T, or NULL */
} Work;
#define START(work, t) ((work)->starts ? (work)->starts[t] : (t) * (work)->B)

/* What each thread does: one of several parts. */
typedef void (*Part)(void *, int64_t, int64_t);
typedef struct {
    Part part;
    void *work;
    int64_t parts, next; /* how many there are, and the one that is taken next */
} Shared;

static void take_parts(void *given) {
    Shared *shared = given;
    for (;;) {
        int64_t part = __atomic_fetch_add(&shared->next, 1, __ATOMIC_RELAXED);
        if (part >= shared->parts) return;
        shared->part(shared->work, part, shared->parts);
    }
}

/* Does all parts of some work: by as many threads of a team, or alone. */
static void share(Team team, int64_t parts, Part part, void *work) {
    Shared shared = {part, work, parts, 0};
    if (team && parts > 1) team(take_parts, &shared, (unsigned)parts, 0);
    else take_parts(&shared);
}

/* A recurrence whole, with its inputs and all its gradients; every step has B rows. b and b2 may be NULL, and every gradient
   that nobody asked for. Backward, work is a piece of it: the steps start … stop - 1. */
typedef struct {
    Work work;
    const void *x, *U, *W, *b, *b2;
    void *last; /* forward: becomes the last states, (B, H), or NULL */
    void *dx, *dh0, *dU, *dW, *db, *db2;
    Team team;
    int64_t threads;
    int64_t T, start, stop;
    double *sums;           /* backward: of db, so far */
    void *room;             /* backward: what each thread needs for itself, that much */
    int64_t room_of_each;
} Whole;

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
#define OF_ISA(stem, type) (isa == 2 ? stem##_##type##_avx512 : isa == 1 ? stem##_##type##_avx2 : stem##_##type##_plain)
#else
#define OF_ISA(stem, type) (stem##_##type##_plain)
#endif
#define CHOOSE(stem) (is_double ? (void *)OF_ISA(stem, double) : (void *)OF_ISA(stem, float))
typedef void (*Pack)(int64_t, int64_t, const void *, int, void *);
typedef int (*All)(Whole *);

int manual_bptt_run(int backward, int is_double, int isa, int64_t threads, Team team, int64_t T, int64_t B, int64_t H,
                    int64_t f, const int64_t *starts, void *h, const void *first, void *da, const void *W,
                    const double *xi) {
    int64_t lanes = (isa == 2 ? 64 : isa == 1 ? 32 : 16) / (is_double ? 8 : 4), columns = (H + lanes - 1) / lanes * lanes;
    void *panels;
    if (posix_memalign(&panels, 64, (size_t)(columns * H) * (is_double ? 8 : 4))) return 1;
    ((Pack)CHOOSE(pack))(H, H, W, !backward, panels);
    Work work = {.T = T, .B = B, .H = H, .f = f, .starts = starts, .h = h, .h0 = first, .dh = first, .da = da,
                 .panels = panels, .xi = xi};
    share(team, threads < B ? threads : B, (Part)(backward ? CHOOSE(backward) : CHOOSE(forward)), &work);
    free(panels);
    return 0;
}

int manual_bptt_forward_all(const Forward *g) {
    int is_double = (int)g->is_double, isa = (int)g->isa;
    Whole whole = {.work = {.T = g->T, .B = g->B, .H = g->H, .f = g->f, .h = g->h, .copy = g->copy, .h0 = g->h0, .D = g->D},
                   .x = g->x, .U = g->U, .W = g->W, .b = g->b, .b2 = g->b2, .last = g->last, .team = g->team,
                   .threads = g->threads};
    return ((All)CHOOSE(forward_all))(&whole);
}

int manual_bptt_backward_all(const Backward *g) {
    int is_double = (int)g->is_double, isa = (int)g->isa;
    Whole whole = {.work = {.T = g->T, .B = g->B, .H = g->H, .f = g->f, .h = g->h, .h0 = g->h0, .dh = g->dh,
                            .dlast = g->dlast, .D = g->D},
                   .T = g->T, .x = g->x, .U = g->U, .W = g->W, .dx = g->dx, .dh0 = g->dh0, .dU = g->dU, .dW = g->dW,
                   .db = g->db, .db2 = g->db2, .team = g->team, .threads = g->threads};
    return ((All)CHOOSE(backward_all))(&whole);
}

void manual_bptt_apply(int is_double, int isa, int64_t f, int64_t n, void *values) {
    ((void (*)(int64_t, int64_t, void *))CHOOSE(apply))(f, n, values);
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

/* A panel of the transpose of some rows, at most LANES, K numbers each; 0 in place of those that are not there. For AVX2
   and AVX-512 gcc turns the copies of a whole square into shuffles of vectors. */
INLINE void NAME(transpose)(int64_t K, int64_t n, const REAL *rows, REAL *panel) {
    for (int64_t k = 0; k < K; k += LANES, panel += LANES * LANES) {
        REAL square[LANES][LANES];
        int64_t wide = K - k < LANES ? K - k : LANES;
        memset(square, 0, sizeof square);
        for (int64_t i = 0; i < n; i++) {
            if (wide == LANES) memcpy(square[i], rows + i * K + k, sizeof square[i]);
            else memcpy(square[i], rows + i * K + k, (size_t)wide * sizeof(REAL));
        }
        if (wide == LANES)
            for (int i = 0; i < LANES; i++)
                for (int j = 0; j < LANES; j++) panel[i * LANES + j] = square[j][i];
        else
            for (int i = 0; i < wide; i++)
                for (int j = 0; j < LANES; j++) panel[i * LANES + j] = square[j][i];
    }
}

/* Panels of LANES columns of a matrix (K, C), or of the transpose of one (C, K), each in the order of k; 0 beyond C. */
TARGET static void NAME(pack)(int64_t K, int64_t C, const REAL *matrix, int transposed, REAL *panels) {
    for (int64_t first = 0; first < C; first += LANES, panels += K * LANES) {
        int64_t n = C - first < LANES ? C - first : LANES;
        if (transposed) NAME(transpose)(K, n, matrix + first * K, panels);
        else
            for (int64_t k = 0; k < K; k++) NAME(store)(panels + k * LANES, NAME(load)(matrix + k * C + first, n), LANES);
    }
}

/* sums[r][v] = Σ_k left[r · row + k · step] · panel v of column k, for `rows` rows and `wide` panels, both known when
   compiled; 0 where nothing comes. */
INLINE void NAME(product)(int rows, int wide, int64_t K, const REAL *left, int64_t row, int64_t step, const REAL *panels,
                          V sums[6][8]) {
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < wide; v++) sums[r][v] = (V){0};
    for (int64_t k = 0; left && k < K; k++) {
        const REAL *from = left + k * step;
        V w[8];
        if (rows < wide) { /* with 16 registers there is room for the numbers of the rows beside the sums, or for w */
            for (int v = 0; v < wide; v++) {
                memcpy(&w[0], panels + (v * K + k) * LANES, sizeof w[0]);
                for (int r = 0; r < rows; r++) sums[r][v] += from[r * row] * w[0];
            }
        } else {
            for (int v = 0; v < wide; v++) memcpy(&w[v], panels + (v * K + k) * LANES, sizeof w[v]);
            for (int r = 0; r < rows; r++)
                for (int v = 0; v < wide; v++) sums[r][v] += from[r * row] * w[v];
        }
    }
}

/* F1 F2 of a block, from its sums: h = f(a + sums), and where there is room a copy of it; a may have been made, and lacks
   the bias. */
INLINE void NAME(finish)(int rows, int wide, int64_t H, int64_t left, V sums[6][8], V made[6][8], const REAL *bias,
                         int64_t f, REAL *a, REAL *copy) {
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < wide; v++) {
            int64_t place = r * H + v * LANES, n = left - v * LANES;
            V given = made ? made[r][v] : NAME(load)(a + place, n);
            if (made && bias) given = given + NAME(load)(bias + v * LANES, n);
            V h = NAME(activation)(f, given + sums[r][v]);
            NAME(store)(a + place, h, n);
            if (copy) NAME(store)(copy + place, h, n);
        }
}

/* The same apart, for the largest blocks where there are 16 registers: in line, its constants would take some of them from
   the loop of the sums. */
TARGET static __attribute__((noinline)) void NAME(finish_apart)(int rows, int wide, int64_t H, int64_t left, V sums[6][8],
                                                                V made[6][8], const REAL *bias, int64_t f, REAL *a,
                                                                REAL *copy) {
    NAME(finish)(rows, wide, H, left, sums, made, bias, f, a, copy);
}

/* F1 F2 of a block; a may have to be made from x. Its sum is taken by itself, as if it had been there. */
INLINE void NAME(forward_block)(int rows, int wide, int64_t H, int64_t left, const REAL *before, const REAL *panels,
                                int64_t f, REAL *a, REAL *copy, const REAL *x, int64_t D, const REAL *inputs,
                                const REAL *bias) {
    V sums[6][8], made[6][8];
    NAME(product)(rows, wide, D, x, D, 1, inputs, made);
    NAME(product)(rows, wide, H, before, H, 1, panels, sums);
    if (BYTES < 64 && rows * wide > 10) NAME(finish_apart)(rows, wide, H, left, sums, x ? made : NULL, bias, f, a, copy);
    else NAME(finish)(rows, wide, H, left, sums, x ? made : NULL, bias, f, a, copy);
}

/* B3 B4 of a block: da = f' ⊙ (dh + dlast + ξ · before · panels), f' from h; relu selects; NULL is nothing. */
INLINE void NAME(backward_block)(int rows, int wide, int64_t H, int64_t left, const REAL *before, const REAL *panels,
                                 int64_t f, const REAL *h, const REAL *dh, const REAL *dlast, REAL *da, REAL xi) {
    V sums[6][8];
    NAME(product)(rows, wide, H, before, H, 1, panels, sums);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < wide; v++) {
            int64_t place = r * H + v * LANES, n = left - v * LANES;
            V s = NAME(load)(h + place, n), total = dh ? NAME(load)(dh + place, n) : (V){0};
            if (dlast) total = total + NAME(load)(dlast + place, n);
            if (before) total = xi == (REAL)1 ? total + sums[r][v] : total + xi * sums[r][v];
            if (f == TANH) total = ((REAL)1 - s * s) * total;
            if (f == SIGMOID) total = s * ((REAL)1 - s) * total;
            if (f == RELU) total = NAME(select)((M)(s <= 0), (V){0}, total);
            NAME(store)(da + place, total, n);
        }
}

/* A block of left · panels, with a bias, or added to what is there. */
INLINE void NAME(plain_block)(int rows, int wide, int64_t C, int64_t left, const REAL *from, const REAL *panels,
                              int64_t K, int64_t row, int64_t step, const REAL *bias, int add, REAL *to) {
    V sums[6][8];
    NAME(product)(rows, wide, K, from, row, step, panels, sums);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < wide; v++) {
            int64_t n = left - v * LANES;
            REAL *place = to + r * C + v * LANES;
            V sum = bias ? sums[r][v] + NAME(load)(bias + v * LANES, n) : sums[r][v];
            NAME(store)(place, add ? NAME(load)(place, n) + sum : sum, n);
        }
}

/* All C columns of up to 6 rows, K numbers each: the fewer rows, the more panels at once, so that there are sums enough to
   hide latency; where fewer panels are left, as many as there is a block for. */
#define COLUMNS(block, rows, most, C, K, before, packed, ...)                                                        \
    for (int64_t c = 0, wide; c < (C); c += wide * LANES) {                                                          \
        int64_t left = (C) - c;                                                                                      \
        const REAL *panel = (packed) + c * (K);                                                                      \
        if (left >= LANES * (most)) {                                                                                \
            wide = (most);                                                                                           \
            block(rows, (most), C, left, before, panel, __VA_ARGS__);                                                \
        } else if ((most) > 4 && left >= LANES * 4) {                                                                \
            wide = 4;                                                                                                \
            block(rows, 4, C, left, before, panel, __VA_ARGS__);                                                     \
        } else if ((most) > 2 && left >= LANES * 2) {                                                                \
            wide = 2;                                                                                                \
            block(rows, 2, C, left, before, panel, __VA_ARGS__);                                                     \
        } else {                                                                                                     \
            wide = 1;                                                                                                \
            block(rows, 1, C, left, before, panel, __VA_ARGS__);                                                     \
        }                                                                                                            \
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

/* How many of n rows are taken next, at most 6, so that the blocks are about alike. */
INLINE int64_t NAME(next)(int64_t n) {
    int64_t blocks = (n + 5) / 6;
    return (n + blocks - 1) / blocks;
}

TARGET static void NAME(forward)(void *given, int64_t part, int64_t parts) {
    const Work *work = given;
    int64_t H = work->H, D = work->D, f = work->f, from = work->B * part / parts, to = work->B * (part + 1) / parts;
    const REAL *panels = work->panels, *inputs = work->inputs, *bias = work->bias;
    for (int64_t t = 0; t < work->T; t++) {
        int64_t here = START(work, t), running = START(work, t + 1) - here;
        const REAL *earlier = t ? (const REAL *)work->h + START(work, t - 1) * H : (const REAL *)work->h0;
        int64_t end = to < running ? to : running;
        for (int64_t b = from; b < end;) {
            int64_t rows = NAME(next)(end - b);
            const REAL *before = earlier + b * H;
            REAL *a = (REAL *)work->h + (here + b) * H, *copy = work->copy ? (REAL *)work->copy + (here + b) * H : NULL;
            const REAL *x = work->x ? (const REAL *)work->x + (here + b) * D : NULL;
            BLOCKS(NAME(forward_block), H, H, before, panels, f, a + c, copy ? copy + c : NULL, x, D,
                   x ? inputs + c * D : NULL, bias ? bias + c : NULL)
            b += rows;
        }
    }
}

TARGET static void NAME(backward)(void *given, int64_t part, int64_t parts) {
    const Work *work = given;
    int64_t H = work->H, f = work->f, from = work->B * part / parts, to = work->B * (part + 1) / parts;
    const REAL *panels = work->panels;
    for (int64_t t = work->T - 1; t >= 0; t--) {
        int64_t here = START(work, t), running = START(work, t + 1) - here;
        int64_t going_on = t + 1 < work->T ? START(work, t + 2) - START(work, t + 1) : work->later ? work->B : 0;
        const REAL *later = t + 1 < work->T ? (const REAL *)work->da + START(work, t + 1) * H : work->later;
        REAL xi = t + 1 < work->T && work->xi ? (REAL)work->xi[t + 1] : (REAL)1;
        if (xi == (REAL)0) going_on = 0;
        int64_t end = to < running ? to : running;
        for (int64_t b = from; b < end;) {
            int64_t until = b < going_on && going_on < end ? going_on : end, rows = NAME(next)(until - b);
            REAL *da = (REAL *)work->da + (here + b) * H;
            const REAL *before = b < going_on ? later + b * H : NULL;
            const REAL *h = (const REAL *)work->h + (here + b) * H;
            const REAL *dh = work->dh ? (const REAL *)work->dh + (here + b) * H : NULL;
            const REAL *dlast = work->dlast && t + 1 == work->T ? (const REAL *)work->dlast + b * H : NULL;
            BLOCKS(NAME(backward_block), H, H, before, panels, f, h + c, dh ? dh + c : NULL, dlast ? dlast + c : NULL,
                   da + c, xi)
            b += rows;
        }
    }
}

/* to (N, C) = left (N, K) · right (K, C), with a bias or added to what is there; left[n][k] lies at n · row + k · step,
   and right is packed. */
TARGET static void NAME(multiply)(int64_t N, int64_t K, int64_t C, const REAL *left, int64_t row, int64_t step,
                                  const REAL *panels, const REAL *bias, int add, REAL *to) {
    for (int64_t n = 0; n < N;) {
        int64_t rows = NAME(next)(N - n);
        const REAL *from = left + n * row;
        BLOCKS(NAME(plain_block), C, K, from, panels, K, row, step, bias ? bias + c : NULL, add, to + n * C + c)
        n += rows;
    }
}

INLINE int64_t NAME(padded)(int64_t C) { return (C + LANES - 1) / LANES * LANES; }

/* Where a part of N rows begins, in whole blocks of 6. */
INLINE int64_t NAME(begin)(int64_t N, int64_t part, int64_t parts) {
    int64_t begin = (N + 5) / 6 * part / parts * 6;
    return begin < N ? begin : N;
}

/* F1 but for the state before, of some rows. */
TARGET static void NAME(project)(void *given, int64_t part, int64_t parts) {
    const Whole *whole = given;
    const Work *work = &whole->work;
    int64_t H = work->H, D = work->D, N = work->T * work->B;
    int64_t from = NAME(begin)(N, part, parts), to = NAME(begin)(N, part + 1, parts);
    NAME(multiply)(to - from, D, H, (const REAL *)whole->x + from * D, D, 1, work->inputs, work->bias, 0,
                   (REAL *)work->h + from * H);
}

TARGET static int NAME(forward_all)(Whole *whole) {
    Work *work = &whole->work;
    int64_t H = work->H, D = work->D, B = work->B, wide = NAME(padded)(H), threads = whole->threads;
    int64_t parts = threads < B ? threads : B;
    REAL *room;
    if (posix_memalign((void **)&room, 64, (size_t)(wide * (D + H + 1)) * sizeof(REAL))) return 1;
    REAL *U = room, *W = U + wide * D, *bias = W + wide * H;
    NAME(pack)(D, H, whole->U, 1, U);
    NAME(pack)(H, H, whole->W, 1, W);
    const REAL *b = whole->b, *b2 = whole->b2;
    for (int64_t i = 0; i < H; i++) bias[i] = (b ? b[i] : 0) + (b2 ? b2[i] : 0);
    work->panels = W;
    work->inputs = U;
    work->bias = b || b2 ? bias : NULL;
    if (B >= 6 * parts) work->x = whole->x; /* rows enough for every number of U that is loaded */
    else share(whole->team, threads, NAME(project), whole);
    share(whole->team, parts, NAME(forward), work);
    if (whole->last) memcpy(whole->last, (REAL *)work->h + (work->T - 1) * B * H, (size_t)(B * H) * sizeof(REAL));
    free(room);
    return 0;
}

/* Rows from … to - 1 of a weight's gradient, (H, C) = or, to add, += Σ_n da[n] ⊗ right[n] of N rows, some of the N at a time
   so that what is packed stays in the cache; B6, B7. */
TARGET static void NAME(weight_gradient)(int64_t N, int64_t H, int64_t C, const REAL *da, const REAL *right, REAL *packed,
                                         int add, REAL *to, int64_t from, int64_t until) {
    for (int64_t n = 0; n < N; n += CHUNK) {
        int64_t rows = N - n < CHUNK ? N - n : CHUNK;
        NAME(pack)(rows, C, right + n * C, 0, packed);
        NAME(multiply)(until - from, rows, C, da + n * H + from, 1, H, packed, NULL, add || n > 0,
                       to + from * C);
    }
}

/* A part of what a piece's da is turned into: of the rows of dx, and of those of the weights' gradients. */
TARGET static void NAME(turn)(void *given, int64_t part, int64_t parts) {
    const Whole *whole = given;
    const Work *work = &whole->work;
    int64_t H = work->H, D = work->D, B = work->B, N = work->T * B;
    const REAL *da = work->da, *h = work->h, *x = whole->x ? (const REAL *)whole->x + whole->start * B * D : NULL;
    REAL *packed = (REAL *)whole->room + part * whole->room_of_each, *dU = whole->dU, *dW = whole->dW;
    REAL *dx = whole->dx ? (REAL *)whole->dx + whole->start * B * D : NULL, *db = whole->db, *db2 = whole->db2;
    double *sums = whole->sums;
    int64_t from = NAME(begin)(N, part, parts), to = NAME(begin)(N, part + 1, parts);
    if (dx) NAME(multiply)(to - from, H, D, da + from * H, H, 1, work->inputs, NULL, 0, dx + from * D); /* B8 */
    from = NAME(begin)(H, part, parts), to = NAME(begin)(H, part + 1, parts);
    if (from == to) return;
    int add = whole->stop < whole->T; /* to what the pieces before have left */
    if (!add) memset(sums + from, 0, (size_t)(to - from) * sizeof *sums);
    if (dU) NAME(weight_gradient)(N, H, D, da, x, packed, add, dU, from, to); /* B7 */
    if (dW && whole->start > 0) NAME(weight_gradient)(N, H, H, da, h - B * H, packed, add, dW, from, to); /* B6 */
    if (dW && whole->start == 0) {
        NAME(weight_gradient)(B, H, H, da, work->h0, packed, add, dW, from, to);
        NAME(weight_gradient)(N - B, H, H, da + B * H, h, packed, 1, dW, from, to);
    }
    if (db || db2) /* B5, summed in double: T · B terms, one after the other */
        for (int64_t n = 0; n < N; n++)
            for (int64_t i = from; i < to; i++) sums[i] += (double)da[n * H + i];
    if (whole->start > 0) return;
    for (int64_t i = from; db && i < to; i++) db[i] = (REAL)sums[i];
    for (int64_t i = from; db2 && i < to; i++) db2[i] = (REAL)sums[i];
}

TARGET static int NAME(backward_all)(Whole *whole) {
    Work *work = &whole->work;
    int64_t T = whole->T, H = work->H, D = work->D, B = work->B, wide = NAME(padded)(H), wide_D = NAME(padded)(D);
    int64_t threads = whole->threads, each = CHUNK * (wide > wide_D ? wide : wide_D);
    int64_t rows = TOGETHER / (int64_t)sizeof(REAL) / (2 * H + D), steps = ((rows > CHUNK ? rows : CHUNK) + B - 1) / B;
    if (steps > T) steps = T;
    int64_t piece = NAME(padded)(steps * B * H), doubles = NAME(padded)(2 * H);
    REAL *room;
    if (posix_memalign((void **)&room, 64,
                       (size_t)(doubles + H * (wide + wide_D) + 2 * piece + threads * each) * sizeof(REAL))) return 1;
    REAL *W = room + doubles, *U = W + H * wide, *da = U + H * wide_D;
    NAME(pack)(H, H, whole->W, 0, W);
    if (whole->dx) NAME(pack)(H, D, whole->U, 0, U);
    const REAL *dlast = work->dlast, *dh = work->dh;
    REAL *h = work->h;
    work->panels = W;
    work->inputs = U;
    whole->sums = (double *)room;
    whole->room = da + 2 * piece;
    whole->room_of_each = each;
    for (int64_t stop = T; stop > 0; stop = whole->start) {
        whole->stop = stop;
        whole->start = stop > steps ? stop - steps : 0;
        work->T = stop - whole->start;
        work->h = h + whole->start * B * H;
        work->dh = dh ? dh + whole->start * B * H : NULL;
        work->dlast = stop == T ? dlast : NULL;
        work->later = work->da; /* its first step, or NULL */
        work->da = work->da == da ? da + piece : da;
        share(whole->team, threads < B ? threads : B, NAME(backward), work);
        share(whole->team, threads, NAME(turn), whole);
    }
    if (whole->dh0) NAME(multiply)(B, H, H, work->da, H, 1, W, NULL, 0, whole->dh0); /* B8 */
    free(room);
    return 0;
}

#undef LANES
#undef V
#undef M
#undef IS_DOUBLE
#undef SIGN
#undef COLUMNS
#undef BLOCKS

#endif
