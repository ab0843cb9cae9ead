"""Run a model in the library of this interpreter, which may be an old one: no other imports.

    old_library.py onnxruntime|cv2 FOLDER

FOLDER holds `model.onnx` and `images.npy`, and gets `logits.npy`.
"""

import sys
from pathlib import Path

import numpy as np

library, folder = sys.argv[1], Path(sys.argv[2])
images = np.load(folder / "images.npy")
path = str(folder / "model.onnx")
if library == "onnxruntime":
    import onnxruntime

    (logits,) = onnxruntime.InferenceSession(path).run(["logits"], {"images": images})
else:
    import cv2

    network = cv2.dnn.readNetFromONNX(path)
    network.setInput(images)
    logits = network.forward()
np.save(folder / "logits.npy", logits)
