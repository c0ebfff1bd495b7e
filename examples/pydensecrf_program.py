"""A program as tutorials on pydensecrf have it: only its two import lines are others.

    python examples/pydensecrf_program.py
    DENSECRF_DEVICE=cuda python examples/pydensecrf_program.py

With `pydensecrf` in place of `densecrf_cuda.pydensecrf` it prints the same.
"""

import numpy as np

import densecrf_cuda.pydensecrf.densecrf as dcrf
from densecrf_cuda.pydensecrf.utils import unary_from_softmax

CLASSES, HEIGHT, WIDTH = 3, 150, 201
COLOURS = np.array([[40, 60, 160], [60, 150, 70], [200, 90, 40]])


def dense_crf(img, output_probs, iterations=5):
    """Probabilities [C, H, W] of a network, brought to the edges of the picture [H, W, 3]."""
    c, h, w = output_probs.shape
    d = dcrf.DenseCRF2D(w, h, c)
    d.setUnaryEnergy(unary_from_softmax(output_probs))
    d.addPairwiseGaussian(sxy=3, compat=3)
    d.addPairwiseBilateral(sxy=80, srgb=3, rgbim=img, compat=10)
    return np.array(d.inference(iterations)).reshape(c, h, w)


def draw(rng):
    """A picture with noise, what a network makes of it, and the truth: meadow, sky and a ball between them."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    truth = (y > 90 + 10 * np.sin(x / 20)).astype(int)
    truth[(x - 100) ** 2 + (y - 85) ** 2 < 40**2] = 2
    img = (COLOURS[truth] + rng.normal(0, 6, (HEIGHT, WIDTH, 3))).clip(0, 255).astype(np.uint8)
    logits = 2 * np.eye(CLASSES)[truth].transpose(2, 0, 1)
    logits = np.roll(logits, (4, 5), (1, 2)) + rng.normal(0, 1, logits.shape)  # off the edges, and unsure
    p = np.exp(logits)
    return img, np.ascontiguousarray(p / p.sum(0)), truth


def main():
    img, probs, truth = draw(np.random.default_rng(0))
    refined = dense_crf(img, probs)
    right = {name: (p.argmax(0) == truth).mean() for name, p in (("before", probs), ("after", refined))}
    for name, share in right.items():
        print(f"{name:6} {share:.1%} of the pixels are right")
    return right


if __name__ == "__main__":
    main()
