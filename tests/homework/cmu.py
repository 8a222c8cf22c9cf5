"""An RNN by hand with two biases: one cell, a whole sequence, a classifier on the last state.

Arrays are (batch, time, features), weights are (out, in). The gradients of weights and biases are averaged over the
batch; dx and dh0 are not.
"""

import numpy as np


class RNNCell:
    """One time step: h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)."""

    def __init__(self, input_size, hidden_size):
        bound = 1 / np.sqrt(hidden_size)
        self.W_ih = np.random.uniform(-bound, bound, (hidden_size, input_size))
        self.W_hh = np.random.uniform(-bound, bound, (hidden_size, hidden_size))
        self.b_ih = np.random.uniform(-bound, bound, hidden_size)
        self.b_hh = np.random.uniform(-bound, bound, hidden_size)
        self.zero_grad()

    def zero_grad(self):
        """Forget the gradients of earlier steps."""
        self.dW_ih = np.zeros_like(self.W_ih)
        self.dW_hh = np.zeros_like(self.W_hh)
        self.db_ih = np.zeros_like(self.b_ih)
        self.db_hh = np.zeros_like(self.b_hh)

    def forward(self, x, h_prev_t):
        """Return h_t (N, H) for x (N, D) and the state before, h_prev_t (N, H)."""
        return np.tanh(x @ self.W_ih.T + self.b_ih + h_prev_t @ self.W_hh.T + self.b_hh)

    def backward(self, delta, h_t, h_prev_l, h_prev_t):
        """Return dx and dh_prev_t for delta = dL/dh_t (N, H); h_prev_l is the step's input x."""
        batch_size = len(delta)
        da = delta * (1 - h_t**2)

        # every step of a sequence adds its share
        self.dW_ih += da.T @ h_prev_l / batch_size
        self.dW_hh += da.T @ h_prev_t / batch_size
        self.db_ih += da.sum(axis=0) / batch_size
        self.db_hh += da.sum(axis=0) / batch_size

        dx = da @ self.W_ih
        dh_prev_t = da @ self.W_hh
        return dx, dh_prev_t


def rnn_forward(x, h0, W_ih, W_hh, b_ih, b_hh):
    """Run over x (N, T, D) from h0 (N, H); return h (N, T, H) and what the way back needs."""
    hiddens = [h0]
    h_t = h0
    for t in range(x.shape[1]):
        a_t = x[:, t] @ W_ih.T + b_ih + h_t @ W_hh.T + b_hh
        h_t = np.tanh(a_t)
        hiddens.append(h_t)
    return np.stack(hiddens[1:], axis=1), (x, hiddens, W_ih, W_hh, b_ih, b_hh)


def rnn_backward(dh, cache):
    """Go back through the sequence; dh (N, T, H) is what the loss of each step sends to its own h_t."""
    x, hiddens, W_ih, W_hh, b_ih, b_hh = cache
    N, T, _ = x.shape
    dx = np.zeros_like(x)
    dW_ih = np.zeros_like(W_ih)
    dW_hh = np.zeros_like(W_hh)
    db_ih = np.zeros_like(b_ih)
    db_hh = np.zeros_like(b_hh)

    carry = np.zeros_like(hiddens[0])  # what the steps after t send to h_t
    for t in reversed(range(T)):
        dh_t = dh[:, t] + carry
        da_t = dh_t * (1 - hiddens[t + 1] ** 2)
        dW_ih += da_t.T @ x[:, t]
        dW_hh += da_t.T @ hiddens[t]  # hiddens[t] is the state before this step
        db_ih += da_t.sum(axis=0)
        db_hh += da_t.sum(axis=0)
        dx[:, t] = da_t @ W_ih
        carry = da_t @ W_hh

    dh0 = carry
    return dx, dh0, dW_ih / N, dW_hh / N, db_ih / N, db_hh / N


def softmax(o):
    """Probabilities of the classes, a row for each example."""
    exps = np.exp(o - o.max(axis=1, keepdims=True))
    return exps / exps.sum(axis=1, keepdims=True)


def rnn_loss(x, y, h0, W_ih, W_hh, b_ih, b_hh, W_out, b_out):
    """Cross-entropy of the last state's classes, summed over the batch, with every gradient; y (N,) class indices."""
    N, T, D = x.shape
    cell = RNNCell(D, h0.shape[1])
    cell.W_ih, cell.W_hh, cell.b_ih, cell.b_hh = W_ih, W_hh, b_ih, b_hh
    cell.zero_grad()

    hs = [h0]
    for t in range(T):
        hs.append(cell.forward(x[:, t], hs[t]))
    o = hs[T] @ W_out.T + b_out
    p = softmax(o)
    loss = -np.log(p[np.arange(N), y]).sum()

    do = p.copy()
    do[np.arange(N), y] -= 1
    dW_out = do.T @ hs[T] / N
    db_out = do.sum(axis=0) / N

    dx = np.zeros_like(x)
    dh = do @ W_out  # only the last state feeds the loss directly
    for t in reversed(range(T)):
        dx[:, t], dh = cell.backward(dh, hs[t + 1], x[:, t], hs[t])

    return loss, {
        "dx": dx,
        "dh0": dh,
        "dW_ih": cell.dW_ih,
        "dW_hh": cell.dW_hh,
        "db_ih": cell.db_ih,
        "db_hh": cell.db_hh,
        "dW_out": dW_out,
        "db_out": db_out,
    }
