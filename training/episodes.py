"""Pictures that the student itself makes: where it will be used, and where its blind spots are.

An optimiser that looks through the student's eyes drives a picture to wherever the student errs in its favour; no
collection of photographs shows these places. So the student learns from what it makes (as Ross et al. 2011 let a
driver learn from where its own driving leads, "DAgger"), at every state from the noisy start to the finished picture,
and the pictures are made anew all the time, as it gets better.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from core import optimizers
from core.config import Settings
from core.losses import relative_squared_distance
from core.parametrisation import parametrise
from training.student import CONTENT_LAYER, STYLE_LAYERS, Frozen, Grams, gram
from training.teacher import Teacher

SNAPSHOTS = (1, 6, 16, 30, 45, 60, 80, 100, 130, 160)
"""Evaluations after which an episode's picture is shown to the student."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What one network makes of a picture: Gram matrices of the style layers, and features of the content layer."""

    grams: Mapping[str, Tensor]
    content: Tensor


@dataclass(frozen=True)
class Terms:
    """A result judged by one network: the style term (mean over layers), the layers apart, and the content term."""

    style: float
    layers: Mapping[str, float]
    content: float

    def total(self, content_weight: float) -> float:
        """The product's loss of one level."""
        return self.style + content_weight * self.content


def through_student(student: Frozen, picture: Tensor) -> Seen:
    """A picture [1, 3, H, W] as the student tells it, in the teacher's terms."""
    features = student.features(picture)
    return Seen(student.mapped_grams(features), student.mapped(features[CONTENT_LAYER], CONTENT_LAYER))


def through_teacher(teacher: Teacher, picture: Tensor) -> Seen:
    """A picture [1, 3, H, W] as the teacher sees it."""
    features = teacher.features(picture, (*STYLE_LAYERS, CONTENT_LAYER))
    return Seen({layer: gram(features[layer]) for layer in STYLE_LAYERS}, features[CONTENT_LAYER])


def style_terms(grams: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Relative squared distance of every style layer's Gram matrix from its target."""
    return {layer: relative_squared_distance(grams[layer], targets[layer]) for layer in STYLE_LAYERS}


def content_term(content: Tensor, target: Tensor) -> Tensor:
    """Squared distance of the content features, relative to the target's norm."""
    return relative_squared_distance(content.float(), target.float())


@torch.no_grad()
def judge(seen: Seen, style: Grams | Mapping[str, Tensor], content: Tensor) -> Terms:
    """The terms of a picture, given the targets of its style and content."""
    layers = {layer: float(term) for layer, term in style_terms(seen.grams, style).items()}
    return Terms(sum(layers.values()) / len(layers), layers, float(content_term(seen.content, content)))


@dataclass(frozen=True, eq=False)
class Task:
    """A content, a style and a start, all [1, 3, N, N] in [0, 1]."""

    content: Tensor
    style: Tensor
    start: Tensor


def optimise(student: Frozen, task: Task, settings: Settings) -> Iterator[tuple[int, Tensor]]:
    """Yields evaluations so far and the picture [1, 3, N, N], step by step, as the product's optimiser makes them."""
    with torch.no_grad():
        style = through_student(student, task.style).grams
        content = through_student(student, task.content).content
    rule = parametrise(settings.optimizer, task.start)

    def evaluate(variable: Tensor) -> tuple[float, Tensor]:
        picture = rule.picture(variable).detach().requires_grad_()
        with torch.enable_grad():
            seen = through_student(student, picture)
            style_term = torch.stack(list(style_terms(seen.grams, style).values())).mean()
            loss = style_term + settings.loss.content_weight * content_term(seen.content, content)
        (gradient,) = torch.autograd.grad(loss, picture)
        return float(loss.detach()), rule.pull_back(variable, gradient)

    def step_length(point: Tensor, direction: Tensor) -> float:
        return settings.optimizer.step / max(rule.movement(point, direction), 1e-30)

    for iterate in optimizers.lbfgs(evaluate, rule.start(), step_length, history=settings.optimizer.history):
        yield iterate.evaluations, rule.picture(iterate.point).detach()


def snapshots(student: Frozen, task: Task, settings: Settings, evaluations: int) -> Iterator[Tensor]:
    """The picture at `SNAPSHOTS` of an optimisation of that many evaluations."""
    due = [count for count in SNAPSHOTS if count <= evaluations]
    for done, picture in optimise(student, task, settings):
        if due and done >= due[0]:
            due = [count for count in due if count > done]
            yield picture
        if not due:
            return


def result(student: Frozen, task: Task, settings: Settings, evaluations: int) -> Tensor:
    """The picture after that many evaluations (or the last one, if the optimiser finds no further step)."""
    picture = task.start
    for done, picture in optimise(student, task, settings):  # noqa: B007 - the last one is wanted
        if done >= evaluations:
            break
    return picture
