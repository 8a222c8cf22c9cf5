"""An RNN by hand on torch tensors, with torch's names, two biases and time first; no autograd.

Weights are (out, in), x is (T, N, D). The loss is the mean over all T * N predictions.
"""

import torch


def rnn_forward(x, h0, weight_ih, weight_hh, bias_ih, bias_hh):
    """Run over x (T, N, D) from h0 (N, H); return output (T, N, H) and what the way back needs."""
    states = [h0]
    h = h0
    for x_t in x:
        a = x_t @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh
        h = torch.tanh(a)
        states.append(h)
    return torch.stack(states[1:]), (x, states, weight_ih, weight_hh, bias_ih, bias_hh)


def rnn_backward(grad_output, cache):
    """Go back through the sequence; grad_output (T, N, H) is what the loss of each step sends to its own state."""
    x, states, weight_ih, weight_hh, bias_ih, bias_hh = cache
    T, N, _ = x.shape
    dx = torch.zeros_like(x)
    dweight_ih = torch.zeros_like(weight_ih)
    dweight_hh = torch.zeros_like(weight_hh)
    dbias_ih = torch.zeros_like(bias_ih)
    dbias_hh = torch.zeros_like(bias_hh)

    later = torch.zeros(N, len(weight_hh), dtype=x.dtype)  # what the steps after t send to state t
    for t in reversed(range(T)):
        grad_h = grad_output[t] + later
        grad_a = grad_h * (1 - states[t + 1] ** 2)
        dweight_ih += grad_a.T @ x[t]
        dweight_hh += grad_a.T @ states[t]  # states[t] is the state before this step
        dbias_ih += grad_a.sum(dim=0)
        dbias_hh += grad_a.sum(dim=0)
        dx[t] = grad_a @ weight_ih
        later = grad_a @ weight_hh

    dh0 = later
    return dx, dh0, dweight_ih, dweight_hh, dbias_ih, dbias_hh


def rnn_loss(x, y, h0, weight_ih, weight_hh, bias_ih, bias_hh, weight_ho, bias_ho):
    """Mean cross-entropy of the predictions of all steps, with every gradient; y (T, N) holds class indices."""
    T, N, _ = x.shape
    rows = torch.arange(N)

    hs, ps = [h0], []
    loss = 0
    for t in range(T):
        hs.append(torch.tanh(x[t] @ weight_ih.T + bias_ih + hs[t] @ weight_hh.T + bias_hh))
        o = hs[t + 1] @ weight_ho.T + bias_ho
        p = torch.softmax(o, dim=1)
        ps.append(p)
        loss = loss - p[rows, y[t]].log().sum() / (T * N)

    grads = {
        "dx": torch.zeros_like(x),
        "dh0": torch.zeros_like(h0),
        "dweight_ih": torch.zeros_like(weight_ih),
        "dweight_hh": torch.zeros_like(weight_hh),
        "dbias_ih": torch.zeros_like(bias_ih),
        "dbias_hh": torch.zeros_like(bias_hh),
        "dweight_ho": torch.zeros_like(weight_ho),
        "dbias_ho": torch.zeros_like(bias_ho),
    }
    carry = torch.zeros_like(h0)
    for t in reversed(range(T)):
        do = ps[t].clone()
        do[rows, y[t]] -= 1
        do /= T * N
        grads["dweight_ho"] += do.T @ hs[t + 1]
        grads["dbias_ho"] += do.sum(dim=0)

        dh = do @ weight_ho + carry
        da = dh * (1 - hs[t + 1] ** 2)
        grads["dweight_ih"] += da.T @ x[t]
        grads["dweight_hh"] += da.T @ hs[t]
        grads["dbias_ih"] += da.sum(dim=0)
        grads["dbias_hh"] += da.sum(dim=0)
        grads["dx"][t] = da @ weight_ih
        carry = da @ weight_hh
    grads["dh0"] = carry

    return loss, grads
