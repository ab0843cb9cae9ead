"""Batch norm that trains on a single value per channel; over several processes, or not, on request.

Shapes: B batch, C channels, H and W rows and columns, P processes.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from splitattn.distributed import world_size
from splitattn.nn.freezing import Freezable


class BatchNorm2d(Freezable, nn.BatchNorm2d):
    """Batch norm (arXiv 1502.03167) for which one value per channel is enough to train.

    With one value, as the attention's pooled features have in a batch of one, there is no variance
    to divide by. It is then normalized with the running statistics, as in evaluation, and these
    stay as they are. With two values and more this is torch's batch norm, number for number.

    What that means for training with a batch of one: the statistics of the attention's batch norm
    never move from where they started, which is mean 0 and variance 1 in a new network and the
    weights' own in a loaded one. Gradient accumulation does not change this, since every forward
    pass still sees one image. `synchronize` does: it makes a value of each process's image.

    Frozen, it is a scale and a shift for each channel, as torchvision's `FrozenBatchNorm2d`, under
    the keys and in the precision that the weights have.

    Args:
        num_features: channels C.

    Input and output (B, C, H, W). State-dict keys are those of torch's batch norm.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.synchronized = False

    def forward(self, x: Tensor) -> Tensor:
        # In evaluation the batch may be symbolic, and its size must not be asked for.
        if not self.training:
            return super().forward(x)
        if self.synchronized and world_size() > 1:
            return self._over_all_processes(x)
        if x.numel() > x.shape[1]:
            return super().forward(x)
        # Copies, since a larger batch may move the statistics before this one's backward pass.
        mean, variance = self.running_mean.clone(), self.running_var.clone()
        return F.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps)

    def _over_all_processes(self, x: Tensor) -> Tensor:
        mean, variance, count = _statistics(x.detach().to(self.running_mean.dtype))
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        shares = share * (count > 0).to(mean.dtype)  # nothing to learn from nothing
        self.running_mean.lerp_(mean, shares)
        # Unbiased, as torch keeps it.
        self.running_var.lerp_(variance * count / (count - 1), shares)
        out: Tensor = _Normalization.apply(
            x, self.weight, self.bias, mean, variance, count, self.eps
        )
        return out


def synchronize(model: nn.Module) -> None:
    """Let every `BatchNorm2d` of `model` train on the batches of all processes as on one batch.

    Outputs, gradients and running statistics are then those of one process that has the whole
    batch; the processes' shares of it may differ in size, and some may be empty, as in a detector's
    second stage. All of them must run the network equally often. Evaluation is not affected, nor a
    frozen norm, nor a process that is alone. torch's `SyncBatchNorm.convert_sync_batchnorm` puts
    norms of its own in the place of these, which knows of no frozen ones and lets them train again.
    """
    # One code path for all devices, which tests can run: torch's own SyncBatchNorm refuses tensors
    # on the CPU, and a single value per channel in a process that is alone. Its communication is
    # the same, one gather forward and one sum backward.
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            module.synchronized = True


def _statistics(x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C) and biased variance (C) over all processes, and how many values (1) they are of."""
    if x_BCHW.numel():
        variance_C, mean_C = torch.var_mean(x_BCHW, (0, 2, 3), correction=0)
    else:
        variance_C = mean_C = x_BCHW.new_zeros(x_BCHW.shape[1])
    count = mean_C.new_full((1,), x_BCHW.numel() // len(mean_C))
    own = torch.cat((mean_C, variance_C, count))
    gathered = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(gathered, own)
    everyone = torch.stack(gathered)
    means_PC, variances_PC = everyone[:, :-1].chunk(2, dim=1)
    counts_P1 = everyone[:, -1:]
    total = counts_P1.sum(0)
    divisor = total.clamp(min=1)
    mean_C = (means_PC * counts_P1).sum(0) / divisor
    # Deviations from the mean, not a difference of squares, which would cancel.
    deviations_PC = variances_PC + (means_PC - mean_C).square()
    return mean_C, (deviations_PC * counts_P1).sum(0) / divisor, total


class _Normalization(torch.autograd.Function):
    """Batch norm of x (B, C, H, W) by a mean and a variance that came from x in all processes.

    The derivatives are those of arXiv 1502.03167, section 3, in which two sums over the batch
    appear: those are over all processes. The gradients of weight and bias are of this process, like
    those of every other parameter.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_deviation, count = ctx.saved_tensors
        normalized = (x - _over_map(mean)) * _over_map(inverse_deviation)
        grad_bias = grad.sum((0, 2, 3), dtype=mean.dtype)
        grad_weight = (grad * normalized).sum((0, 2, 3))
        sums = torch.stack((grad_bias, grad_weight))
        dist.all_reduce(sums)
        mean_grad, mean_product = sums / count
        centerd = grad - _over_map(mean_grad) - normalized * _over_map(mean_product)
        grad_x = (centerd * _over_map(weight * inverse_deviation)).to(x.dtype)
        return grad_x, grad_weight, grad_bias, None, None, None, None


def _over_map(values_C: Tensor) -> Tensor:
    return values_C[:, None, None]
