"""L-BFGS and Adam over one tensor, as generators with one signature.

Both are given a function that evaluates loss and gradient at a point, and yield an `Iterate` after every evaluation: of
the start, of an accepted step, or, with the numbers of the last accepted one, of a trial that was rejected. They never
evaluate a point twice, and closing the generator stops within one evaluation. `Iterate.state` holds everything that a
later run needs to go on exactly.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

Evaluate = Callable[[Tensor], tuple[float, Tensor]]
"""From a point to the loss there and its gradient, a tensor of the point's shape."""

Changed = Callable[[int, int], bool]
"""From the iterations and evaluations so far to whether the objective has become another since the last evaluation."""

Stalled = Callable[[], bool]
"""Asked when no step helps: whether the loss is computed more exactly from now on, so that going on makes sense."""

StepLength = Callable[[Tensor, Tensor], float]
"""From a point and a direction to the factor that makes that direction a first step of sensible size."""

State = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Iterate:
    """The last accepted point. `state` is a call, because gathering it costs memory and most steps never need it."""

    point: Tensor
    loss: float
    gradient: Tensor
    iteration: int
    evaluations: int
    state: Callable[[], State] = field(repr=False)


def _never(iteration: int, evaluations: int) -> bool:
    return False


def _final() -> bool:
    return False


class Optimizer(Protocol):
    """The signature that the optimisers of this module share."""

    def __call__(
        self,
        evaluate: Evaluate,
        start: Tensor,
        step_length: StepLength,
        *,
        history: int,
        half_history: bool = False,
        state: Mapping[str, Tensor] | None = None,
        changed: Changed = _never,
        stalled: Stalled = _final,
    ) -> Generator[Iterate, None, None]:
        """Yields the start, then every accepted step, without end; ends when no step lowers the loss any more.

        Before every step `changed` is asked, and `stalled` instead of ending; where they say so, the point where the
        optimisation stands is evaluated again and yielded with its new loss.
        """


_REFERENCE_LOSSES = 5
_SHORTER = 1 / 4
_QUASI_NEWTON_TRIALS = 4
_STEEPEST_TRIALS = 12
"""Enough to come from the first step's length down to one that helps a picture that is nearly finished."""


def lbfgs(
    evaluate: Evaluate,
    start: Tensor,
    step_length: StepLength,
    *,
    history: int,
    half_history: bool = False,
    state: Mapping[str, Tensor] | None = None,
    changed: Changed = _never,
    stalled: Stalled = _final,
) -> Generator[Iterate, None, None]:
    """Limited-memory BFGS (Nocedal & Wright 2006, algorithm 7.5), one evaluation per step as a rule.

    The first step has the length that `step_length` gives. Every later one is tried at full length and accepted unless
    the loss rises above the largest of the last five (a non-monotone rule, Grippo et al. 1986); then it is shortened,
    and after four trials the memory is dropped for steepest descent. Ends when that doesn't help either. `history` is
    how many pairs are remembered, in bfloat16 with `half_history`.
    """
    memory = _Memory(start.numel(), history, start, torch.bfloat16 if half_history else start.dtype)
    run = _Lbfgs(evaluate, start, step_length, memory, state)
    del start, state  # a large picture's vectors are large
    yield run.iterate()
    run.forget_trials()
    while True:
        if changed(run.iteration, run.evaluations):
            run.evaluate_again()
            yield run.iterate()
        before = run.iteration
        for _ in run.trials():
            yield run.iterate()
        if run.iteration == before:
            if not stalled():
                return
            run.evaluate_again()
            yield run.iterate()


class _Lbfgs:
    def __init__(
        self,
        evaluate: Evaluate,
        start: Tensor,
        step_length: StepLength,
        memory: "_Memory",
        state: Mapping[str, Tensor] | None,
    ) -> None:
        self._evaluate = evaluate
        self._step_length = step_length
        self._memory = memory
        self._accepted = False
        if state is None:
            self.point = start
            self.loss, self.gradient = evaluate(start)
            self.iteration, self.evaluations = 0, 1
            self._recent = deque([self.loss], maxlen=_REFERENCE_LOSSES)
        else:
            self.point, self.gradient = state["point"].to(start), state["gradient"].to(start)
            self.loss, *counts = state["numbers"].tolist()
            self.iteration, self.evaluations, counted = (int(count) for count in counts)
            self._recent = deque(state["recent"].tolist(), maxlen=_REFERENCE_LOSSES)
            self._memory.restore(state)
        self._counted = self.evaluations if state is None else counted

    def iterate(self) -> Iterate:
        return Iterate(self.point, self.loss, self.gradient, self.iteration, self.evaluations, self._state)

    def _state(self) -> State:
        numbers = torch.tensor([self.loss, self.iteration, self.evaluations, self._counted], dtype=torch.float64)
        recent = torch.tensor(list(self._recent), dtype=torch.float64)
        own = {"point": self.point, "gradient": self.gradient, "numbers": numbers, "recent": recent}
        return own | self._memory.state()

    def forget_trials(self) -> None:
        """Trials that were rejected before a run was resumed are made again, and must not count twice."""
        self.evaluations = self._counted

    def evaluate_again(self) -> None:
        """Begins with another objective at the same point; curvature of the old one would mislead (measured)."""
        self.loss, self.gradient = self._evaluate(self.point)
        self.evaluations += 1
        self._counted = self.evaluations
        self._recent = deque([self.loss], maxlen=_REFERENCE_LOSSES)
        self._memory.clear()

    def trials(self) -> Iterator[None]:
        """Evaluates one point after the other until one is accepted; ends without where there is none to be found."""
        if self._memory:
            target = self._memory.direction(self.gradient).add_(self.point)
            yield from self._shorten(target, _QUASI_NEWTON_TRIALS)
            if self._accepted:
                return
            self._memory.clear()
            self._counted = self.evaluations
        steepest = -self.gradient
        target = torch.add(self.point, steepest, alpha=self._step_length(self.point, steepest))
        del steepest  # a large picture's vectors are large
        yield from self._shorten(target, _STEEPEST_TRIALS)

    def _shorten(self, target: Tensor, trials: int) -> Iterator[None]:
        """Tries the target and points ever closer, until one is accepted or is where the optimisation stands."""
        self._accepted = False
        for _ in range(trials):
            if torch.equal(target, self.point):
                return
            self._accepted = self._try(target)
            yield
            if self._accepted:
                return
            target = self.point.lerp(target, _SHORTER)

    def _try(self, point: Tensor) -> bool:
        loss, gradient = self._evaluate(point)
        self.evaluations += 1
        if not (math.isfinite(loss) and loss <= max(self._recent) and bool(gradient.isfinite().all())):
            return False
        self._memory.remember(point - self.point, gradient - self.gradient)
        self.point, self.loss, self.gradient = point, loss, gradient
        self.iteration += 1
        self._counted = self.evaluations
        self._recent.append(loss)
        return True


class _Memory:
    """The last pairs of steps s and gradient changes y, and the direction that they imply.

    The two-loop recursion is run on inner products (Chen, Wang & Zhou 2014, "vector-free L-BFGS"): one pass over the
    memory for the products with the new gradient, one for the direction, instead of four.
    """

    def __init__(self, size: int, capacity: int, like: Tensor, dtype: torch.dtype) -> None:
        self._steps = torch.empty(capacity, size, dtype=dtype, device=like.device)
        self._changes = torch.empty_like(self._steps)
        self._wide = torch.empty(0, dtype=like.dtype, device=like.device)
        self._order: list[int] = []
        self._capacity = capacity
        # Inner products of all steps and changes: rows and columns 0…capacity − 1 are steps, then changes.
        self._products = torch.zeros(2 * capacity, 2 * capacity, dtype=torch.float64)

    def __bool__(self) -> bool:
        return bool(self._order)

    def clear(self) -> None:
        self._order.clear()

    def remember(self, step: Tensor, change: Tensor) -> None:
        """Stores a pair, in place of the oldest when full; a pair without positive curvature is left out."""
        flat_step, flat_change = step.reshape(-1), change.reshape(-1)
        curvature = float(flat_step @ flat_change)
        if curvature <= 1e-10 * float(flat_step.norm() * flat_change.norm()):
            return
        slot = self._order.pop(0) if len(self._order) == self._capacity else len(self._order)
        self._steps[slot].copy_(flat_step)
        self._changes[slot].copy_(flat_change)
        self._order.append(slot)
        for offset, vector in ((0, flat_step), (self._capacity, flat_change)):
            products = self._products_with(vector)
            self._products[slot + offset] = products
            self._products[:, slot + offset] = products

    def _products_with(self, vector: Tensor) -> Tensor:
        used = len(self._order)
        products = torch.zeros(2 * self._capacity, dtype=torch.float64)
        for offset, stored in ((0, self._steps), (self._capacity, self._changes)):
            products[offset : offset + used] = _times(stored[:used], vector).double().cpu()
        return products

    def direction(self, gradient: Tensor) -> Tensor:
        """−H g, with H the inverse Hessian that the pairs imply."""
        flat = gradient.reshape(-1)
        of_pairs, of_gradient = self._coefficients(self._products_with(flat))
        used = len(self._order)
        result = of_gradient * flat
        for offset, stored in ((0, self._steps), (self._capacity, self._changes)):
            _add_combination(result, of_pairs[offset : offset + used].to(flat), stored[:used])
        return result.view_as(gradient)

    def _coefficients(self, with_gradient: Tensor) -> tuple[Tensor, float]:
        """The direction as a combination of steps, changes and the gradient, by the two-loop recursion."""
        table, capacity = self._products, self._capacity
        pairs = torch.zeros(2 * capacity, dtype=torch.float64)
        own = -1.0
        alphas: dict[int, float] = {}
        for slot in reversed(self._order):
            curvature = float(table[slot, slot + capacity])
            alphas[slot] = float(pairs @ table[slot] + own * with_gradient[slot]) / curvature
            pairs[slot + capacity] -= alphas[slot]
        newest = self._order[-1]
        scale = float(table[newest, newest + capacity] / table[newest + capacity, newest + capacity])
        pairs *= scale
        own *= scale
        for slot in self._order:
            curvature = float(table[slot, slot + capacity])
            beta = float(pairs @ table[slot + capacity] + own * with_gradient[slot + capacity]) / curvature
            pairs[slot] += alphas[slot] - beta
        return pairs, own

    def state(self) -> State:
        used = len(self._order)
        return {
            "steps": self._steps[:used],
            "changes": self._changes[:used],
            "order": torch.tensor(self._order, dtype=torch.int64),
            "products": self._products,
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a memory, as it is or, where the capacity is another now, the newest pairs of it."""
        order = [int(slot) for slot in state["order"]]
        if state["products"].shape == self._products.shape and state["steps"].dtype == self._steps.dtype:
            self._order = order
            self._steps[: len(order)] = state["steps"].to(self._steps)
            self._changes[: len(order)] = state["changes"].to(self._changes)
            self._products = state["products"].clone()
            return
        wide = self._wide
        for slot in order[-self._capacity :]:
            self.remember(state["steps"][slot].to(wide), state["changes"][slot].to(wide))


_COLUMNS = 1 << 18
"""Stored vectors in 16 bit are widened this many entries at a time, so that no wide copy of them ever exists."""


def _times(stored: Tensor, vector: Tensor) -> Tensor:
    """`stored @ vector` for [k, n] and [n], summed in the vector's precision."""
    if stored.dtype == vector.dtype:
        return stored @ vector
    parts = range(0, vector.numel(), _COLUMNS)
    products = [stored[:, i : i + _COLUMNS].to(vector) @ vector[i : i + _COLUMNS] for i in parts]
    return torch.stack(products).sum(0)


def _add_combination(total: Tensor, coefficients: Tensor, stored: Tensor) -> None:
    """`total += coefficients @ stored` for [n], [k] and [k, n], in the precision of `total`."""
    for i in range(0, total.numel(), _COLUMNS):
        total[i : i + _COLUMNS] += coefficients @ stored[:, i : i + _COLUMNS].to(total)


_DECAYS = (0.9, 0.99)


def adam(
    evaluate: Evaluate,
    start: Tensor,
    step_length: StepLength,
    *,
    history: int = 0,
    half_history: bool = False,
    state: Mapping[str, Tensor] | None = None,
    changed: Changed = _never,
    stalled: Stalled = _final,
) -> Generator[Iterate, None, None]:
    """Adam (Kingma & Ba 2015), one evaluation per step; the learning rate makes the first step a sensible one.

    The second decay is 0.99: a picture sees the whole objective at every step, not a noisy batch. `history` is unused.
    """
    if state is None:
        point, iteration, evaluations = start, 0, 1
        loss, gradient = evaluate(point)
        first, second = torch.zeros_like(point), torch.zeros_like(point)
        rate = step_length(point, gradient.sign())
    else:
        point, gradient, first, second = (state[key].to(start) for key in ("point", "gradient", "first", "second"))
        loss, rate, *counts = state["numbers"].tolist()
        iteration, evaluations = (int(count) for count in counts)

    def current_state() -> State:
        numbers = torch.tensor([loss, rate, iteration, evaluations], dtype=torch.float64)
        return {"point": point, "gradient": gradient, "first": first, "second": second, "numbers": numbers}

    while True:
        yield Iterate(point, loss, gradient, iteration, evaluations, current_state)
        if changed(iteration, evaluations):
            loss, gradient = evaluate(point)
            evaluations += 1
            continue
        iteration += 1
        first = first.lerp(gradient, 1 - _DECAYS[0])
        second = second.lerp(gradient.square(), 1 - _DECAYS[1])
        unbiased = first / (1 - _DECAYS[0] ** iteration)
        deviation = (second / (1 - _DECAYS[1] ** iteration)).sqrt()
        point = point - rate * unbiased / deviation.clamp_min(torch.finfo(deviation.dtype).tiny)
        loss, gradient = evaluate(point)
        evaluations += 1


OPTIMIZERS: Mapping[str, Optimizer] = {"lbfgs": lbfgs, "adam": adam}
