/* What Python sees of native.c, as manual_bptt.kernels._native. Nothing is computed here: tensors are looked at and made
   through attributes and methods that torch documents, so that one binary serves every torch, and what cannot be handed to
   C is left to torch's operators, which say what is wrong. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#include "native.h"

enum { VERSION = 4 }; /* as native.py's */
enum { MOST_THREADS = 64 };
static const uintptr_t LOW = (uintptr_t)1 << 40; /* no offset into a storage is as large, and few addresses are lower */

#define NAMES(X)                                                                                                  \
    X(dtype) X(is_cpu) X(is_nested) X(is_neg) X(data_ptr) X(shape) X(contiguous) X(untyped_storage) X(nbytes)      \
    X(requires_grad) X(new_empty) X(empty_like) X(get_num_threads)
#define DECLARE(name) static PyObject *name_##name;
NAMES(DECLARE)
static PyObject *torch, *float32, *float64;
static PyTypeObject *tensor_type, *parameter_type;

/* Threads. The runtime's own stay behind in a process that was forked. */

static int is_forked;
static void note_fork(void) { is_forked = 1; }

static Team team(void) {
    static void *found;
    if (is_forked) return NULL;
    if (!found) found = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    return (Team)found;
}

/* How many threads share some work; -1 with an error. */
static int64_t threads_for(int64_t multiplications, int64_t shared) {
    if (multiplications < shared || !team()) return 1;
    PyObject *set = PyObject_CallMethodNoArgs(torch, name_get_num_threads);
    int64_t threads = set ? PyLong_AsLongLong(set) : -1;
    Py_XDECREF(set);
    return PyErr_Occurred() ? -1 : threads < 1 ? 1 : threads < MOST_THREADS ? threads : MOST_THREADS;
}

/* Looking at tensors. Every question is answered by 1 yes, 0 no, -1 with an error. */

/* A tensor whose numbers may be read, of at most three axes; without one, that is for None, all 0. */
typedef struct {
    PyObject *tensor; /* owned; contiguous after `lay_out` */
    void *data;
    Py_ssize_t axes;
    int64_t sizes[3];
} Array;

static int is(PyObject *answer, PyObject *wanted) {
    Py_XDECREF(answer); /* one of those that live on: only the address is compared */
    return answer ? answer == wanted : -1;
}

static void *address(PyObject *tensor) {
    PyObject *number = PyObject_CallMethodNoArgs(tensor, name_data_ptr);
    void *data = number ? PyLong_AsVoidPtr(number) : NULL;
    Py_XDECREF(number);
    return data;
}

/* Whether a tensor has no memory: its storage was taken away, where it may have an offset yet. */
static int is_without_memory(PyObject *tensor, void *data) {
    if (!data) return 1;
    if ((uintptr_t)data >= LOW) return 0;
    PyObject *storage = PyObject_CallMethodNoArgs(tensor, name_untyped_storage);
    PyObject *bytes = storage ? PyObject_CallMethodNoArgs(storage, name_nbytes) : NULL;
    int64_t size = bytes ? PyLong_AsLongLong(bytes) : -1;
    Py_XDECREF(storage);
    Py_XDECREF(bytes);
    return size < 0 ? -1 : size == 0;
}

static int is_plain(PyObject *value, PyObject *dtype, void **data) {
    if (Py_TYPE(value) != tensor_type && Py_TYPE(value) != parameter_type) return 0;
    int answer = is(PyObject_GetAttr(value, name_dtype), dtype);
    if (answer == 1) answer = is(PyObject_GetAttr(value, name_is_cpu), Py_True);
    if (answer == 1) answer = is(PyObject_GetAttr(value, name_is_nested), Py_False);
    if (answer == 1) answer = is(PyObject_CallMethodNoArgs(value, name_is_neg), Py_False);
    if (answer != 1) return answer;
    *data = address(value);
    if (PyErr_Occurred()) return -1;
    answer = is_without_memory(value, *data);
    return answer < 0 ? -1 : !answer;
}

/* Whether a tensor is nothing but its numbers in the memory of the CPU, and at least one of them: no subclass, not sparse,
   not negated lazily, of no transform. */
static int has_numbers(PyObject *value, PyObject *dtype, void **data) {
    int answer = is_plain(value, dtype, data);
    if (answer < 0 && PyErr_ExceptionMatches(PyExc_RuntimeError)) { /* torch's answer where there is no memory */
        PyErr_Clear();
        return 0;
    }
    return answer;
}

/* The dtype of a value, borrowed, where C knows it; NULL else. */
static PyObject *known_dtype(PyObject *value) {
    if (Py_TYPE(value) != tensor_type && Py_TYPE(value) != parameter_type) return NULL;
    PyObject *dtype = PyObject_GetAttr(value, name_dtype);
    Py_XDECREF(dtype);
    return dtype == float32 || dtype == float64 ? dtype : NULL;
}

static int look_at(PyObject *value, PyObject *dtype, Array *array) {
    memset(array, 0, sizeof *array);
    if (value == Py_None) return 1;
    int answer = has_numbers(value, dtype, &array->data);
    if (answer != 1) return answer;
    PyObject *shape = PyObject_GetAttr(value, name_shape);
    if (!shape) return -1;
    array->axes = PyTuple_Check(shape) ? PyTuple_GET_SIZE(shape) : 4;
    for (Py_ssize_t i = 0; i < array->axes && array->axes <= 3; i++) {
        PyObject *size = PyTuple_GET_ITEM(shape, i);
        array->sizes[i] = PyLong_CheckExact(size) ? PyLong_AsLongLong(size) : 0; /* no symbols */
    }
    Py_DECREF(shape);
    array->tensor = Py_NewRef(value);
    return array->axes <= 3;
}

static void release(Array *arrays, int count) {
    for (int i = 0; i < count; i++) Py_CLEAR(arrays[i].tensor);
}

/* Looks at several values, all of one dtype; leaves nothing to release where the answer is not yes. */
static int look_at_all(PyObject *const *values, int count, PyObject *dtype, Array *arrays) {
    for (int i = 0; i < count; i++) {
        int answer = look_at(values[i], dtype, &arrays[i]);
        if (answer != 1) {
            release(arrays, i + 1);
            return answer;
        }
    }
    return 1;
}

/* Makes arrays contiguous. */
static int lay_out(Array *arrays, int count) {
    for (int i = 0; i < count; i++) {
        if (!arrays[i].tensor) continue;
        PyObject *laid_out = PyObject_CallMethodNoArgs(arrays[i].tensor, name_contiguous);
        if (!laid_out) return -1;
        if (laid_out != arrays[i].tensor) arrays[i].data = address(laid_out);
        Py_SETREF(arrays[i].tensor, laid_out);
        if (PyErr_Occurred()) return -1;
    }
    return 1;
}

static int has_shape(const Array *array, Py_ssize_t axes, int64_t first, int64_t second, int64_t third) {
    const int64_t wanted[] = {first, second, third};
    return array->axes == axes && !memcmp(array->sizes, wanted, (size_t)axes * sizeof *wanted);
}

static int is_none_or(const Array *array, Py_ssize_t axes, int64_t first, int64_t second, int64_t third) {
    return !array->tensor || has_shape(array, axes, first, second, third);
}

/* Making tensors. */

/* A tensor like one, of other sizes, with nothing in it yet; its numbers' address. */
static PyObject *make(PyObject *like, Py_ssize_t axes, const int64_t *sizes, void **data) {
    PyObject *args[4] = {like}, *made = NULL;
    Py_ssize_t count = 1;
    for (; count <= axes; count++)
        if (!(args[count] = PyLong_FromLongLong(sizes[count - 1]))) break;
    if (count > axes) made = PyObject_VectorcallMethod(name_new_empty, args, (size_t)count, NULL);
    while (--count > 0) Py_DECREF(args[count]);
    *data = made ? address(made) : NULL;
    if (made && PyErr_Occurred()) Py_CLEAR(made);
    return made;
}

/* A tensor that looks like a view of one, with nothing in it yet. */
static PyObject *make_like(PyObject *of, PyObject *view, void **data) {
    PyObject *seen = PyObject_CallOneArg(view, of);
    PyObject *made = seen ? PyObject_CallMethodOneArg(torch, name_empty_like, seen) : NULL;
    Py_XDECREF(seen);
    *data = made ? address(made) : NULL;
    if (made && PyErr_Occurred()) Py_CLEAR(made);
    return made;
}

static int has_count(const char *function, Py_ssize_t found, Py_ssize_t wanted) {
    if (found == wanted) return 1;
    PyErr_Format(PyExc_TypeError, "%s: expected %zd values, got %zd", function, wanted, found);
    return 0;
}

/* What a pass is given beside its tensors, as native.py has it. */
typedef struct {
    int64_t f, isa, least_rows, small_weights, most_work, shared;
} Settings;

static int64_t number(PyObject *value) { return PyLong_AsLongLong(value); }

static int settings_of(PyObject *const *args, Settings *settings) {
    PyObject *limits = args[2];
    if (!PyTuple_Check(limits) || PyTuple_GET_SIZE(limits) != 4) {
        PyErr_SetString(PyExc_TypeError, "limits: expected four ints");
        return -1;
    }
    *settings = (Settings){number(args[0]), number(args[1]), number(PyTuple_GET_ITEM(limits, 0)),
                           number(PyTuple_GET_ITEM(limits, 1)), number(PyTuple_GET_ITEM(limits, 2)),
                           number(PyTuple_GET_ITEM(limits, 3))};
    return PyErr_Occurred() ? -1 : 1;
}

static int pays(int64_t rows, int64_t H, int64_t D, const Settings *settings) {
    int64_t weights = H * (H + D);
    return (rows * settings->least_rows >= H || weights <= settings->small_weights) && rows <= settings->most_work / weights;
}

/* The sizes of a whole recurrence, and what decides how it is run. */
typedef struct {
    Settings settings;
    int64_t is_double, T, B, D, H, threads;
} Problem;

enum { X, H0, U, W, BIAS, BIAS2, FORWARD_ARRAYS };
enum { FORWARD_SETTINGS = FORWARD_ARRAYS, FORWARD_VIEW = FORWARD_SETTINGS + 3, FORWARD_LAST, FORWARD_GRAD, FORWARD_ARGS };

/* Whether a whole recurrence can be handed to C, and pays. */
static int forward_fits(PyObject *const *args, Array *arrays, Problem *problem) {
    if (settings_of(args + FORWARD_SETTINGS, &problem->settings) < 0) return -1;
    PyObject *dtype = known_dtype(args[W]);
    if (!dtype) return PyErr_Occurred() ? -1 : 0;
    int answer = look_at_all(args, FORWARD_ARRAYS, dtype, arrays);
    if (answer != 1) return answer;
    const Array *x = &arrays[X];
    int64_t H = arrays[W].sizes[0], D = arrays[U].sizes[1], T = x->axes == 3 ? x->sizes[0] : 1;
    int64_t B = x->axes >= 2 ? x->sizes[x->axes - 2] : 0;
    *problem = (Problem){.settings = problem->settings, .is_double = dtype == float64, .T = T, .B = B, .D = D, .H = H};
    if (B > 0 && D > 0 && H > 0 && x->sizes[x->axes - 1] == D && has_shape(&arrays[H0], 2, B, H, 0) && has_shape(&arrays[U], 2, H, D, 0) &&
        has_shape(&arrays[W], 2, H, H, 0) && is_none_or(&arrays[BIAS], 1, H, 0, 0) &&
        is_none_or(&arrays[BIAS2], 1, H, 0, 0) && pays(T * B, H, D, &problem->settings))
        return 1;
    release(arrays, FORWARD_ARRAYS);
    return 0;
}

enum { DH, DLAST, STATES, BACK_X, BACK_H0, BACK_U, BACK_W, BACKWARD_ARRAYS };
enum { SIZE_D = BACKWARD_ARRAYS, BACKWARD_SETTINGS, NEEDED = BACKWARD_SETTINGS + 3, BACKWARD_ARGS };

/* Whether the gradients of one can be handed to C, and that pays: hooks may have replaced what was kept, and left out what
   is needed. */
static int backward_fits(PyObject *const *args, Array *arrays, Problem *problem) {
    int64_t D = number(args[SIZE_D]);
    PyObject *needed = args[NEEDED];
    if (!has_count("needed", PyTuple_Check(needed) ? PyTuple_GET_SIZE(needed) : 0, 6)) return -1;
    if (settings_of(args + BACKWARD_SETTINGS, &problem->settings) < 0) return -1;
    PyObject *dtype = known_dtype(args[BACK_W]);
    if (!dtype) return PyErr_Occurred() ? -1 : 0;
    int answer = look_at_all(args, BACKWARD_ARRAYS, dtype, arrays);
    if (answer != 1) return answer;
    const Array *h = &arrays[STATES], *x = &arrays[BACK_X], *dh = &arrays[DH];
    const Array *read[] = {&arrays[BACK_U], NULL, x, &arrays[BACK_H0]}; /* for dx, dh0, dU and dW */
    int is_there = 1;
    for (int i = 0; i < 4; i++)
        if (read[i] && !read[i]->tensor && PyTuple_GET_ITEM(needed, i) == Py_True) is_there = 0;
    Py_ssize_t axes = h->axes;
    int64_t H = arrays[BACK_W].sizes[0], T = axes == 3 ? h->sizes[0] : 1, B = axes >= 2 ? h->sizes[axes - 2] : 0;
    *problem = (Problem){.settings = problem->settings, .is_double = dtype == float64, .T = T, .B = B, .D = D, .H = H};
    if (is_there && B > 0 && D > 0 && H > 0 && h->sizes[axes - 1] == H && has_shape(&arrays[BACK_W], 2, H, H, 0) &&
        is_none_or(dh, axes, h->sizes[0], h->sizes[1], h->sizes[2]) && is_none_or(&arrays[DLAST], 3, 1, B, H) &&
        (axes == 3 ? is_none_or(x, 3, T, B, D) : is_none_or(x, 2, B, D, 0)) && is_none_or(&arrays[BACK_H0], 2, B, H, 0) &&
        is_none_or(&arrays[BACK_U], 2, H, D, 0) && pays(T * B, H, D, &problem->settings))
        return 1;
    release(arrays, BACKWARD_ARRAYS);
    return 0;
}

/* Makes the arrays of a problem contiguous and finds how many threads it is worth. */
static int prepare(Array *arrays, int count, Problem *problem) {
    int64_t rows = problem->T * problem->B, weights = problem->H * (problem->H + problem->D);
    problem->threads = threads_for(rows * weights, problem->settings.shared);
    return problem->threads < 0 ? -1 : lay_out(arrays, count);
}

static PyObject *answer_of(int answer) { return answer < 0 ? NULL : PyBool_FromLong(answer); }

PyDoc_STRVAR(fits_doc, "fits(x, h0, U, W, b, b2, f, isa, limits): whether `forward` would run.");
static PyObject *fits(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    Array arrays[FORWARD_ARRAYS];
    Problem problem;
    if (!has_count("fits", count, FORWARD_VIEW)) return NULL;
    int answer = forward_fits(args, arrays, &problem);
    if (answer == 1) release(arrays, FORWARD_ARRAYS);
    return answer_of(answer);
}

/* Whether one of some tensors asks for a gradient. */
static int asks_for_gradient(const Array *arrays, int count) {
    int answer = 0;
    for (int i = 0; i < count && answer == 0; i++)
        if (arrays[i].tensor) answer = is(PyObject_GetAttr(arrays[i].tensor, name_requires_grad), Py_True);
    return answer;
}

PyDoc_STRVAR(forward_doc, "forward(x, h0, U, W, b, b2, f, isa, limits, view, last, grad): (h, copy, last, has_graph), or None: "
                          "not for C. Where grad is on, there is a copy only where one of the tensors asks for a gradient.");
static PyObject *forward(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    Array arrays[FORWARD_ARRAYS];
    Problem problem;
    if (!has_count("forward", count, FORWARD_ARGS)) return NULL;
    int answer = forward_fits(args, arrays, &problem);
    if (answer < 0) return NULL;
    if (answer == 0) Py_RETURN_NONE;
    PyObject *h = NULL, *copy = NULL, *last = NULL, *result = NULL;
    Forward given = {0};
    int grad = args[FORWARD_GRAD] == Py_True, has_graph = grad ? asks_for_gradient(arrays, FORWARD_ARRAYS) : 0;
    if (has_graph < 0 || prepare(arrays, FORWARD_ARRAYS, &problem) < 0) goto end;
    Py_ssize_t axes = arrays[X].axes;
    const int64_t steps[] = {problem.T, problem.B, problem.H}, ending[] = {1, problem.B, problem.H};
    given = (Forward){problem.is_double, problem.settings.isa, problem.threads, team(), problem.T, problem.B, problem.D,
                      problem.H, problem.settings.f, arrays[X].data, arrays[H0].data, arrays[U].data, arrays[W].data,
                      arrays[BIAS].data, arrays[BIAS2].data, NULL, NULL, NULL};
    if (!(h = make(arrays[W].tensor, axes, steps + 3 - axes, &given.h))) goto end;
    if (args[FORWARD_VIEW] == Py_None || (grad && !has_graph)) copy = Py_NewRef(Py_None);
    else if (!(copy = make_like(h, args[FORWARD_VIEW], &given.copy))) goto end;
    if (args[FORWARD_LAST] != Py_True) last = Py_NewRef(Py_None);
    else if (!(last = make(arrays[W].tensor, 3, ending, &given.last))) goto end;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = manual_bptt_forward_all(&given);
    Py_END_ALLOW_THREADS
    if (failed)
        PyErr_Format(PyExc_MemoryError,
                     "recurrence: expected room for copies of U, (%lld, %lld), and W, (%lld, %lld), got none",
                     (long long)problem.H, (long long)problem.D, (long long)problem.H, (long long)problem.H);
    else result = PyTuple_Pack(4, h, copy, last, has_graph ? Py_True : Py_False);
end:
    release(arrays, FORWARD_ARRAYS);
    Py_XDECREF(h);
    Py_XDECREF(copy);
    Py_XDECREF(last);
    return result;
}

PyDoc_STRVAR(backward_doc, "backward(dh, dlast, h, x, h0, U, W, D, f, isa, limits, needed): (dx, dh0, dU, dW, db, db2), each "
                           "where it is needed, or None: not for C.");
static PyObject *backward(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    Array arrays[BACKWARD_ARRAYS];
    Problem problem;
    if (!has_count("backward", count, BACKWARD_ARGS)) return NULL;
    PyObject *needed = args[NEEDED];
    int answer = backward_fits(args, arrays, &problem);
    if (answer < 0) return NULL;
    if (answer == 0) Py_RETURN_NONE;
    PyObject *result = NULL;
    if (prepare(arrays, BACKWARD_ARRAYS, &problem) < 0) goto end;
    Py_ssize_t axes = arrays[STATES].axes;
    int64_t T = problem.T, B = problem.B, D = problem.D, H = problem.H;
    const int64_t sizes[6][3] = {{T, B, D}, {0, B, H}, {0, H, D}, {0, H, H}, {0, 0, H}, {0, 0, H}};
    const Py_ssize_t axes_of[] = {axes, 2, 2, 2, 1, 1};
    void *made[6] = {NULL};
    if (!(result = PyTuple_New(6))) goto end;
    for (int i = 0; i < 6; i++) {
        int wanted = PyTuple_GET_ITEM(needed, i) == Py_True;
        PyObject *each = wanted ? make(arrays[STATES].tensor, axes_of[i], sizes[i] + 3 - axes_of[i], &made[i])
                                : Py_NewRef(Py_None);
        if (!each) {
            Py_CLEAR(result);
            goto end;
        }
        PyTuple_SET_ITEM(result, i, each);
    }
    Backward given = {problem.is_double, problem.settings.isa, problem.threads, team(), T, B, D, H, problem.settings.f,
                      arrays[DH].data, arrays[DLAST].data, arrays[STATES].data, arrays[BACK_X].data,
                      arrays[BACK_H0].data, arrays[BACK_U].data, arrays[BACK_W].data, made[0], made[1], made[2], made[3],
                      made[4], made[5]};
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = manual_bptt_backward_all(&given);
    Py_END_ALLOW_THREADS
    if (failed) {
        PyErr_Format(PyExc_MemoryError, "recurrence: expected room for copies of h, (%lld, %lld, %lld), got none",
                     (long long)T, (long long)B, (long long)H);
        Py_CLEAR(result);
    }
end:
    release(arrays, BACKWARD_ARRAYS);
    return result;
}

PyDoc_STRVAR(run_doc, "run(backward, is_double, isa, shared, T, B, H, f, starts, h, first, da, W, xi): the sequential steps "
                      "alone. starts and xi are bytes or None, h, first, da and W addresses.");
static PyObject *run(PyObject *module, PyObject *args) {
    int back, is_double, isa;
    long long shared, T, B, H, f;
    Py_buffer starts, xi;
    unsigned long long h, first, da, panels;
    if (!PyArg_ParseTuple(args, "iiiLLLLLz*KKKKz*", &back, &is_double, &isa, &shared, &T, &B, &H, &f, &starts, &h, &first, &da,
                          &panels, &xi))
        return NULL;
    int64_t rows = starts.buf ? ((const int64_t *)starts.buf)[T] - ((const int64_t *)starts.buf)[0] : T * B;
    int64_t threads = threads_for(rows * H * H, shared);
    int failed = 0;
    if (threads > 0) {
        Py_BEGIN_ALLOW_THREADS
        failed = manual_bptt_run(back, is_double, isa, threads, team(), T, B, H, f, starts.buf, (void *)(uintptr_t)h,
                                 (void *)(uintptr_t)first, (void *)(uintptr_t)da, (void *)(uintptr_t)panels, xi.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&starts);
    PyBuffer_Release(&xi);
    if (threads < 0) return NULL;
    if (failed) return PyErr_Format(PyExc_MemoryError, "recurrence: expected room for a copy of W, (%lld, %lld), got none", H, H);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(plain_doc, "plain(values): whether tensors, or None, can be handed to C: of one dtype, float32 or float64, and "
                        "nothing but their numbers in memory. The first one is a tensor.");
static PyObject *plain(PyObject *module, PyObject *values) {
    if (!PyTuple_Check(values) || PyTuple_GET_SIZE(values) == 0)
        return PyErr_Format(PyExc_TypeError, "plain: expected a tuple of tensors");
    PyObject *dtype = known_dtype(PyTuple_GET_ITEM(values, 0));
    int answer = dtype ? 1 : PyErr_Occurred() ? -1 : 0;
    for (Py_ssize_t i = 0; answer == 1 && i < PyTuple_GET_SIZE(values); i++) {
        void *data;
        PyObject *value = PyTuple_GET_ITEM(values, i);
        if (value != Py_None) answer = has_numbers(value, dtype, &data);
    }
    return answer_of(answer);
}

PyDoc_STRVAR(apply_doc, "apply(is_double, isa, f, n, address): f of n numbers in place.");
static PyObject *apply(PyObject *module, PyObject *args) {
    int is_double, isa;
    long long f, n;
    unsigned long long values;
    if (!PyArg_ParseTuple(args, "iiLLK", &is_double, &isa, &f, &n, &values)) return NULL;
    manual_bptt_apply(is_double, isa, f, n, (void *)(uintptr_t)values);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(has_team_doc, "has_team(): whether there is what starts threads.");
static PyObject *has_team(PyObject *module, PyObject *unused) { return PyBool_FromLong(team() != NULL); }

PyDoc_STRVAR(isa_doc, "isa(): the best instruction set of this machine, as native.py numbers them.");
static PyObject *isa(PyObject *module, PyObject *unused) { return PyLong_FromLong(manual_bptt_isa()); }

static PyMethodDef methods[] = {
    {"fits", (PyCFunction)(void (*)(void))fits, METH_FASTCALL, fits_doc},
    {"forward", (PyCFunction)(void (*)(void))forward, METH_FASTCALL, forward_doc},
    {"backward", (PyCFunction)(void (*)(void))backward, METH_FASTCALL, backward_doc},
    {"run", run, METH_VARARGS, run_doc},
    {"plain", plain, METH_O, plain_doc},
    {"apply", apply, METH_VARARGS, apply_doc},
    {"has_team", has_team, METH_NOARGS, has_team_doc},
    {"isa", isa, METH_NOARGS, isa_doc},
    {NULL, NULL, 0, NULL},
};

static int start(PyObject *module) {
#define INTERN(name)                                                    \
    if (!(name_##name = PyUnicode_InternFromString(#name))) return -1;
    NAMES(INTERN)
    PyObject *nn = PyImport_ImportModule("torch.nn");
    torch = PyImport_ImportModule("torch");
    if (!nn || !torch) return -1;
    float32 = PyObject_GetAttrString(torch, "float32");
    float64 = PyObject_GetAttrString(torch, "float64");
    tensor_type = (PyTypeObject *)PyObject_GetAttrString(torch, "Tensor");
    parameter_type = (PyTypeObject *)PyObject_GetAttrString(nn, "Parameter");
    Py_DECREF(nn);
    if (!float32 || !float64 || !tensor_type || !parameter_type) return -1;
    if (pthread_atfork(NULL, NULL, note_fork)) {
        PyErr_NoMemory();
        return -1;
    }
    return PyModule_AddIntConstant(module, "VERSION", VERSION);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, start},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED}, /* nothing is written after the start */
#endif
    {0, NULL},
};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = 0, .m_methods = methods,
                                 .m_slots = slots};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
