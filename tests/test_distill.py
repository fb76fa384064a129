"""The training of the compact network, and the weights that ship."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from core import config, weights
from core.errors import ImageError, UserError
from core.features import Network
from core.transfer import Transfer
from training import distill, pictures
from training.distill import Batch, Plan, Run, Trainee, gram_error, loss_of
from training.initialisation import least_squares, representatives
from training.pictures import Crops, Library
from training.student import LAYERS, STYLE_LAYERS, Affine, Student, Whitened, flat, gram
from training.teacher import Teacher

SHARED = Path(__file__).resolve().parents[2] / "shared"
TEACHER = SHARED / "weights" / "vgg19_oxford_conv1_1_to_conv3_4.safetensors"
SHIPPED = distill.DEFAULT_OUTPUT
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the pictures and weights of ../shared are not here")

CPU = torch.device("cpu")
WIDTHS = (4, 4, 8, 8, 8, 8, 8, 8)
SMALL = Plan(
    widths=WIDTHS,
    side=32,
    batch=3,
    rate=3e-3,
    warm_up=1,
    fresh=1,
    first=2,
    kept=8,
    episodes=(5,),
    tasks=1,
    examination=2,
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def library(draw: np.random.Generator) -> Library:
    sizes = ((60, 80), (90, 50), (40, 40))
    return Library(tuple(draw.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes), {"a.png": "0"})


@pytest.fixture
def crops(library: Library, draw: np.random.Generator) -> Crops:
    return Crops(library.pictures, config.load().noise, draw)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of VGG's widths with random weights."""
    seeded = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    inputs = 3
    for index, width in zip(weights.conv_indices, (64, 64, 128, 128, 256, 256, 256, 256), strict=False):
        scale = (2 / (9 * inputs)) ** 0.5
        tensors[f"features.{index}.weight"] = scale * torch.randn(width, inputs, 3, 3, generator=seeded)
        tensors[f"features.{index}.bias"] = 0.1 * torch.randn(width, generator=seeded)
        inputs = width
    file = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(tensors, file)
    return file


@pytest.fixture(scope="module")
def teacher(teacher_file: Path) -> Teacher:
    found = Teacher(teacher_file, CPU, torch.float32)
    found.calibrate(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    return found


@pytest.fixture
def trainee(teacher: Teacher, crops: Crops) -> Trainee:
    found = Trainee(SMALL, CPU, torch.float32)
    found.begin(teacher, crops)
    return found


# ---------------------------------------------------------------------------------------------------------- arithmetic


def test_gram_matches_a_plain_product_in_value_and_gradient() -> None:
    features = torch.randn(2, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    expected = torch.einsum("bchw,bdhw->bcd", features, features) / 24
    seed = torch.randn(2, 5, 5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((expected * seed).sum(), features)
    (ours,) = torch.autograd.grad((gram(features).double() * seed).sum(), features)
    torch.testing.assert_close(gram(features).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_whitened_map_is_the_plain_one_in_other_coordinates(with_bias: bool) -> None:
    inputs = torch.randn(500, 6) @ torch.randn(6, 6) + 3
    plain = Affine(torch.randn(4, 6), torch.randn(4) * with_bias)
    module = Whitened(4, 6, with_bias=with_bias)
    module.adopt(plain, inputs)
    torch.testing.assert_close(module.plain().weight, plain.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(module.plain().bias, plain.bias, rtol=1e-3, atol=1e-3)


def test_whitened_coordinates_are_uncorrelated_and_their_weights_of_order_one() -> None:
    """Their variances are what they contribute to the outputs, which are brought to unit variance."""
    rotation, _ = torch.linalg.qr(torch.randn(3, 3))
    inputs = torch.randn(4000, 3) * torch.tensor([1.0, 2.0, 3.0]) @ rotation + 5
    module = Whitened(50, 3)
    module.adopt(Affine(torch.randn(50, 3), torch.zeros(50)), inputs)
    coordinates = (inputs - module.mean) @ module.basis.T
    covariance = coordinates.T @ coordinates / 4000
    torch.testing.assert_close(covariance, covariance.diagonal().diag(), rtol=0, atol=1e-3)
    torch.testing.assert_close(module.weight.detach().square().mean(0), torch.ones(3), rtol=0.05, atol=0)
    assert float(covariance.trace()) == pytest.approx(1, rel=0.05)


def test_the_mapped_gram_is_that_of_the_mapped_features(trainee: Trainee) -> None:
    student = trainee.averaged()
    features = student.features(torch.rand(2, 3, 24, 20))
    for layer in STYLE_LAYERS:
        mapped = student.mapped(features[layer], layer)
        expected = mapped.transpose(1, 2) @ mapped / mapped.shape[1]
        torch.testing.assert_close(student.mapped_gram(features[layer], layer), expected, rtol=1e-4, atol=1e-5)


def test_representatives_take_one_of_each_kind() -> None:
    """Channels 0 and 3 say the same, so do 1 and 4; 2 is weak."""
    signals = torch.randn(1000, 3) * torch.tensor([3.0, 2.0, 0.1])
    channels = signals[:, [0, 1, 2, 0, 1]]
    chosen = representatives(channels.T @ channels / 1000, 2)
    assert {index % 3 for index in chosen} == {0, 1}
    assert sorted(representatives(channels.T @ channels / 1000, 3))[-1] in {2, 3, 4}


def test_least_squares_finds_an_affine_map() -> None:
    inputs, true = torch.randn(400, 5), Affine(torch.randn(3, 5), torch.randn(3))
    found = least_squares(inputs, F.linear(inputs, true.weight, true.bias))
    torch.testing.assert_close(found.weight, true.weight, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.bias, true.bias, rtol=1e-3, atol=1e-3)


def test_gram_error_is_the_root_of_the_relative_square() -> None:
    reference = torch.ones(2, 2, 2)
    difference = torch.zeros(2, 2, 2)
    difference[1] = 0.5
    assert float(gram_error(difference, reference)) == pytest.approx((0.01 + (0.25 + 1e-4) ** 0.5) / 2, rel=1e-5)
    assert float(gram_error(9 * reference, reference)) == 2


# --------------------------------------------------------------------------------------------------------- the pictures


def test_every_kind_of_crop_is_a_picture(crops: Crops) -> None:
    for make in (crops.any, crops.style, crops.content):
        for _ in range(25):
            crop = make(24)
            assert crop.shape == (1, 3, 24, 24)
            assert crop.dtype == torch.float32
            assert 0 <= float(crop.min()) <= float(crop.max()) <= 1


def test_a_crop_of_a_plain_picture_is_plain_and_of_its_colour(draw: np.random.Generator) -> None:
    plain = np.full((50, 70, 3), (255, 51, 0), dtype=np.uint8)
    crop = Crops([plain], config.load().noise, draw).picture(16)
    torch.testing.assert_close(crop, torch.tensor([1.0, 0.2, 0.0])[None, :, None, None].expand(1, 3, 16, 16))


def test_the_same_seed_draws_the_same_crops(library: Library) -> None:
    first, second = (Crops(library.pictures, config.load().noise, np.random.default_rng(7)).any(24) for _ in range(2))
    assert torch.equal(first, second)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no picture"):
        pictures.load(tmp_path)


# ------------------------------------------------------------------------------------------------------------- learning


def test_initialisation_copies_the_first_convolution(teacher: Teacher, trainee: Trainee) -> None:
    """The student's first channels are among the teacher's, so the teacher's others may be told from them."""
    picture = torch.rand(1, 3, 20, 20)
    own = trainee.averaged().features(picture)["relu1_1"]
    theirs = teacher.features(picture, ("relu1_1",))["relu1_1"]
    similarity = F.normalize(own[0].flatten(1)) @ F.normalize(theirs[0].flatten(1)).T
    assert bool((similarity.max(1).values > 0.999).all())


def test_a_reduction_to_the_same_widths_is_its_guide(teacher: Teacher, crops: Crops) -> None:
    """With all of the teacher's channels in the first convolution, there is nothing to choose."""
    plan = replace(SMALL, widths=(64, 8, 8, 8, 8, 8, 8, 8))
    guide, again = (Trainee(plan, CPU, torch.float32) for _ in range(2))
    guide.begin(teacher, crops)
    again.begin(teacher, crops, guide.average.tensors())
    picture = crops.content(32)
    ours, theirs = again.averaged().features(picture), guide.averaged().features(picture)
    for layer in LAYERS:
        scale = theirs[layer].norm() / ours[layer].norm()  # the reduction counts in units of its own
        assert _relative_error(ours[layer] * scale, theirs[layer]) < 0.05


def test_the_loss_vanishes_for_a_student_that_is_its_teacher(teacher_file: Path, crops: Crops) -> None:
    exact = Teacher(teacher_file, CPU, torch.float32)
    student = Student((64, 64, 128, 128, 256, 256, 256, 256))
    tensors = exact.tensors
    for index, module in zip(weights.conv_indices, student.convolutions, strict=False):
        assert isinstance(module, Whitened)
        scale = 60.0 if index == 0 else 1.0
        with torch.no_grad():
            module.weight.copy_(tensors[f"features.{index}.weight"].flatten(1) * scale)
            module.bias.copy_(tensors[f"features.{index}.bias"])
    for module in student.maps.values():
        assert isinstance(module, Whitened)
        with torch.no_grad():
            module.weight.copy_(torch.eye(len(module.weight)))
    style = exact.sample(crops.style(32))
    batch = Batch([exact.sample(crops.any(32)), style, exact.sample(crops.any(32), style)], pairs=1)
    terms = loss_of(student.freeze(torch.float32), exact, batch, gram_weight=1.0)
    least = sum(factor * 0.01 for factor in (0.3, 1.0, 0.2)) * len(STYLE_LAYERS)  # the root's constant, per layer
    assert sum(float(term.detach()) for term in terms.values()) == pytest.approx(least, rel=0.01)


def test_learning_lowers_the_loss(teacher: Teacher, trainee: Trainee, crops: Crops) -> None:
    style = teacher.sample(crops.style(32))
    batch = Batch([teacher.sample(crops.any(32)), style, teacher.sample(crops.any(32), style)], pairs=1)
    losses = [sum(trainee.learn(teacher, batch).values()) for _ in range(12)]
    assert losses[-1] < 0.9 * losses[0]


def test_a_run_resumes_where_it_stopped(teacher_file: Path, library: Library, tmp_path: Path) -> None:
    def run(minutes: float) -> Run:
        plan = replace(SMALL, minutes=minutes)
        teacher = Teacher(teacher_file, CPU, torch.float32)
        return Run(plan, teacher, library, tmp_path, config.load(), torch.float32)

    first = run(0.01)
    first.go()
    second = run(0.03)
    assert second.trainee.steps == first.trainee.steps > 0
    assert second.teacher.units == first.teacher.units
    for ours, theirs in zip(second.trainee.average.parameters(), first.trainee.average.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    second.go()
    assert second.trainee.steps > first.trainee.steps
    with pytest.raises(UserError, match="other widths"):
        Trainee(Plan(widths=(8,) * 8), CPU, torch.float32).restore(second.checkpoint)


def test_an_exported_network_is_the_student(
    teacher: Teacher, trainee: Trainee, library: Library, tmp_path: Path
) -> None:
    """`core` sees through the exported file what the student sees, up to the rounding to 16 bit."""
    run = Run.__new__(Run)
    run.plan, run.teacher, run.library, run.trainee = SMALL, teacher, library, trainee
    run.dtype, run.wider = torch.float32, None
    file = tmp_path / "compact.safetensors"
    run.export(file)
    network = Network(weights.load("compact", file))
    picture = torch.rand(1, 3, 33, 47)
    theirs = network.activations(picture, LAYERS)
    student = trainee.averaged()
    ours = student.features(picture)
    for layer in LAYERS:
        assert _relative_error(theirs[layer], ours[layer]) < 0.01
        metric = network.metrics[layer]
        mapped = F.linear(flat(theirs[layer]), metric.weight, metric.bias)
        assert _relative_error(mapped, student.mapped(ours[layer], layer) * teacher.units[layer]) < 0.01


def _relative_error(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


# -------------------------------------------------------------------------------------------------- the shipped weights


def _metadata() -> dict[str, str]:
    with safe_open(SHIPPED, "pt") as file:
        return dict(file.metadata())


def test_the_shipped_file_is_small_half_precision_and_complete() -> None:
    found = weights.load("compact")
    assert SHIPPED.stat().st_size <= 3_000_000
    assert {tensor.dtype for tensor in found.tensors.values()} == {torch.float16}
    assert set(Network(found).metrics) == set(LAYERS)
    assert Network(found).style_layers == STYLE_LAYERS


def test_the_shipped_network_has_no_dead_channels() -> None:
    network = Network(weights.load("compact"))
    seeded = torch.Generator().manual_seed(0)
    grids = [torch.rand(1, 3, n, n, generator=seeded) for n in (3, 12, 48, 96)]
    picture = torch.cat([F.interpolate(grid, (96, 96), mode="bicubic") for grid in grids], 3).clamp(0, 1)
    for layer, features in network.activations(picture, LAYERS).items():
        assert bool((features.amax((0, 2, 3)) > 0).all()), f"a channel of {layer} never answers"


@needs_shared
def test_the_shipped_network_was_not_trained_on_its_judges() -> None:
    trained_on = set(json.loads(_metadata()["training"])["pictures"].values())
    judges = [*(SHARED / "images" / "content").glob("*"), *(SHARED / "images" / "style").glob("*")]
    assert judges
    assert trained_on
    assert not trained_on & {hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in judges}


@needs_shared
@pytest.mark.parametrize("name", ["content/bird.jpg", "style/starry_night.jpg", "style/cubism2.jpg"])
def test_the_shipped_network_tells_the_teachers_gram_matrices(name: str) -> None:
    """On pictures that it was not trained on; the worst of these, the bird at relu3_1, is 0.23."""
    from core.images import read, resize

    picture = resize(read(SHARED / "images" / name).pixels, (256, 256)).clamp(0, 1)
    network = Network(weights.load("compact"))
    teacher = Network(weights.load("vgg19-oxford", TEACHER))
    own, theirs = network.activations(picture, STYLE_LAYERS), teacher.activations(picture, STYLE_LAYERS)
    for layer in STYLE_LAYERS:
        metric = network.metrics[layer]
        mapped = F.linear(flat(own[layer]), metric.weight, metric.bias)[0]
        reference = flat(theirs[layer])[0]
        error = (mapped.T @ mapped - reference.T @ reference).norm() / (reference.T @ reference).norm()
        assert float(error) < 0.3, layer


def test_the_method_runs_with_the_shipped_network_alone(draw: np.random.Generator) -> None:
    """Content and style are painted here; the style loss must fall tenfold, in few and small steps."""
    content, style = pictures.pattern(96, draw), pictures.pattern(96, draw)
    settings = config.load(changes={"network": "compact", "levels": 0, "seed": 1, "optimizer": {"iterations": 25}})
    losses = [step.levels[0].style for step in Transfer(content, [style], settings).steps()]
    assert losses[-1] < 0.1 * losses[0]
