"""The Split-Attention block (arXiv 2004.08955, section 3.1), in its radix-major form.

Shapes: B batch, R radix, K cardinality, C output channels, H and W rows and columns. The channels
of the 3x3 convolution are ordered radix, then cardinal group, then channel within the group.
"""

from torch import Tensor, nn

from splitattn.errors import InputError, check_whole
from splitattn.nn.batch_norm import BatchNorm2d
from splitattn.nn.blending import blend, pool


class SplitAttention2d(nn.Module):
    r"""A grouped convolution whose R splits are blended by attention, channel by channel.

    With :math:`U_r` the r-th split of the convolution's output after batch norm and ReLU,

    .. math::
        s &= \operatorname{mean}_{HW} {\textstyle\sum_r U_r} \\
        a &= \operatorname{softmax}_r \mathrm{fc_2}(\mathrm{relu}(\mathrm{bn}(\mathrm{fc_1}(s)))) \\
        V &= {\textstyle\sum_r a_r \odot U_r}

    where both dense layers act within each cardinal group. With radix 1 there is one split, and its
    attention is a sigmoid gate, as in Squeeze-and-Excitation.

    The paper describes K groups of R splits each. With the radix first, one convolution with R*K
    groups and two grouped 1x1 convolutions compute all of them at once.

    Args:
        in_channels: channels of the input.
        out_channels: channels C of the output.
        kernel_size: of the convolution; odd, and padded so that stride 1 keeps H and W.
        stride, dilation: of the convolution.
        radix: R, the number of splits.
        cardinality: K, the number of cardinal groups.
        reduction: the attention's hidden width is `max(in_channels * R // reduction, 32)`.
        pool_stride: stride of the 3x3 average pooling of the output (paper section 3.2), which is
            computed as part of the blend; None for no pooling.

    Raises:
        InputError: an argument is not a whole number of at least 1, the channels are not a multiple
            of the groups, or the kernel size is even.

    Input (B, in_channels, H, W), output (B, out_channels, H / stride, W / stride), each side again
    divided by `pool_stride`, in the input's memory format.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        radix: int = 2,
        cardinality: int = 1,
        reduction: int = 4,
        pool_stride: int | None = None,
    ) -> None:
        super().__init__()
        for name, number in (
            *(("in_channels", in_channels), ("out_channels", out_channels)),
            *(("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation)),
            *(("radix", radix), ("cardinality", cardinality), ("reduction", reduction)),
            *(() if pool_stride is None else (("pool_stride", pool_stride),)),
        ):
            check_whole(name, number, least=1)
        if kernel_size % 2 == 0:
            raise InputError(f"kernel_size must be odd, got {kernel_size}")
        attention_channels = max(in_channels * radix // reduction, 32)
        for name, channels, groups in (
            ("in_channels", in_channels, radix * cardinality),
            ("out_channels", out_channels, cardinality),
            ("attention channels", attention_channels, cardinality),
        ):
            if channels % groups:
                raise InputError(f"{name} must be a multiple of {groups}, got {channels}")
        self.radix = radix
        self.cardinality = cardinality
        self.pool_stride = pool_stride
        self.conv = nn.Conv2d(
            in_channels,
            out_channels * radix,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size - 1) // 2,
            dilation=dilation,
            groups=radix * cardinality,
            bias=False,
        )
        self.bn0 = BatchNorm2d(out_channels * radix)
        self.fc1 = nn.Conv2d(out_channels, attention_channels, 1, groups=cardinality)
        self.bn1 = BatchNorm2d(attention_channels)
        self.fc2 = nn.Conv2d(attention_channels, out_channels * radix, 1, groups=cardinality)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        splits, pooled_BC = pool(self.relu(self.bn0(self.conv(x))), self.radix)
        logits = self.fc2(self.relu(self.bn1(self.fc1(pooled_BC[:, :, None, None]))))
        # Autocast on CUDA computes softmax in float32; the blend would then be float32 too.
        attention = self.attend(logits).to(splits.dtype)
        return blend(splits, attention, self.radix, self.pool_stride)

    def attend(self, logits: Tensor) -> Tensor:
        """Map cardinality-major logits (B, R*C, 1, 1) to radix-major attention of that shape."""
        if self.radix == 1:
            return logits.sigmoid()
        logits_BKRC = logits.reshape(logits.shape[0], self.cardinality, self.radix, -1)
        attention_BRKC = logits_BKRC.transpose(1, 2).softmax(1)
        return attention_BRKC.reshape(logits.shape)
