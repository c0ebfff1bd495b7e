"""What other CRF-RNN layers have learned, loaded: their numbers, their signs, and what is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from oracles import pattern_image, pattern_unary
from torch import Tensor

from densecrf_cuda import CRFRNN

# What crfasrnn_pytorch (commit 24899c5) says, in float32, of
#     peer = CrfRnn(3, 5, DenseCRFParams(alpha=6, beta=40, gamma=2, spatial_ker_weight=1, bilateral_ker_weight=2))
#     tilt = torch.arange(9.0).reshape(3, 3) / 20
#     peer.spatial_ker_weights += tilt; peer.bilateral_ker_weights += tilt.T; peer.compatibility_matrix -= tilt**2
#     log_q = peer(image, logits).log_softmax(1); log_q[0, 1].sum().backward()
# for pattern_image(6, 8) and logits = -pattern_unary(3, 6, 8): log_q and the gradient of logits at [0, :, 1::3, 1::3].
PEER_LOG_Q = [
    [[-1.89162, -0.85792, -0.78051], [-0.08322, -3.17794, -2.36489]],
    [[-0.24527, -1.10118, -2.57342], [-3.34674, -0.20884, -0.91637]],
    [[-2.70786, -1.41274, -0.76453], [-3.10894, -1.91868, -0.68107]],
]
PEER_GRADIENT = [
    [[-1.42185, -2.14980, -1.07911], [-1.34611, -0.42043, -0.42127]],
    [[2.01416, 3.00587, 1.51744], [1.31815, 1.88168, 2.19821]],
    [[-0.59231, -0.85607, -0.43833], [0.02796, -1.46126, -1.77694]],
]
PEER_COMPATIBILITY_GRADIENT = [
    [-79.30661, -88.96515, -89.74844],
    [125.94122, 143.00014, 143.20255],
    [-46.6346, -54.03499, -53.45412],
]


def peer_state() -> dict[str, Tensor]:
    tilt = torch.arange(9.0).reshape(3, 3) / 20
    eye = torch.eye(3)
    return {
        "crfrnn.spatial_ker_weights": eye + tilt,
        "crfrnn.bilateral_ker_weights": 2 * eye + tilt.T,
        "crfrnn.compatibility_matrix": eye - tilt**2,
    }


def peer_example(device: torch.device) -> tuple[Tensor, Tensor]:
    image = torch.from_numpy(pattern_image(6, 8)).permute(2, 0, 1)[None].float()
    return -torch.from_numpy(pattern_unary(3, 6, 8)).reshape(1, 3, 6, 8).to(device), image.to(device)


def test_numbers_of_crfasrnn_pytorch(device: torch.device) -> None:
    # 2e-5 and 1e-4: five digits were printed; both compute in float32 and sum in different orders (measured: 1e-5 of
    # the largest gradient).
    layer = CRFRNN.from_crfasrnn_pytorch(peer_state(), alpha=6, beta=40, gamma=2, iterations=5).to(device)
    logits, image = peer_example(device)
    logits.requires_grad_()
    log_q = layer(logits, image)
    np.testing.assert_allclose(log_q[0, :, 1::3, 1::3].detach().cpu(), PEER_LOG_Q, rtol=0, atol=2e-5)
    log_q[0, 1].sum().backward()
    np.testing.assert_allclose(logits.grad[0, :, 1::3, 1::3].cpu(), PEER_GRADIENT, rtol=0, atol=1e-4)
    # its M has the other sign, so its gradient has too
    np.testing.assert_allclose(-layer.compatibility.grad.cpu(), PEER_COMPATIBILITY_GRADIENT, rtol=1e-4)


def test_both_implementations_load_into_the_same_layer() -> None:
    # Equal parameters mean equal layers: the Keras one subtracts M (...), the other adds it.
    state = peer_state()
    arrays = [matrix.numpy() for matrix in state.values()]
    arrays[2] = -arrays[2]
    named = {f"crfrnn/{key.split('.')[1]}:0": array for key, array in zip(state, arrays)}
    layers = [
        CRFRNN.from_crfasrnn_pytorch(state, alpha=20),
        CRFRNN.from_crfasrnn_keras(arrays, alpha=20),
        CRFRNN.from_crfasrnn_keras(named, alpha=20),
        CRFRNN.from_crfasrnn_pytorch({key: value.numpy() for key, value in state.items()}, alpha=20),
    ]
    fixed = CRFRNN(3, alpha=20, trainable=False)
    fixed.load_crfasrnn_keras(arrays)
    for layer in [*layers, fixed]:
        assert layer.bilateral.bandwidths["sxy"] == 20
        torch.testing.assert_close(layer.spatial.weight.float(), state["crfrnn.spatial_ker_weights"], rtol=0, atol=0)
        torch.testing.assert_close(layer.compatibility.float(), -state["crfrnn.compatibility_matrix"], rtol=0, atol=0)
    for name in layers[0].state_dict():
        assert all(torch.equal(layer.state_dict()[name], layers[0].state_dict()[name]) for layer in layers), name


def test_what_cannot_be_loaded() -> None:
    state, eye = peer_state(), torch.eye(3)
    with pytest.raises(ValueError, match="must be one entry spatial_ker_weights, got 0 among a, b"):
        CRFRNN.from_crfasrnn_pytorch({"a": eye, "b": eye})
    with pytest.raises(ValueError, match="one entry compatibility_matrix, got 2"):
        CRFRNN.from_crfasrnn_pytorch({**state, "other.compatibility_matrix": eye})
    with pytest.raises(ValueError, match=r"\[4, 4\] for 4 classes, got \(3, 3\)"):
        CRFRNN(4).load_crfasrnn_pytorch(state)
    with pytest.raises(ValueError, match=r"three arrays spatial_ker_weights, .*, got 2"):
        CRFRNN.from_crfasrnn_keras([eye, eye])
    with pytest.raises(ValueError, match=r"bilateral_ker_weights must be \[C, C\], got shape \(3,\)"):
        CRFRNN.from_crfasrnn_keras([eye, eye[0], eye])
    with pytest.raises(ValueError, match=r"compatibility_matrix must be \(3, 3\) like spatial.*, got \(2, 2\)"):
        CRFRNN.from_crfasrnn_keras([eye, eye, torch.eye(2)])
    with pytest.raises(ValueError, match="compatibility_matrix must be finite, got nan"):
        CRFRNN.from_crfasrnn_keras([eye, eye, eye * float("nan")])
    diagonal = CRFRNN(3, weights="diagonal")
    before = copy.deepcopy(diagonal.state_dict())
    with pytest.raises(ValueError, match="weights='diagonal' takes diagonal kernel weights only"):
        diagonal.load_crfasrnn_keras([eye, eye + 1, -eye])
    assert all(torch.equal(before[name], value) for name, value in diagonal.state_dict().items())  # nothing was taken
    diagonal.load_crfasrnn_keras([2 * eye, 3 * eye, -eye])
    assert diagonal.spatial.weight.tolist() == [2, 2, 2]
