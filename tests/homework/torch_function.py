"""An RNN as one torch.autograd.Function: called like any other torch function, its gradients written by hand."""

import torch


class RNNFunction(torch.autograd.Function):
    """h_t = tanh(weight_ih x_t + bias_ih + weight_hh h_{t-1} + bias_hh) for t = 1..T, forward and back."""

    @staticmethod
    def forward(ctx, x, h0, weight_ih, weight_hh, bias_ih, bias_hh):
        """Return the states (T, N, H)."""
        h = h0
        output = torch.zeros(*x.shape[:2], h0.shape[1], dtype=x.dtype)
        for t in range(len(x)):
            h = torch.tanh(x[t] @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh)
            output[t] = h
        ctx.save_for_backward(x, h0, output, weight_ih, weight_hh)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        """Return a gradient for every argument of forward, in its order."""
        x, h0, output, weight_ih, weight_hh = ctx.saved_tensors
        dx = torch.zeros_like(x)
        dweight_ih = torch.zeros_like(weight_ih)
        dweight_hh = torch.zeros_like(weight_hh)
        dbias = torch.zeros_like(weight_hh[0])

        carry = torch.zeros_like(h0)  # what the steps after t send to state t
        for t in reversed(range(len(x))):
            h_prev = output[t - 1] if t > 0 else h0
            da = (grad_output[t] + carry) * (1 - output[t] ** 2)
            dweight_ih += da.T @ x[t]
            dweight_hh += da.T @ h_prev
            dbias += da.sum(dim=0)
            dx[t] = da @ weight_ih
            carry = da @ weight_hh

        # both biases enter the same sum, so they have the same gradient
        return dx, carry, dweight_ih, dweight_hh, dbias, dbias.clone()


def rnn(x, h0, weight_ih, weight_hh, bias_ih, bias_hh):
    """Return the states (T, N, H) of the RNN on x (T, N, D) from h0 (N, H)."""
    return RNNFunction.apply(x, h0, weight_ih, weight_hh, bias_ih, bias_hh)
