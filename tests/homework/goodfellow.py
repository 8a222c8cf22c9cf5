"""Back-propagation through time for an Elman network, time first, in the letters U, W, V, b, c of the book."""

import numpy as np


def rnn_forward(x, h0, U, W, b):
    """Run the recurrence alone: x (T, N, D) and h0 (N, H) give the states h (T, N, H) and a cache."""
    states = []
    h_prev = h0
    for x_t in x:
        h_t = np.tanh(x_t @ U.T + h_prev @ W.T + b)  # F1, F2
        states.append(h_t)
        h_prev = h_t
    h = np.stack(states)
    return h, (x, h, h0, U, W)


def rnn_backward(dh, cache):
    """Gradients of the recurrence, given dh (T, N, H): what each state receives from the loss of its own step."""
    x, h, h0, U, W = cache
    dx, dU, dW, db = np.zeros_like(x), np.zeros_like(U), np.zeros_like(W), np.zeros_like(W[0])

    carry = np.zeros_like(h0)  # what h_t receives from step t + 1: nothing after the last step
    for t in reversed(range(len(x))):
        h_prev = h[t - 1] if t > 0 else h0
        dh_t = dh[t] + carry  # B3
        da_t = dh_t * (1 - h[t] ** 2)  # B4
        db += da_t.sum(axis=0)  # B5
        dW += da_t.T @ h_prev  # B6
        dU += da_t.T @ x[t]  # B7
        dx[t] = da_t @ U  # B8
        carry = da_t @ W
    return {"dx": dx, "dh0": carry, "dU": dU, "dW": dW, "db": db}


def softmax(o):
    """Turn every row of o (N, K) into probabilities."""
    e = np.exp(o - o.max(axis=1, keepdims=True))  # the shift changes no ratio and keeps exp in range
    return e / e.sum(axis=1, keepdims=True)


def bptt(x, y, mask, h0, U, W, V, b, c):
    """Loss of the whole network, cross-entropy summed over steps and sequences, and its gradients.

    x (T, N, D); y (T, N) class indices; mask (T, N), 0 where a step does not count; h0 (N, H); U (H, D); W (H, H);
    V (K, H); b (H,); c (K,). The states and their gradients come back too, to compare with a sheet of paper.
    """
    T, N, _ = x.shape
    K, H = V.shape
    one_hot = np.eye(K, dtype=x.dtype)[y]  # (T, N, K)
    mask = mask.astype(x.dtype)

    # forward
    a, o = np.zeros((T, N, H), dtype=x.dtype), np.zeros((T, N, K), dtype=x.dtype)
    h, p = np.zeros_like(a), np.zeros_like(o)
    state = h0
    for t in range(T):
        a[t] = x[t] @ U.T + state @ W.T + b  # F1
        h[t] = np.tanh(a[t])  # F2
        o[t] = h[t] @ V.T + c  # F3
        p[t] = softmax(o[t])  # F4
        state = h[t]
    loss = -np.sum(mask * np.log(np.sum(one_hot * p, axis=2)))  # F5

    # backward
    h_before = np.concatenate([h0[None], h[:-1]])  # row t is the state that step t started from
    do = (p - one_hot) * mask[:, :, None]  # B1
    dh, da, dx = np.zeros_like(h), np.zeros_like(h), np.zeros_like(x)
    dU, dW, dV, db, dc = [np.zeros_like(parameter) for parameter in (U, W, V, b, c)]
    for t in reversed(range(T)):
        dV += do[t].T @ h[t]  # B2
        dc += do[t].sum(axis=0)  # B2
        dh[t] = do[t] @ V  # B3, from the output of this step
        if t < T - 1:
            dh[t] += da[t + 1] @ W  # B3, from the next step
        da[t] = dh[t] * (1 - h[t] ** 2)  # B4
        db += da[t].sum(axis=0)  # B5
        dW += da[t].T @ h_before[t]  # B6
        dU += da[t].T @ x[t]  # B7
        dx[t] = da[t] @ U  # B8
    dh0 = da[0] @ W  # B8

    gradients = {"dU": dU, "dW": dW, "dV": dV, "db": db, "dc": dc, "dx": dx, "dh0": dh0}
    intermediates = {"h": h, "o": o, "p": p, "do": do, "dh": dh, "da": da}
    return loss, gradients | intermediates
