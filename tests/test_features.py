"""Activations against torchvision's own VGG-19 and a plain float64 walk, and what is asked of networks cut short."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import Sequential
from torchvision.models import VGG19_Weights
from torchvision.models.vgg import cfgs, make_layers

from core import features
from core.errors import WeightsError
from core.features import Network, Padding, Pooling
from core.weights import Weights
from tests import miniatures, reference

ALL_LAYERS = tuple(f"{kind}{name}" for name in features.NAMES for kind in ("conv", "relu"))


def torchvisions_vgg19() -> Sequential:
    """Untrained, 512 channels wide, without the classifier's half a gigabyte."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers: Sequential = make_layers(cfgs["E"])
    return layers.eval()


def test_activations_are_those_of_torchvisions_network() -> None:
    theirs = torchvisions_vgg19()
    tensors = {f"features.{key}": value.detach() for key, value in theirs.state_dict().items()}
    ours = miniatures.network(tensors, "vgg19", padding="zeros", dtype=torch.float32)
    picture = miniatures.picture(45, 70, dtype=torch.float32)
    transforms = VGG19_Weights.IMAGENET1K_V1.transforms()
    mean, deviation = (torch.tensor(numbers)[:, None, None] for numbers in (transforms.mean, transforms.std))
    found = ours.activations(picture, ALL_LAYERS)
    response, names = (picture - mean) / deviation, iter(ALL_LAYERS)
    with torch.no_grad():
        for layer in theirs:
            response = layer(response.clone())
            if not isinstance(layer, torch.nn.MaxPool2d):
                assert reference.relative_error(found[next(names)], response) < 1e-5


def test_the_oxford_network_sees_pixel_values_less_their_mean() -> None:
    grey = torch.full((1, 3, 2, 2), 128 / 255, dtype=torch.float64)
    prepared = miniatures.network(miniatures.vgg(1)).prepare(grey)
    assert prepared[0, :, 0, 0].tolist() == pytest.approx([128 - 123.68, 128 - 116.779, 128 - 103.939])


@pytest.mark.parametrize("padding", ["replicate", "reflect", "zeros"])
@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("size", [(48, 48), (37, 61), (95, 32)])
def test_every_layer_of_every_size(padding: Padding, pooling: Pooling, size: tuple[int, int]) -> None:
    tensors = miniatures.vgg()
    picture = miniatures.picture(*size)
    expected = reference.activations(reference.Vgg(tensors, pooling=pooling, padding=padding), picture)
    found = miniatures.network(tensors, pooling=pooling, padding=padding).activations(picture, ALL_LAYERS)
    assert found.keys() == expected.keys()
    for layer in ALL_LAYERS:
        assert found[layer].shape == expected[layer].shape
        assert reference.relative_error(found[layer], expected[layer]) < 1e-12


def test_an_odd_row_or_column_is_dropped_by_pooling() -> None:
    found = miniatures.network(miniatures.vgg()).activations(miniatures.picture(77, 50), ("relu3_1", "relu4_1"))
    assert found["relu3_1"].shape[2:] == (19, 12)
    assert found["relu4_1"].shape[2:] == (9, 6)


def test_only_the_layers_asked_for_are_there() -> None:
    network = miniatures.network(miniatures.vgg())
    assert network.activations(miniatures.picture(32, 32), ("relu2_1", "conv1_2")).keys() == {"relu2_1", "conv1_2"}


def test_activations_are_differentiable() -> None:
    tensors = miniatures.vgg(3)
    network = miniatures.network(tensors)
    picture = miniatures.picture(6, 7).requires_grad_()
    assert torch.autograd.gradcheck(lambda some: network.activations(some, ("conv2_1",))["conv2_1"], picture)


def test_16_bit_activations_are_near_the_exact_ones() -> None:
    tensors = miniatures.vgg()
    picture = miniatures.picture(64, 96)
    found = miniatures.network(tensors, dtype=torch.bfloat16).activations(picture.float(), ("relu1_1", "relu5_1"))
    expected = reference.activations(reference.Vgg(tensors), picture)
    for layer, value in found.items():
        assert value.dtype == torch.bfloat16
        assert reference.relative_error(value, expected[layer]) < 0.03  # 8 bits of mantissa, layer after layer


# ── Layers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def cut(depth: int) -> Network:
    return miniatures.network(miniatures.vgg(depth))


def test_the_whole_network_has_the_papers_layers() -> None:
    whole = cut(16)
    assert whole.layers == ALL_LAYERS
    assert whole.layers[0] == "conv1_1" and whole.layers[-1] == "relu5_4"
    assert whole.style_layers == ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    assert whole.content_layers == ("relu4_2",)


def test_a_network_up_to_conv3_4_spreads_its_layers_likewise() -> None:
    assert cut(8).style_layers == ("relu1_1", "relu2_1", "relu3_1", "relu3_4")
    assert cut(8).content_layers == ("relu3_2",)


@given(depth=st.integers(1, 16))
def test_default_layers_are_there_at_every_depth(depth: int) -> None:
    network = cut(depth)
    assert network.layers == ALL_LAYERS[: 2 * depth]
    network.check((*network.style_layers, *network.content_layers))
    assert len(set(network.style_layers)) == len(network.style_layers)
    blocks = {features.block_of(layer) for layer in network.layers}
    assert {features.block_of(layer) for layer in network.style_layers} == blocks


def test_a_layer_that_is_not_there_is_an_error_that_names_what_is() -> None:
    with pytest.raises(WeightsError, match=r"no layer 'relu4_1'.*conv1_1 to relu3_4"):
        cut(8).check(("relu1_1", "relu4_1"))
    with pytest.raises(WeightsError, match="relu9_9"):
        cut(8).activations(miniatures.picture(32, 32), ("relu9_9",))


def test_layers_are_found_by_name() -> None:
    assert features.name_of_layer("conv4_2") == "4_2"
    assert [features.block_of(layer) for layer in ("relu1_2", "conv3_1", "relu5_4")] == [0, 2, 4]


def test_a_network_keeps_the_names_of_its_weights() -> None:
    tensors = miniatures.vgg(2)
    network = Network(Weights("vgg19-oxford", tensors, "ab" * 32, {}))
    assert network.name == "vgg19-oxford"
    assert network.sha256 == "ab" * 32


def test_a_compact_networks_metrics_are_read() -> None:
    tensors = miniatures.with_metric(miniatures.vgg(8), {"relu1_1": 4, "relu3_1": 8}, outputs=5)
    metrics = miniatures.network(tensors, "compact").metrics
    assert metrics.keys() == {"relu1_1", "relu3_1"}
    assert metrics["relu3_1"].weight.shape == (5, 8)
    assert metrics["relu3_1"].bias.shape == (5,)
