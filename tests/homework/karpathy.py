"""Loss and gradients of a character-level RNN: one sequence of tokens, columns, weights as globals of the module."""

import numpy as np

vocab_size, hidden_size = 5, 8

rng = np.random.default_rng(0)
Wxh = 0.3 * rng.standard_normal((hidden_size, vocab_size))
Whh = 0.3 * rng.standard_normal((hidden_size, hidden_size))
Why = 0.3 * rng.standard_normal((vocab_size, hidden_size))
bh = np.zeros((hidden_size, 1))
by = np.zeros((vocab_size, 1))


def one_hot(token):
    """The column that stands for a token."""
    column = np.zeros((vocab_size, 1), dtype=Wxh.dtype)
    column[token] = 1
    return column


def lossFun(inputs, targets, hprev):
    """Loss of one sequence, summed over its steps; the clipped gradients; and the state to go on from.

    inputs and targets are lists of T tokens, hprev (H, 1) is the state before the first.
    """
    T = len(inputs)

    # forward; h[t] is the state before token t, h[t + 1] the state after it
    h, p = [hprev], []
    loss = 0.0
    for t in range(T):
        a = Wxh @ one_hot(inputs[t]) + Whh @ h[t] + bh  # F1
        h.append(np.tanh(a))  # F2
        o = Why @ h[t + 1] + by  # F3
        e = np.exp(o - o.max())  # the shift changes no ratio and keeps exp in range
        p.append(e / e.sum())  # F4
        loss -= np.log(p[t][targets[t], 0])  # F5

    # backward
    dWxh, dWhh, dWhy = np.zeros_like(Wxh), np.zeros_like(Whh), np.zeros_like(Why)
    dbh, dby = np.zeros_like(bh), np.zeros_like(by)
    carry = np.zeros_like(hprev)  # what the state receives from the next step: nothing after the last
    for t in reversed(range(T)):
        do = p[t].copy()
        do[targets[t]] -= 1  # B1
        dWhy += do @ h[t + 1].T  # B2
        dby += do  # B2
        dh = Why.T @ do + carry  # B3
        da = dh * (1 - h[t + 1] ** 2)  # B4
        dbh += da  # B5
        dWhh += da @ h[t].T  # B6
        dWxh += da @ one_hot(inputs[t]).T  # B7
        carry = Whh.T @ da

    for gradient in (dWxh, dWhh, dWhy, dbh, dby):
        np.clip(gradient, -5, 5, out=gradient)  # against exploding gradients
    return loss, dWxh, dWhh, dWhy, dbh, dby, h[T]
