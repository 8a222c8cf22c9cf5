"""A linear RNN by hand, as in a derivation that leaves the activation out: h_t = x_t W_xh + h_{t-1} W_hh + b_h.

Arrays are (time, batch, features), weights are (in, out). The loss is the mean over all T * N predictions.
"""

import numpy as np


def rnn_forward(X, H0, W_xh, W_hh, b_h):
    """Run over X (T, N, D) from H0 (N, H); return H (T, N, H) and what the way back needs."""
    states = [H0]
    for t in range(len(X)):
        states.append(X[t] @ W_xh + states[t] @ W_hh + b_h)
    return np.stack(states[1:]), (X, states, W_xh, W_hh, b_h)


def rnn_backward(dH, cache):
    """Go back through the sequence; dH (T, N, H) is what the loss of each step sends to its own state."""
    X, states, W_xh, W_hh, b_h = cache
    T = len(X)
    dX = np.zeros_like(X)
    dW_xh = np.zeros_like(W_xh)
    dW_hh = np.zeros_like(W_hh)
    db_h = np.zeros_like(b_h)

    from_later = np.zeros_like(states[0])
    for t in reversed(range(T)):
        dh = dH[t] + from_later  # with no activation this is dL/da too
        dW_xh += X[t].T @ dh
        dW_hh += states[t].T @ dh
        db_h += dh.sum(axis=0)
        dX[t] = dh @ W_xh.T
        from_later = dh @ W_hh.T

    dH0 = from_later
    return {"dX": dX, "dH0": dH0, "dW_xh": dW_xh, "dW_hh": dW_hh, "db_h": db_h}


def softmax(scores):
    """Probabilities along the last axis."""
    exps = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exps / exps.sum(axis=-1, keepdims=True)


def rnn_gradients(X, Y, H0, W_xh, W_hh, b_h, W_hq, b_q):
    """Mean cross-entropy of all predictions, with every gradient; Y (T, N) holds class indices."""
    T, N = Y.shape
    steps, rows = np.indices(Y.shape)
    H, cache = rnn_forward(X, H0, W_xh, W_hh, b_h)
    scores = H @ W_hq + b_q
    P = softmax(scores)
    loss = -np.log(P[steps, rows, Y]).mean()

    dscores = P.copy()
    dscores[steps, rows, Y] -= 1
    dscores /= T * N
    dW_hq = sum(H[t].T @ dscores[t] for t in range(T))
    db_q = dscores.sum(axis=(0, 1))

    grads = rnn_backward(dscores @ W_hq.T, cache)
    return loss, {**grads, "dW_hq": dW_hq, "db_q": db_q}
