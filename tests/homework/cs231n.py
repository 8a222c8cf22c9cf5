"""A right homework file in the CS231n layout: rows, x (N, T, D), weights as (input, output)."""

import numpy as np


def rnn_step_forward(x, prev_h, Wx, Wh, b):
    """One step: x (N, D) and the state before it (N, H) give the next state (N, H)."""
    a = x @ Wx + prev_h @ Wh + b  # F1
    next_h = np.tanh(a)  # F2
    cache = (x, prev_h, Wx, Wh, next_h)
    return next_h, cache


def rnn_step_backward(dnext_h, cache):
    """One step back: dnext_h (N, H) is dL/dh of the state that the step made."""
    x, prev_h, Wx, Wh, next_h = cache
    da = dnext_h * (1 - next_h**2)  # B4: tanh' written with its own value
    dx = da @ Wx.T  # B8
    dprev_h = da @ Wh.T  # this step's part of B3
    dWx = x.T @ da
    dWh = prev_h.T @ da
    db = da.sum(axis=0)
    return dx, dprev_h, dWx, dWh, db


def rnn_forward(x, h0, Wx, Wh, b):
    """All steps of x (N, T, D) from h0 (N, H): the states h (N, T, H)."""
    h, cache = [], []
    prev_h = h0
    for t in range(x.shape[1]):
        prev_h, step_cache = rnn_step_forward(x[:, t], prev_h, Wx, Wh, b)
        h.append(prev_h)
        cache.append(step_cache)
    return np.stack(h, axis=1), cache


def rnn_backward(dh, cache):
    """All steps back: dh (N, T, H) holds each step's own loss only, the later steps' share is added here."""
    N, T, H = dh.shape
    _, _, Wx, Wh, _ = cache[0]
    dx = np.zeros((N, T, Wx.shape[0]), dtype=dh.dtype)
    dWx = np.zeros_like(Wx)
    dWh = np.zeros_like(Wh)
    db = np.zeros(H, dtype=dh.dtype)
    dprev_h = np.zeros((N, H), dtype=dh.dtype)  # nothing comes after the last step
    for t in reversed(range(T)):
        dnext_h = dh[:, t] + dprev_h  # B3: own loss, and what step t + 1 sends back
        dx[:, t], dprev_h, dWx_t, dWh_t, db_t = rnn_step_backward(dnext_h, cache[t])
        dWx += dWx_t  # the same weights serve every step, so their gradients add up (B5, B6, B7)
        dWh += dWh_t
        db += db_t
    dh0 = dprev_h
    return dx, dh0, dWx, dWh, db


def softmax(scores):
    """Softmax over the last axis; the largest score is taken off first, so that exp cannot overflow."""
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rnn_loss(x, y, mask, h0, Wx, Wh, b, W_vocab, b_vocab):
    """Loss and gradients for the words y (N, T): summed over the steps where mask is true, divided by N."""
    N, T = y.shape
    h, cache = rnn_forward(x, h0, Wx, Wh, b)
    scores = h @ W_vocab + b_vocab  # F3: (N, T, K)
    probs = softmax(scores)  # F4

    word = (np.arange(N)[:, None], np.arange(T), y)  # the entry of the right word at every (n, t)
    dscores = probs.copy()  # B1: probs minus one-hot
    dscores[word] -= 1
    dscores *= mask[:, :, None] / N
    loss = -np.sum(mask * np.log(probs[word])) / N  # F5

    dW_vocab = np.zeros_like(W_vocab)
    for t in range(T):
        dW_vocab += h[:, t].T @ dscores[:, t]  # B2
    db_vocab = dscores.sum(axis=(0, 1))
    dh = dscores @ W_vocab.T
    dx, dh0, dWx, dWh, db = rnn_backward(dh, cache)
    grads = {"dx": dx, "dh0": dh0, "dWx": dWx, "dWh": dWh, "db": db, "dW_vocab": dW_vocab, "db_vocab": db_vocab}
    return loss, grads
