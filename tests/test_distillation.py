"""Students: that they begin as their teachers, learn maps that are known, and keep what a density owes."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sciflow as sf
from sciflow.contexts import Field, Label, Vector
from sciflow.diffusion import Diffusion, Student
from sciflow.diffusion.distillation import METHODS
from sciflow.diffusion.distillation.consistency import Consistency, ConsistencyTraining
from sciflow.diffusion.distillation.flow_map import FlowMap, heun, jumped, over_events
from sciflow.diffusion.distillation.method import Lesson, Method
from sciflow.diffusion.distillation.progressive import Progressive
from sciflow.diffusion.distillation.shortcut import Shortcut
from sciflow.diffusion.parametrization import PARAMETRIZATIONS
from sciflow.diffusion.schedules import schedule
from sciflow.errors import ConfigError, ModelFileError, ShapeError
from sciflow.families import build, load, located
from sciflow.inspection import describe
from sciflow.nets.by_name import network
from sciflow.training.evaluate import Evaluation
from sciflow.training.train import train

SMALL: dict[str, Any] = {"network": {"mlp": {"hidden_features": (32, 32), "embedding_features": 32}}, "seed": 0}
# Waves are for what is fine; a normal distribution is learned sooner without.
SMOOTH: dict[str, Any] = {"network": {"mlp": {**SMALL["network"]["mlp"], "num_frequencies": 0}}, "seed": 0}
NARROW: dict[str, Any] = {"network": {"unet": {"channels": 8, "blocks_per_level": 1}}, "seed": 0}

TEACHERS = [
    *(Diffusion((2,), schedule=name, **SMALL) for name in ("vp", "cosine", "sub-vp", "ve", "edm", "flow")),
    *(Diffusion((2,), schedule="cosine", parametrization=name, **SMALL) for name in PARAMETRIZATIONS),
    Diffusion((3,), context_shape={"season": Label(4), "place": Vector(2)}, **SMALL),
    Diffusion((1, 4, 8), context_shape={"coarse": Field((1, 2, 4))}, **NARROW),
    Diffusion((1, 4, 4), network={"transformer": {"hidden_features": (16, 16), "patch_size": 2}}, seed=0),
]


def context_for(density: sf.Density, n: int | None = None) -> Any:
    if density.contexts is None:
        return None
    lead = () if n is None else (n,)
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randint(kind.num_classes, lead, generator=generator)
        if isinstance(kind, Label)
        else torch.randn(*lead, *kind.shape, generator=generator)
        for name, kind in density.contexts.items()
    }


def randomised(teacher: Diffusion) -> Diffusion:
    """A teacher whose weights are not zero, fitted on data of other units."""
    teacher = Diffusion(**teacher.arguments)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, *teacher.event_shape, generator=generator) * 2 + 7
    teacher.fit_preprocessing(rows, context_for(teacher, 200))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        teacher.denoiser.data_std.fill_(1.25)
    return teacher.eval()


@pytest.fixture
def teacher(request: pytest.FixtureRequest) -> Diffusion:
    return randomised(request.param)


@pytest.mark.parametrize("teacher", TEACHERS, ids=repr, indirect=True)
class TestEveryStudent:
    def test_begins_as_its_teacher(self, teacher: Diffusion) -> None:
        student = Student(teacher=teacher)
        levels = torch.tensor([0.01, 0.3, 1.0, 5.0, 45.0], dtype=torch.float64)
        z = torch.randn(5, *teacher.event_shape) * over_events(levels, torch.zeros(5, *teacher.event_shape)).float()
        c = None if teacher.contexts is None else teacher.pack_context(context_for(teacher, 5)).float()
        t = teacher.schedule.time(levels)
        alpha = over_events(teacher.schedule(t)[0], z).float()
        with torch.no_grad():
            theirs = teacher.denoiser(alpha * z, t, c)
            for target in (levels, levels / 3, torch.zeros_like(levels)):
                torch.testing.assert_close(student.flow_map(z, levels, target, c), theirs, rtol=1e-4, atol=2e-4)

    def test_an_event_without_noise_is_what_it_is(self, teacher: Diffusion) -> None:
        flow_map = Student(teacher=teacher).flow_map
        z, zero = torch.randn(4, *teacher.event_shape), torch.zeros(4)
        assert torch.equal(flow_map(z, zero, zero), z)

    def test_training_lowers_the_loss_by_every_method(self, teacher: Diffusion) -> None:
        x = torch.rand(64, *teacher.event_shape) + 6.5
        context = context_for(teacher, 64)
        for method in METHODS:
            student = Student(teacher=teacher, method=method).train()
            losses = student.loss(x, context)
            assert losses.shape == (64,)
            assert losses.isfinite().all()
            losses.mean().backward()
            trained = [p for p in student.parameters() if p.requires_grad]
            assert all(p.grad is None or p.grad.isfinite().all() for p in trained)
            assert any(p.grad is not None and (p.grad != 0).any() for p in trained)
            assert all(p.grad is None and not p.requires_grad for p in student.teacher.parameters())
            assert not student.teacher.training

    def test_draws_have_the_right_shapes(self, teacher: Diffusion) -> None:
        student, context = Student(teacher=teacher).eval(), context_for(teacher)
        for num_steps in (1, 2, 3, 4):
            draws = student.sample((2, 3), context, num_steps=num_steps, seed=0)
            assert draws.shape == (2, 3, *teacher.event_shape)
            assert draws.isfinite().all()
        assert student.sample(0, context).shape == (0, *teacher.event_shape)

    def test_same_seed_same_draws(self, teacher: Diffusion) -> None:
        student, context = Student(teacher=teacher).eval(), context_for(teacher)
        first, again, other = (student.sample(4, context, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_likelihood_is_the_teachers(self, teacher: Diffusion) -> None:
        student, context = Student(teacher=teacher).eval(), context_for(teacher)
        x = torch.randn(3, *teacher.event_shape) + 7
        mine, theirs = (density.likelihood(x, context, num_draws=8) for density in (student, teacher))
        assert mine.kind == "elbo"
        assert torch.equal(mine.log_prob, theirs.log_prob)

    def test_survives_saving_with_its_teacher(self, teacher: Diffusion, tmp_path) -> None:
        student, context = Student(teacher=teacher, num_steps=3).eval(), context_for(teacher)
        again = load(student.save(tmp_path / "student"))
        assert isinstance(again, Student)
        assert again.arguments == student.arguments
        x = student.sample(3, context, seed=0)
        assert torch.equal(again.sample(3, context, seed=0), x)
        assert torch.equal(again.log_prob(x, context), student.log_prob(x, context))

    def test_leaves_the_teacher_as_it_was(self, teacher: Diffusion) -> None:
        Student(teacher=teacher)
        assert all(parameter.requires_grad for parameter in teacher.parameters())


class Exact(FlowMap):
    r"""The flow map of a standard normal, :math:`G = z \sqrt{(1 + s^2) / (1 + k^2)}`, times what spoils it."""

    def __init__(self, spoilt: float = 1.0) -> None:
        super().__init__(nn.Identity(), schedule("edm"), "edm")
        self.factor = nn.Parameter(torch.tensor(spoilt))

    def forward(self, z: Tensor, level: Tensor, target: Tensor, context: Tensor | None = None) -> Tensor:
        k, s = over_events(level, z).double(), over_events(target, z).double()
        shrunk = torch.sqrt((1 + s**2) / (1 + k**2))
        mean = (k + s) / (k.clamp_min(1e-30) * (1 + k**2) * (shrunk + s / k.clamp_min(1e-30)))
        return torch.where(k > 0, self.factor * mean.to(z.dtype) * z, z)


def exact_mean(z: Tensor, level: Tensor, context: Tensor | None) -> Tensor:
    return z / (1 + over_events(level, z).to(z.dtype) ** 2)


def lesson_for(flow_map: FlowMap, num_steps: int = 2, step: int = 0) -> Lesson:
    events = torch.randn(4096, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Lesson(flow_map.double(), exact_mean, events, None, num_steps, step)


class TestExactMap:
    """Of a standard normal everything is known."""

    def test_its_jumps_keep_the_law(self) -> None:
        level, target = torch.tensor([80.0, 3.0, 1.0]).double(), torch.tensor([0.5, 0.0, 1e-3]).double()
        z = torch.randn(3, 2, dtype=torch.float64)
        got = jumped(z, level, target, Exact()(z, level, target))
        factor = torch.sqrt((1 + target**2) / (1 + level**2))
        torch.testing.assert_close(got, factor[:, None] * z)

    @pytest.mark.parametrize("target", [0.0, 0.3])
    def test_heun_is_of_second_order(self, target: float) -> None:
        level, end = torch.full((1,), 5.0).double(), torch.full((1,), target).double()
        flow_map = Exact().double()
        z = torch.ones(1, 2, dtype=torch.float64)
        truth = math.sqrt((1 + target**2) / 26)
        errors = [
            float((heun(exact_mean, z, flow_map.between(level, end, num_steps)) - truth).abs().max())
            for num_steps in (8, 16, 32)
        ]
        assert errors[2] < 2e-3
        for coarse, fine in pairwise(errors):
            assert 3 < coarse / fine < 6.5

    def test_grids_fall_and_are_nested(self) -> None:
        fine, coarse = Exact().grid(8), Exact().grid(4)
        assert (fine.diff() < 0).all()
        assert float(fine[0]) == 80
        assert float(fine[-1]) == 0
        torch.testing.assert_close(fine[::2], coarse)

    def test_the_loss_of_shortcuts_vanishes_but_for_the_teachers_steps(self) -> None:
        torch.manual_seed(0)
        right, wrong = (Shortcut().loss(lesson_for(Exact(factor))).mean() for factor in (1.0, 1.2))
        assert right < 1e-3 * wrong

    @pytest.mark.parametrize("num_steps", [1, 2, 4])
    def test_the_loss_of_progressive_stages_vanishes(self, num_steps: int) -> None:
        torch.manual_seed(0)
        method = Progressive(previous=Exact().double())
        right, wrong = (method.loss(lesson_for(Exact(factor), num_steps)).mean() for factor in (1.0, 1.2))
        assert right < 1e-20
        assert wrong > 1e-3

    @pytest.mark.parametrize("num_steps", [1, 2, 4])
    def test_the_loss_of_progressive_vanishes_but_for_the_teachers_steps(self, num_steps: int) -> None:
        torch.manual_seed(0)
        right, wrong = (Progressive().loss(lesson_for(Exact(factor), num_steps)).mean() for factor in (1.0, 1.2))
        assert right < 0.02 * wrong

    def test_the_loss_of_consistency_vanishes_as_steps_get_short(self) -> None:
        torch.manual_seed(0)
        early, late = (Consistency().loss(lesson_for(Exact(), step=step)).mean() for step in (0, 10_000))
        wrong = Consistency().loss(lesson_for(Exact(1.2))).mean()
        assert late < early / 1000
        assert early < wrong / 30


class TestTraining:
    @pytest.mark.parametrize(("method", "max_steps"), [("progressive", 60), ("consistency", 300), ("shortcut", 300)])
    def test_draws_in_one_step_what_an_exact_teacher_knows(self, method: str, max_steps: int) -> None:
        # Of zeros, the network of "edm" is the exact denoiser of a normal distribution.
        rows = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 0.5]) + 7
        teacher = Diffusion((2,), **SMOOTH)
        teacher.fit_preprocessing(rows)
        before = Student(teacher=teacher, num_steps=1).eval().sample(4000, seed=0)
        assert (before.std(0) < 0.1 * rows.std(0)).all()
        settings = {"batch_size": 256, "learning_rate": 5e-3, "validate_every": 60, "progress": False}
        student = sf.diffusion.distill(teacher, rows, method, num_steps=1, max_steps=max_steps, **settings)
        draws = student.sample(4000, seed=1)
        assert ((draws.mean(0) - rows.mean(0)).abs() < 0.1 * rows.std(0)).all()
        assert ((draws.std(0) / rows.std(0) - 1).abs() < 0.1).all()
        assert student.provenance["validation"]["unit"] == "squared deviations"
        assert student.provenance["validation"]["mean"] > -0.05

    @pytest.mark.parametrize(
        ("method", "taught"), [("consistency-training", ConsistencyTraining(halved_every=40)), ("shortcut", Shortcut())]
    )
    def test_learns_from_data_alone(self, method: str, taught: Method) -> None:
        rows = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)) * 3 + 7
        student = Student((2,), method=method, num_steps=1, **SMOOTH)
        student.method = taught
        settings = {"batch_size": 256, "learning_rate": 5e-3, "validate_every": 150, "progress": False}
        fit = sf.fit(student, rows, max_steps=300, **settings)
        draws = student.sample(4000, seed=1)
        assert ((draws.mean(0) - 7).abs() < 0.3).all()
        assert ((draws.std(0) / 3 - 1).abs() < 0.15).all()
        assert fit.validation.unit == "energy score"
        # Of standard normals, by root mean squares of the elements: (E |X - Y| - E |X - X'| / 2) / sqrt(2).
        truth = math.sqrt(math.pi) / math.sqrt(2) / 2
        assert abs(-fit.validation.mean - truth) < 4 * fit.validation.error
        with pytest.raises(ConfigError, match="no teacher"):
            student.log_prob(rows[:2])

    def test_is_judged_by_the_distance_to_its_teacher(self) -> None:
        rows = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        teacher = randomised(TEACHERS[0])
        fit = sf.fit(Student(teacher=teacher, method="consistency"), rows + 7, max_steps=20, progress=False)
        names = {name for record in fit.history for name in record}
        assert "validation_score" in names
        assert not names & {"validation_log_prob", "loss"}
        assert str(fit.validation).endswith("squared deviations")
        assert "nats" not in fit.plot().get_label()
        assert "score" in fit.plot().get_label()

    def test_evaluating_twice_is_the_same(self) -> None:
        student = Student(teacher=randomised(TEACHERS[0])).eval()
        x = torch.randn(64, 2) + 7
        found = []
        for _ in range(2):
            torch.manual_seed(0)
            found.append(student.loss(x))
        assert torch.equal(*found)

    def test_rows_outside_the_support_are_impossible(self) -> None:
        teacher = Diffusion((2,), preprocess=["log1p", "standardize"], **SMALL)
        teacher.fit_preprocessing(torch.rand(50, 2))
        student = Student(teacher=teacher)
        x = torch.tensor([[0.5, 0.5], [-2.0, 0.5]])
        assert student.eval().loss(x).isposinf().tolist() == [False, True]
        assert student.train().loss(x).isnan().tolist() == [False, True]

    def test_keeps_the_teachers_units(self) -> None:
        teacher = randomised(TEACHERS[0])
        student = Student(teacher=teacher)
        sf.fit(student, torch.randn(100, 2) * 50 - 400, max_steps=2, progress=False)
        for mine, theirs in zip(student.preprocess.buffers(), teacher.preprocess.buffers(), strict=True):
            assert torch.equal(mine, theirs)

    def test_progressive_halves_its_steps(self) -> None:
        assert Progressive.stages(1) == [8, 4, 2, 1]
        assert Progressive.stages(4) == [8, 4]
        rows = torch.randn(300, 2) + 7
        student = sf.diffusion.distill(randomised(TEACHERS[0]), rows, "progressive", 4, max_steps=3, progress=False)
        assert student.num_steps == 4
        # Of both stages.
        assert int(student.trained_steps) > 3
        assert student.method.previous is None

    def test_a_guided_teacher_is_learned(self) -> None:
        teacher = randomised(Diffusion((2,), context_shape={"side": Label(2)}, **SMALL))
        student = Student(teacher=teacher, guidance=3.0)
        z, level = torch.randn(6, 2), torch.full((6,), 2.0, dtype=torch.float64)
        c = torch.tensor([0, 1, 0, 1, 0, 1.0])[:, None]
        t = teacher.schedule.time(level)
        alpha = teacher.schedule(t)[0].float()[:, None]
        given, without = (teacher.denoiser(alpha * z, t, context) for context in (c, torch.full_like(c, torch.nan)))
        torch.testing.assert_close(student._mean(z, level, c), without + 3 * (given - without))


class TestWorkflow:
    def test_a_workflow_trains_it_from_a_folder(self, tmp_path, monkeypatch, capsys) -> None:
        rows = np.random.default_rng(0).normal(7, 2, (600, 2)).astype("float32")
        np.save(tmp_path / "rows.npy", rows)
        store = sf.shard(tmp_path / "rows.npy", tmp_path / "rows.zarr")
        teacher = Diffusion(store.event_shape, **SMALL)
        sf.fit(teacher, store, max_steps=5, progress=False)
        teacher.save(tmp_path / "teacher")
        monkeypatch.chdir(tmp_path)
        workflow = {
            "name": "student",
            "data": {"store": "rows.zarr"},
            "model": {"name": "student", "teacher": "teacher", "method": "consistency", "num_steps": 2},
            "training": {"max_steps": 6, "validate_every": 3},
        }
        run = train(workflow, runs=tmp_path / "runs", local=True, progress=False)
        student = run.density
        assert isinstance(student, Student)
        assert run.workflow.model["teacher"] == str(tmp_path / "teacher")
        assert student.arguments["teacher"]["provenance"] == teacher.provenance
        assert run.fit().validation.unit == "squared deviations"
        x = torch.from_numpy(rows[:3])
        assert torch.equal(student.log_prob(x), teacher.log_prob(x))
        capsys.readouterr()
        describe(run.folder)
        assert "squared deviations" in capsys.readouterr().out
        (run.folder / "outcome.json").unlink()
        describe(run.folder)
        told = capsys.readouterr().out
        assert "at step 6" in told
        assert "nats" not in told
        # Its folder is all that it takes.
        (tmp_path / "teacher" / "model.json").unlink()
        assert load(tmp_path / "runs" / "student").sample(2).shape == (2, *store.event_shape)

    def test_a_model_section_names_its_teacher_from_anywhere(self, tmp_path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert located({"name": "student", "teacher": "runs/era5"})["teacher"] == str(tmp_path / "runs" / "era5")

    def test_a_missing_teacher_is_told_of(self, tmp_path) -> None:
        with pytest.raises(ConfigError, match="teacher: no model at"):
            build({"name": "student", "teacher": str(tmp_path / "nowhere")}, (2,))

    @pytest.mark.parametrize("family", ["nsf", "student"])
    def test_a_flow_is_no_teacher_nor_is_a_student(self, family: str, tmp_path) -> None:
        density = sf.flows.NSF((2,), num_transforms=1) if family == "nsf" else Student(teacher=TEACHERS[0])
        with pytest.raises(
            ConfigError, match=f"teacher: .*holds a model of family '{family}'; a teacher must be a diff"
        ):
            Student((2,), teacher=density.save(tmp_path / "saved"))

    def test_the_description_names_the_teachers_weights(self, tmp_path) -> None:
        first = Student(teacher=randomised(TEACHERS[0]))
        other = Student(teacher=Diffusion((2,), **{**SMALL, "seed": 1}))
        again = Student(teacher=randomised(TEACHERS[0]))
        assert len(first.arguments["teacher"]["weights"]) == 64
        assert first.arguments["teacher"] == again.arguments["teacher"]
        assert first.arguments["teacher"]["weights"] != other.arguments["teacher"]["weights"]
        json.dumps(first.arguments)


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"method": "consistancy"}, "did you mean consistency"),
            ({"num_steps": 5}, "num_steps must be 1 to 4"),
            ({"num_steps": 0}, "num_steps must be 1 to 4"),
            ({"guidance": "strong"}, "guidance must be a number"),
            ({"context_dropout": 1.0}, "context_dropout must be"),
            ({"teacher": 3}, "teacher: give a Diffusion, or the folder of one"),
            ({"event_shape": (3,)}, r"teacher: of events \[2\]; these are \[3\]"),
            ({"context_shape": (3,)}, "teacher: of contexts of 0 numbers; these have 3"),
        ],
    )
    def test_says_what_is_wrong(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            Student(**{"teacher": TEACHERS[0], **arguments})

    @pytest.mark.parametrize("method", ["progressive", "consistency"])
    def test_some_methods_need_a_teacher(self, method: str) -> None:
        with pytest.raises(ConfigError, match=r"teacher: method .* needs one"):
            Student((2,), method=method)

    def test_without_anything_there_is_no_shape(self) -> None:
        with pytest.raises(ConfigError, match="give a teacher, or event_shape"):
            Student(method="shortcut")

    def test_a_teacher_without_network_needs_one_for_the_student(self, tmp_path) -> None:
        given = Diffusion.from_denoiser(lambda x, t: x / (1 + t[:, None] ** 2 * 6400), (2,), "edm")
        with pytest.raises(ConfigError, match="no network for the student"):
            Student(teacher=given)
        student = Student(teacher=given, network="mlp").eval()
        assert student.sample(3).shape == (3, 2)
        with pytest.raises(ModelFileError, match="denoise of your own"):
            student.save(tmp_path / "student")

    def test_draws_in_no_other_number_of_steps(self) -> None:
        student = Student(teacher=TEACHERS[0], method="progressive", num_steps=2).eval()
        with pytest.raises(ConfigError, match="taught to draw in 2"):
            student.sample(3, num_steps=1)
        for num_steps in (0, 5, 1.5, True):
            with pytest.raises(ConfigError, match="num_steps must be 1 to 4"):
                student.sample(3, num_steps=num_steps)
        with pytest.raises(ConfigError, match="takes num_steps; got sampler"):
            student.sample(3, sampler="heun")

    def test_guidance_needs_context_dropout(self) -> None:
        teacher = Diffusion((2,), context_shape=(1,), context_dropout=0.0, **SMALL)
        with pytest.raises(ConfigError, match="context_dropout 0"):
            Student(teacher=teacher, guidance=2.0)

    def test_what_was_never_left_out_must_be_given(self) -> None:
        teacher = Diffusion((2,), context_shape={"side": Label(2), "height": Vector(1)}, context_dropout=0.0, **SMALL)
        whole, holed = {"side": 1, "height": [0.5]}, {"side": [1, 0], "height": [[0.5], [math.nan]]}
        student = Student(teacher=teacher)
        assert student.sample(3, whole).shape == (3, 2)
        with pytest.raises(ConfigError, match="context: this student was trained with context_dropout 0"):
            student.sample(3, holed)
        assert Student(teacher=teacher, context_dropout=0.1).sample(3, holed).shape == (3, 2, 2)

    def test_a_network_that_knows_of_one_level_is_told_of_two(self) -> None:
        student = Student(teacher=TEACHERS[0], network=OneLevel())
        with pytest.raises(ShapeError, match=r"network: OneLevel.* fails where x is \[3, 2\], level \[3, 2\]"):
            student.sample(3)

    def test_events_of_another_shape(self) -> None:
        with pytest.raises(ShapeError):
            Student(teacher=TEACHERS[0]).loss(torch.zeros(4, 3))


@pytest.mark.parametrize("number", [np.float32, np.float64, int])
def test_numbers_of_numpy_are_numbers(number: type, tmp_path) -> None:
    student = Student(teacher=TEACHERS[0], guidance=number(2), context_dropout=number(0), num_steps=np.int64(1))
    assert student.arguments["guidance"] == 2
    assert load(student.save(tmp_path / "student")).arguments == student.arguments


@pytest.mark.parametrize("seed", [np.int64(1), torch.tensor(1)])
def test_seeds_of_numpy_and_torch_are_seeds(seed: Any) -> None:
    weights, same = (Student((2,), seed=one, network="mlp").state_dict() for one in (1, seed))
    assert all(torch.equal(weights[name], same[name]) for name in weights)


class OneLevel(nn.Module):
    """A network as anybody writes it: of the level of every row."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor, level: Tensor, context: Tensor | None = None) -> Tensor:
        return self.linear(torch.cat((x, level[:, None]), -1))


def test_a_network_of_ones_own_is_told_of_one_level(tmp_path) -> None:
    teacher = Diffusion((2,), network=OneLevel())
    assert teacher.sample(3, num_steps=2).shape == (3, 2)
    with pytest.raises(ConfigError, match="knows of one noise level"):
        Student(teacher=teacher, method="shortcut")
    student = Student(teacher=teacher, method="consistency")
    assert student.sample(3).shape == (3, 2)
    assert student.train().loss(torch.randn(5, 2)).shape == (5,)
    with pytest.raises(ModelFileError, match="network of your own"):
        student.save(tmp_path / "student")


def test_an_evaluation_says_its_unit() -> None:
    assert str(Evaluation(-0.125, 0.01, 10, unit="energy score")) == "-0.12 +- 0.01 energy score"


def test_the_second_level_is_heard() -> None:
    flow_map = FlowMap(network(SMALL["network"], (2,), None, num_levels=2), schedule("edm"), "edm")
    with torch.no_grad():
        for parameter in flow_map.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    z, level = torch.randn(3, 2), torch.ones(3)
    assert not torch.equal(flow_map(z, level, level), flow_map(z, level, 0 * level))
