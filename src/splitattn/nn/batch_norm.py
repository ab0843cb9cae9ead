"""Batch norm that also trains on one value per channel, optionally synchronized over processes.

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
    """Batch norm (arXiv 1502.03167) that can train on a single value per channel.

    In a batch of one image, the attention's pooled features have one value per channel, and so no
    variance. Such a value is normalized with the running statistics, as in evaluation, and the
    statistics do not change. With two or more values this equals torch's batch norm exactly.

    So with a batch of one, the running statistics inside the attention never change: a new network
    keeps mean 0 and variance 1, a loaded one keeps its file's. Gradient accumulation does not help,
    since each forward pass still sees one image. `synchronize` does: the images of all processes
    then count as one batch.

    A frozen layer only scales and shifts each channel, like torchvision's `FrozenBatchNorm2d`. It
    keeps its state-dict keys and the precision of its weights.

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
        # An export traces evaluation with a symbolic batch, so its size must not be read.
        if not self.training:
            return super().forward(x)
        if self.synchronized and world_size() > 1:
            return self._over_all_processes(x)
        if x.numel() > x.shape[1]:
            return super().forward(x)
        # Copies: a larger batch may change the statistics before this one's backward pass.
        mean, variance = self.running_mean.clone(), self.running_var.clone()
        return F.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps)

    def _over_all_processes(self, x: Tensor) -> Tensor:
        mean, variance, count = _statistics(x.detach().to(self.running_mean.dtype))
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        shares = share * (count > 0).to(mean.dtype)  # an empty batch changes nothing
        self.running_mean.lerp_(mean, shares)
        # torch's running variance is unbiased.
        self.running_var.lerp_(variance * count / (count - 1), shares)
        out: Tensor = _Normalization.apply(
            x, self.weight, self.bias, mean, variance, count, self.eps
        )
        return out


def synchronize(model: nn.Module) -> None:
    """Make every `BatchNorm2d` of `model` train on the batches of all processes as on one batch.

    Outputs, gradients and running statistics then equal those of one process with the whole batch.
    Batches may differ in size between processes, and some may be empty, as in a detector's second
    stage. Every process must run the network equally often. Evaluation, frozen layers and training
    in a single process are not affected. Do not use torch's `SyncBatchNorm.convert_sync_batchnorm`
    here: it replaces these layers by its own, and frozen ones would train again.
    """
    # Not torch's SyncBatchNorm: it refuses tensors on the CPU, where the tests run, and one value
    # per channel in a single process. The communication is the same as there: one gather in the
    # forward pass and one sum in the backward pass.
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            module.synchronized = True


def _statistics(x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C), biased variance (C) and number of values per channel (1) over all processes."""
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
    # Deviations from the mean: the difference of mean squares would cancel.
    deviations_PC = variances_PC + (means_PC - mean_C).square()
    return mean_C, (deviations_PC * counts_P1).sum(0) / divisor, total


class _Normalization(torch.autograd.Function):
    """Batch norm of x (B, C, H, W) with the mean and variance of x over all processes.

    The derivatives are those of arXiv 1502.03167, section 3; their two sums over the batch run over
    all processes. The gradients of weight and bias are this process's own, like those of every
    other parameter.
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
        centered = grad - _over_map(mean_grad) - normalized * _over_map(mean_product)
        grad_x = (centered * _over_map(weight * inverse_deviation)).to(x.dtype)
        return grad_x, grad_weight, grad_bias, None, None, None, None


def _over_map(values_C: Tensor) -> Tensor:
    return values_C[:, None, None]
