"""Gradients of an RNN for one sequence of columns: letters U, W, V, b, c in a dict, loss averaged over time."""

import numpy as np


def softmax(scores):
    """Turn every column of scores (K, T) into probabilities."""
    e = np.exp(scores - scores.max(axis=0, keepdims=True))  # the shift changes no ratio and keeps exp in range
    return e / e.sum(axis=0, keepdims=True)


def forward_pass(X, h0, RNN):
    """Run the network over the columns of X (D, T); return H (m, T + 1), whose column 0 is h0, and P (K, T)."""
    U, W, V, b, c = (RNN[name] for name in "UWVbc")
    states = [h0]
    for t in range(X.shape[1]):
        a_t = U @ X[:, [t]] + W @ states[-1] + b  # F1
        states.append(np.tanh(a_t))  # F2
    H = np.hstack(states)
    P = softmax(V @ H[:, 1:] + c)  # F3, F4
    return H, P


def compute_gradients(X, Y, h0, RNN):
    """Loss of one sequence, cross-entropy averaged over its steps, and the gradients of the parameters.

    X (D, T) holds any numbers, Y (K, T) one-hot columns; h0 (m, 1); RNN = {U, W, V, b, c} with b (m, 1), c (K, 1).
    """
    U, W, V, b, c = (RNN[name] for name in "UWVbc")
    T = X.shape[1]
    H, P = forward_pass(X, h0, RNN)
    loss = -np.mean(np.log(np.sum(Y * P, axis=0)))  # F5
    E = (P - Y) / T  # B1, all steps at once

    dU, dW, dV, db, dc = [np.zeros_like(parameter) for parameter in (U, W, V, b, c)]
    carry = np.zeros_like(h0)  # what h_t receives from step t + 1: nothing after the last step
    for t in reversed(range(T)):
        e_t, x_t = E[:, [t]], X[:, [t]]
        h_before, h_t = H[:, [t]], H[:, [t + 1]]
        dV += e_t @ h_t.T  # B2
        dc += e_t  # B2
        dh_t = V.T @ e_t + carry  # B3
        da_t = dh_t * (1 - h_t**2)  # B4
        db += da_t  # B5
        dW += da_t @ h_before.T  # B6
        dU += da_t @ x_t.T  # B7
        carry = W.T @ da_t
    return loss, {"U": dU, "W": dW, "V": dV, "b": db, "c": dc}
