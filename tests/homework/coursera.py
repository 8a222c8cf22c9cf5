"""A right homework file in the Coursera layout: columns, x (n_x, m, T) with time last, results as dictionaries."""

import numpy as np


def softmax(o):
    """Softmax over the first axis, the classes; the largest score is taken off first, so that exp cannot overflow."""
    e = np.exp(o - o.max(axis=0, keepdims=True))
    return e / e.sum(axis=0, keepdims=True)


def rnn_cell_forward(xt, a_prev, parameters):
    """One step: xt (n_x, m) and the state before it (n_a, m) give the next state and the prediction (n_y, m)."""
    Wax, Waa, Wya = parameters["Wax"], parameters["Waa"], parameters["Wya"]
    ba, by = parameters["ba"], parameters["by"]
    zt = Wax @ xt + Waa @ a_prev + ba  # F1
    a_next = np.tanh(zt)  # F2
    yt_pred = softmax(Wya @ a_next + by)  # F3, F4
    cache = (a_next, a_prev, xt, parameters)
    return a_next, yt_pred, cache


def rnn_cell_backward(da_next, cache):
    """One step back: da_next (n_a, m) is the loss's gradient with respect to the state that the step made."""
    a_next, a_prev, xt, parameters = cache
    Wax, Waa = parameters["Wax"], parameters["Waa"]
    dz = da_next * (1 - a_next**2)  # B4: tanh' written with its own value
    dxt = Wax.T @ dz  # B8
    da_prev = Waa.T @ dz  # this step's part of B3
    dWax = dz @ xt.T
    dWaa = dz @ a_prev.T
    dba = np.sum(dz, axis=1, keepdims=True)
    return {"dxt": dxt, "da_prev": da_prev, "dWax": dWax, "dWaa": dWaa, "dba": dba}


def rnn_forward(x, a0, parameters):
    """All steps of x (n_x, m, T) from a0 (n_a, m): the states (n_a, m, T) and predictions (n_y, m, T)."""
    a, y_pred, caches = [], [], []
    a_next = a0
    for t in range(x.shape[2]):
        a_next, yt_pred, cache = rnn_cell_forward(x[:, :, t], a_next, parameters)
        a.append(a_next)
        y_pred.append(yt_pred)
        caches.append(cache)
    return np.stack(a, axis=2), np.stack(y_pred, axis=2), caches


def rnn_backward(da, caches):
    """All steps back: da (n_a, m, T) holds each step's own loss only, the later steps' share is added here."""
    n_a, m, T = da.shape
    _, _, x1, parameters = caches[0]
    dx = np.zeros((x1.shape[0], m, T), dtype=da.dtype)
    dWax = np.zeros_like(parameters["Wax"])
    dWaa = np.zeros_like(parameters["Waa"])
    dba = np.zeros((n_a, 1), dtype=da.dtype)
    da_prev = np.zeros((n_a, m), dtype=da.dtype)  # nothing comes after the last step
    for t in reversed(range(T)):
        da_next = da[:, :, t] + da_prev  # B3: own loss, and what step t + 1 sends back
        gradients = rnn_cell_backward(da_next, caches[t])
        da_prev = gradients["da_prev"]
        dx[:, :, t] = gradients["dxt"]
        dWax += gradients["dWax"]  # the same weights serve every step, so their gradients add up (B5, B6, B7)
        dWaa += gradients["dWaa"]
        dba += gradients["dba"]
    da0 = da_prev
    return {"dx": dx, "da0": da0, "dWax": dWax, "dWaa": dWaa, "dba": dba}
