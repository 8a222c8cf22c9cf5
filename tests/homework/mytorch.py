"""An RNN by hand with two biases: a cell that adds up its gradients, and a sequence that uses it.

Arrays are (batch, time, features), weights are (out, in). Every gradient is summed over the batch.
"""

import numpy as np


class RNNCell:
    """One time step: h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)."""

    def __init__(self, input_size, hidden_size):
        bound = 1 / np.sqrt(hidden_size)
        self.W_ih = np.random.uniform(-bound, bound, (hidden_size, input_size))
        self.W_hh = np.random.uniform(-bound, bound, (hidden_size, hidden_size))
        self.b_ih = np.zeros(hidden_size)
        self.b_hh = np.zeros(hidden_size)
        self.zero_grad()

    def zero_grad(self):
        """Set the four gradients to zero."""
        self.dW_ih = np.zeros_like(self.W_ih)
        self.dW_hh = np.zeros_like(self.W_hh)
        self.db_ih = np.zeros_like(self.b_ih)
        self.db_hh = np.zeros_like(self.b_hh)

    def forward(self, x, h_prev_t):
        """Return h_t (N, H) for x (N, D) and h_prev_t (N, H)."""
        return np.tanh(x @ self.W_ih.T + self.b_ih + h_prev_t @ self.W_hh.T + self.b_hh)

    def backward(self, delta, h_t, h_prev_l, h_prev_t):
        """Return dx and dh_prev_t for delta = dL/dh_t (N, H); h_prev_l is the step's input x."""
        da = delta * (1 - h_t**2)
        self.dW_ih += da.T @ h_prev_l
        self.dW_hh += da.T @ h_prev_t
        self.db_ih += da.sum(axis=0)
        self.db_hh += da.sum(axis=0)  # as db_ih: both biases enter the same sum
        return da @ self.W_ih, da @ self.W_hh


def rnn_forward(x, h0, W_ih, W_hh, b_ih, b_hh):
    """Run one cell over x (N, T, D) from h0 (N, H); return h (N, T, H) and a cache."""
    cell = RNNCell(x.shape[2], h0.shape[1])
    cell.W_ih, cell.W_hh, cell.b_ih, cell.b_hh = W_ih, W_hh, b_ih, b_hh

    hiddens = [h0]
    for t in range(x.shape[1]):
        hiddens.append(cell.forward(x[:, t], hiddens[t]))
    return np.stack(hiddens[1:], axis=1), (cell, x, hiddens)


def rnn_backward(dh, cache):
    """Walk back through the sequence; dh (N, T, H) holds dL/dh_t of each step's own loss."""
    cell, x, hiddens = cache
    cell.zero_grad()

    dx = np.zeros_like(x)
    carry = np.zeros_like(hiddens[0])
    for t in reversed(range(x.shape[1])):
        delta = dh[:, t] + carry
        dx[:, t], carry = cell.backward(delta, hiddens[t + 1], x[:, t], hiddens[t])

    dh0 = carry
    return dx, dh0, cell.dW_ih, cell.dW_hh, cell.db_ih, cell.db_hh
