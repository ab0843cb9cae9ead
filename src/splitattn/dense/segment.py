"""One image through a segmentation network, and back to the image's own pixels."""

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as F

from splitattn.data.normalization import normalize
from splitattn.dense.class_maps import class_map
from splitattn.dense.masks import Mask
from splitattn.dense.resizing import Sides, resized
from splitattn.preprocessing import Preprocessing

# Height and width of the network's images: every map is then just twice as large as the next.
MULTIPLE = 32


@torch.inference_mode()
def segment(
    network: nn.Module,
    image: Image.Image,
    sides: Sides,
    preprocessing: Preprocessing,
    device: torch.device,
) -> Mask:
    """The class of every pixel of an image, (H, W), by a network in evaluation mode.

    Args:
        network: see `create_segmenter`.
        image: RGB, upright.
        sides: of the network's images.
        preprocessing: gives mean and deviation.
    """
    pixels = F.to_image(resized(image, sides.size(*image.size)))[None].to(device)
    logits = network(normalize(pixels, preprocessing))[0].float().cpu().numpy()
    return class_map(np.ascontiguousarray(logits), image.size)
