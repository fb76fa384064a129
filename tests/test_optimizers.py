"""L-BFGS and Adam against problems with known answers, the textbook's recursion, and torch's own Adam."""

import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from core import optimizers
from core.optimizers import OPTIMIZERS, Evaluate, Iterate, State

Function = Callable[[Tensor], Tensor]


def quadratic(size: int = 30, condition: float = 100.0) -> tuple[Function, Tensor]:
    """½ xᵀA x − bᵀx with eigenvalues from 1 to `condition`, and where it is least."""
    draw = torch.Generator().manual_seed(3)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64))
    matrix = basis @ torch.diag(torch.logspace(0, math.log10(condition), size, dtype=torch.float64)) @ basis.T
    vector = torch.randn(size, generator=draw, dtype=torch.float64)
    return lambda x: 0.5 * x @ matrix @ x - vector @ x, torch.linalg.solve(matrix, vector)


def rosenbrock(x: Tensor) -> Tensor:
    """Least, 0, at (1, …, 1)."""
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


class Recorder:
    """Evaluates a function and its gradient, and remembers where."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.points: list[Tensor] = []

    def __call__(self, point: Tensor) -> tuple[float, Tensor]:
        self.points.append(point.detach().clone())
        leaf = point.detach().clone().requires_grad_()
        value = self.function(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), gradient

    def assert_no_point_twice(self) -> None:
        seen = {tuple(point.flatten().tolist()) for point in self.points}
        assert len(seen) == len(self.points)


def unit_step(point: Tensor, direction: Tensor) -> float:
    """A first step of length 0.1, and a learning rate of 0.1."""
    return 0.1 / max(float(direction.norm()), 1e-30)


def fixed_rate(point: Tensor, direction: Tensor) -> float:
    return 0.05


def start(size: int) -> Tensor:
    return torch.linspace(-1, 0.9, size, dtype=torch.float64)


def run(
    name: str, evaluate: Evaluate, begin: Tensor, *, history: int = 10, state: State | None = None
) -> Generator[Iterate, None, None]:
    step = unit_step if name == "lbfgs" else fixed_rate
    return OPTIMIZERS[name](evaluate, begin, step, history=history, state=state)


def take(count: int, iterates: Iterator[Iterate]) -> list[Iterate]:
    return list(itertools.islice(iterates, count))


def accepted(count: int, iterates: Iterator[Iterate]) -> list[Iterate]:
    """The start and the steps taken, without what comes after a trial that was rejected."""
    found: list[Iterate] = []
    for each in iterates:
        if not found or each.iteration > found[-1].iteration:
            found.append(each)
        if len(found) == count:
            break
    return found


def copied(state: State) -> State:
    """A state shares memory with the run that it belongs to; what is to outlast the next step is copied."""
    return {key: value.clone() for key, value in state.items()}


# ── Convergence ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lbfgs_finds_the_least_of_a_quadratic() -> None:
    function, least = quadratic()
    *_, last = take(120, run("lbfgs", Recorder(function), torch.zeros_like(least)))
    torch.testing.assert_close(last.point, least, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [2, 10])
def test_lbfgs_finds_the_least_of_rosenbrocks_valley(size: int) -> None:
    *_, last = take(300, run("lbfgs", Recorder(rosenbrock), start(size)))
    torch.testing.assert_close(last.point, torch.ones_like(last.point), rtol=0, atol=1e-5)
    assert last.loss == pytest.approx(0, abs=1e-9)


def test_adam_finds_the_least_of_a_quadratic() -> None:
    function, least = quadratic(condition=10)
    *_, last = take(1500, OPTIMIZERS["adam"](Recorder(function), torch.zeros_like(least), lambda *_: 0.003, history=1))
    torch.testing.assert_close(last.point, least, rtol=0, atol=5e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_picture_keeps_its_shape_and_its_precision(name: str) -> None:
    target = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    found = take(20, run(name, Recorder(lambda x: (x - target).square().sum()), torch.full_like(target, 0.5)))
    assert found[-1].loss < 0.2 * found[0].loss
    assert all(each.point.shape == target.shape and each.point.dtype == torch.float32 for each in found)


# ── Evaluations ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("function", [rosenbrock, quadratic(8)[0]], ids=["valley", "bowl"])
def test_no_point_is_evaluated_twice(name: str, function: Function) -> None:
    recorder = Recorder(function)
    found = take(60, run(name, recorder, start(8)))
    recorder.assert_no_point_twice()
    assert found[-1].evaluations == len(recorder.points)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_evaluation_waits_until_it_is_asked_for(name: str) -> None:
    recorder = Recorder(rosenbrock)
    iterates = run(name, recorder, start(6))
    assert len(recorder.points) == 0
    for _ in range(5):
        current = next(iterates)
        assert len(recorder.points) == current.evaluations
    iterates.close()
    assert len(recorder.points) == current.evaluations


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_there_is_an_iterate_for_every_evaluation_and_steps_are_numbered(name: str) -> None:
    found = take(40, run(name, Recorder(rosenbrock), start(6)))
    assert [each.evaluations for each in found] == list(range(1, 41))
    assert torch.equal(found[0].point, start(6)) and found[0].iteration == 0
    assert {after.iteration - before.iteration for before, after in pairwise(found)} <= {0, 1}
    assert found[-1].iteration >= 30


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_iterate_says_what_was_found_at_its_point(name: str) -> None:
    for each in take(40, run(name, Recorder(rosenbrock), start(6))):
        value, gradient = Recorder(rosenbrock)(each.point)
        assert each.loss == value and torch.equal(each.gradient, gradient)


def test_lbfgs_needs_one_evaluation_per_step_as_a_rule() -> None:
    function, least = quadratic()
    last = accepted(40, run("lbfgs", Recorder(function), torch.zeros_like(least)))[-1]
    assert last.evaluations <= 1.15 * (last.iteration + 1)


def test_the_first_step_has_the_length_asked_for() -> None:
    first, second, *_ = take(3, run("lbfgs", Recorder(quadratic(condition=2)[0]), start(30)))
    step = second.point - first.point
    assert float(step.norm()) == pytest.approx(0.1)
    assert float(step @ first.gradient) == pytest.approx(-float(step.norm() * first.gradient.norm()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_start_is_left_alone(name: str) -> None:
    begin = start(6)
    take(5, run(name, Recorder(rosenbrock), begin))
    assert torch.equal(begin, start(6))


# ── The direction of L-BFGS ──────────────────────────────────────────────────────────────────────────────────────────


def two_loops(gradient: Tensor, pairs: deque[tuple[Tensor, Tensor]]) -> Tensor:
    """Nocedal & Wright 2006, algorithm 7.4 with the scaling of equation 7.20, as printed; pairs from the oldest."""
    q = gradient.clone()
    alphas = []
    for s, y in reversed(pairs):
        alpha = (s @ q) / (y @ s)
        q = q - alpha * y
        alphas.append(alpha)
    s, y = pairs[-1]
    r = (s @ y) / (y @ y) * q
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        beta = (y @ r) / (y @ s)
        r = r + s * (alpha - beta)
    return -r


@pytest.mark.parametrize("history", [1, 3, 50])
@pytest.mark.parametrize("function", [rosenbrock, quadratic(12)[0]], ids=["valley", "bowl"])
def test_steps_are_the_textbooks(function: Function, history: int) -> None:
    recorder = Recorder(function)
    pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=history)
    compared = 0
    for before, after in pairwise(accepted(25, run("lbfgs", recorder, start(12), history=history))):
        tried = recorder.points[before.evaluations]  # the first point evaluated after `before`
        if pairs:
            torch.testing.assert_close(tried - before.point, two_loops(before.gradient, pairs), rtol=1e-6, atol=1e-10)
            compared += 1
        s, y = after.point - before.point, after.gradient - before.gradient
        if float(s @ y) > 0:
            pairs.append((s, y))
    assert compared >= 20


def test_a_history_in_16_bit_points_the_same_way() -> None:
    function, least = quadratic(condition=20)
    begin = torch.zeros_like(least).float()
    minimise = optimizers.lbfgs(
        Recorder(lambda x: function(x.double())), begin, unit_step, history=10, half_history=True
    )
    *_, last = take(60, minimise)
    torch.testing.assert_close(last.point.double(), least, rtol=0, atol=1e-3)


# ── What is not finite, and what can't be lowered ────────────────────────────────────────────────────────────────────


def with_hole(value: float) -> Function:
    """A bowl around 0 that gives `value` where x₀ > 0.5, on the way from its start."""

    def function(x: Tensor) -> Tensor:
        bowl = (x * torch.arange(1, 7, dtype=x.dtype)).square().sum()
        return bowl * torch.where(x[0] > 0.5, value, 1.0)

    return function


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_lbfgs_steps_back_from_what_is_not_finite(value: float) -> None:
    found = take(60, run("lbfgs", Recorder(with_hole(value)), torch.full((6,), 0.45, dtype=torch.float64)))
    assert all(math.isfinite(each.loss) and bool(each.gradient.isfinite().all()) for each in found)
    assert found[-1].loss < 1e-8


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_lbfgs_ends_where_nothing_is_finite_any_more(broken: str) -> None:
    recorder = Recorder(rosenbrock)

    def evaluate(point: Tensor) -> tuple[float, Tensor]:
        loss, gradient = recorder(point)
        if len(recorder.points) <= 6:
            return loss, gradient
        return (math.nan, gradient) if broken == "loss" else (0.0, gradient * math.inf)

    found = list(run("lbfgs", evaluate, start(6)))
    assert 1 <= found[-1].iteration <= 5
    assert all(math.isfinite(each.loss) and bool(each.gradient.isfinite().all()) for each in found)
    recorder.assert_no_point_twice()
    assert len(recorder.points) <= 6 + 20, "it should not try for ever"


def test_lbfgs_never_rises_above_the_last_five() -> None:
    found = accepted(150, run("lbfgs", Recorder(rosenbrock), start(10)))
    for number in range(1, len(found)):
        assert found[number].loss <= max(each.loss for each in found[max(0, number - 5) : number])


def test_lbfgs_goes_on_from_a_start_that_is_nearly_the_least() -> None:
    # As when a finished picture is given as the start: a first step of the usual length is a thousand times too long.
    begin = torch.full((4,), 5e-5, dtype=torch.float64)
    found = take(40, run("lbfgs", Recorder(lambda x: x.square().sum()), begin))
    assert found[-1].loss < 0.01 * found[0].loss


def test_lbfgs_ends_at_the_least_instead_of_evaluating_it_again() -> None:
    recorder = Recorder(lambda x: (x - 1).square().sum())
    found = take(50, run("lbfgs", recorder, torch.ones(4, dtype=torch.float64)))
    assert len(found) == 1
    assert len(recorder.points) == 1


def test_lbfgs_ends_when_the_numbers_are_too_coarse_for_a_step() -> None:
    recorder = Recorder(rosenbrock)
    found = take(2000, run("lbfgs", recorder, start(6).float()))
    assert len(found) < 2000
    torch.testing.assert_close(found[-1].point, torch.ones(6), rtol=0, atol=1e-3)
    recorder.assert_no_point_twice()


# ── Resuming ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("history", [3, 10])
@pytest.mark.parametrize("at", [0, 1, 2, 7, 15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_resumed_run_is_the_uninterrupted_one(name: str, history: int, at: int, dtype: torch.dtype) -> None:
    begin = start(8).to(dtype)
    iterates = run(name, Recorder(rosenbrock), begin, history=history)
    state = copied(accepted(at + 1, iterates)[-1].state())
    uninterrupted = take(20, iterates)
    first, *resumed = take(21, run(name, Recorder(rosenbrock), begin, history=history, state=state))
    assert first.iteration == at
    for ours, theirs in zip(resumed, uninterrupted, strict=True):
        assert torch.equal(ours.point, theirs.point) and torch.equal(ours.gradient, theirs.gradient)
        assert (ours.loss, ours.iteration, ours.evaluations) == (theirs.loss, theirs.iteration, theirs.evaluations)


@pytest.mark.parametrize("evaluations", range(1, 30))
def test_a_run_resumed_after_a_rejected_trial_takes_the_same_steps(evaluations: int) -> None:
    iterates = run("lbfgs", Recorder(rosenbrock), start(8))
    state = copied(take(evaluations, iterates)[-1].state())
    last = accepted(10, run("lbfgs", Recorder(rosenbrock), start(8), state=state))[-1]
    same = next(each for each in iterates if each.iteration == last.iteration)
    assert torch.equal(last.point, same.point) and last.loss == same.loss


@pytest.mark.parametrize("history", [1, 3, 9])
def test_a_run_resumed_with_another_history_has_the_newest_pairs(history: int) -> None:
    before = accepted(9, run("lbfgs", Recorder(quadratic(12)[0]), start(12), history=6))
    recorder = Recorder(quadratic(12)[0])
    last = before[-1]
    take(2, run("lbfgs", recorder, start(12), history=history, state=copied(last.state())))
    pairs = deque((after.point - each.point, after.gradient - each.gradient) for each, after in pairwise(before[-7:]))
    newest = deque(pairs, maxlen=history)
    torch.testing.assert_close(recorder.points[0] - last.point, two_loops(last.gradient, newest), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resuming_evaluates_nothing_at_once(name: str) -> None:
    before = take(5, run(name, Recorder(rosenbrock), start(8)))[-1]
    recorder = Recorder(rosenbrock)
    first = next(run(name, recorder, start(8), state=copied(before.state())))
    assert recorder.points == []
    assert torch.equal(first.point, before.point) and torch.equal(first.gradient, before.gradient)
    assert (first.loss, first.evaluations) == (before.loss, before.evaluations)


# ── Adam ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_adams_steps_are_torchs() -> None:
    parameter = start(8).requires_grad_()
    theirs = torch.optim.Adam([parameter], lr=0.05, betas=(0.9, 0.99), eps=1e-30)
    for ours in take(60, run("adam", Recorder(rosenbrock), start(8))):
        torch.testing.assert_close(ours.point, parameter.detach(), rtol=1e-9, atol=1e-12)
        theirs.zero_grad()
        rosenbrock(parameter).backward()  # type: ignore[no-untyped-call]
        theirs.step()


def test_adams_rate_is_the_step_length_of_its_first_step() -> None:
    asked: list[tuple[Tensor, Tensor]] = []

    def step_length(point: Tensor, direction: Tensor) -> float:
        asked.append((point, direction))
        return 0.02

    first, second = take(2, OPTIMIZERS["adam"](Recorder(rosenbrock), start(5), step_length, history=1))
    assert len(asked) == 1 and torch.equal(asked[0][1], first.gradient.sign())
    torch.testing.assert_close(second.point, first.point - 0.02 * first.gradient.sign())


def test_adam_leaves_alone_what_has_no_gradient() -> None:
    found = take(10, run("adam", Recorder(lambda x: x[0] ** 2 + 0 * x[1]), torch.ones(2)))
    assert float(found[-1].point[1]) == 1
    assert all(bool(each.point.isfinite().all()) for each in found)


# ── Where no step helps ──────────────────────────────────────────────────────────────────────────────────────────────


def test_lbfgs_goes_on_where_the_loss_has_become_more_exact() -> None:
    """A loss in steps of 0.25 stalls; the exact one leads to the least, from where the other ended."""
    exact: list[bool] = []

    def evaluate(point: Tensor) -> tuple[float, Tensor]:
        value = float(point.square().sum())
        return (value if exact else math.ceil(4 * value) / 4), (2 * point if exact else torch.zeros_like(point) + 1e-3)

    def stalled() -> bool:
        exact.append(True)
        return len(exact) == 1

    iterates = list(optimizers.lbfgs(evaluate, start(5), unit_step, history=5, stalled=stalled))
    again = [found for before, found in pairwise(iterates) if found.iteration == before.iteration]
    assert any(found.loss == float(found.point.square().sum()) for found in again)
    assert iterates[-1].loss < 1e-12
    assert len(exact) == 2
