"""One image through a detector, and back to the image's own pixels."""

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as F

from splitattn.dense.resizing import Sides, resized
from splitattn.dense.scoring import FoundObjects


@torch.inference_mode()
def detect(
    detector: nn.Module,
    image: Image.Image,
    sides: Sides,
    device: torch.device,
    first_label: int,
) -> FoundObjects:
    """What a detector in evaluation mode finds in an image.

    Args:
        detector: see `create_detector`.
        image: RGB, upright.
        sides: of the detector's images.
        first_label: see `DetectionHead`.
    """
    size = sides.size(*image.size)
    pixels = F.to_image(resized(image, size)).to(device).float() / 255
    (found,) = detector([pixels])
    scale = np.array([image.width / size[0], image.height / size[1]] * 2, dtype=np.float32)
    return FoundObjects(
        boxes=found["boxes"].float().cpu().numpy() * scale,
        labels=found["labels"].cpu().numpy() - first_label,
        scores=found["scores"].float().cpu().numpy(),
    )
