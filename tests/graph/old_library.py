"""Run models in an old ONNX Runtime or OpenCV. Imports nothing that such an environment lacks.

    old_library.py onnxruntime|cv2 FOLDER

Each folder in FOLDER holds `model.onnx` and `images.npy`; `outputs.npz` is written beside them.
"""

import sys
from pathlib import Path

import numpy as np


def run_onnxruntime(path, images):
    import onnxruntime

    return onnxruntime.InferenceSession(path).run(None, {"images": images})


def run_cv2(path, images):
    import cv2

    network = cv2.dnn.readNetFromONNX(path)
    network.setInput(images)
    return [network.forward()]


if __name__ == "__main__":
    run = {"onnxruntime": run_onnxruntime, "cv2": run_cv2}[sys.argv[1]]
    for folder in Path(sys.argv[2]).iterdir():
        outputs = run(str(folder / "model.onnx"), np.load(folder / "images.npy"))
        np.savez(folder / "outputs.npz", *outputs)
