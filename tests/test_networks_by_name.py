"""What ``network=`` of a diffusion model may be: a name with sizes, or a module of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sciflow.errors import ConfigError, ShapeError
from sciflow.nets.by_name import network as build_network
from sciflow.nets.given import GivenNetwork


class TestSizes:
    """What users write is checked before anything is built of it."""

    @pytest.mark.parametrize(
        ("name", "key", "value", "says"),
        [
            (name, key, value, says)
            for name, key, says, values in [
                ("mlp", "hidden_features", "whole widths of 1 to 16,384", [None, (), [0], [1.5], [16, -1], 10**5]),
                ("mlp", "embedding_features", "1 to 16,384", [0, 1.5, True, None, 10**5]),
                ("mlp", "num_frequencies", "0 to 24", [-1, 1.5, 10**5]),
                ("mlp", "dropout", "at least 0 and below 1", [1.5, -1, "a", 1, True, None]),
                ("unet", "channels", "1 to 4,096", [0, "4", 10**5]),
                ("unet", "channel_multipliers", "whole numbers of 1 to 4,096", [0, [1.5], [[1]], [True]]),
                ("unet", "blocks_per_level", "1 to 1,000", [-1, 0, 1.5]),
                ("unet", "attention_levels", "whole numbers of -64 to 64", [None, [0.5], "a"]),
                ("unet", "padding", "known: circular, replicate, zeros", [None, 3]),
                ("unet", "grid_dims", r"events \[1, 8, 8\] have 2 or 3", [2.0, True, [2]]),
                ("transformer", "hidden_features", "whole widths", [(), [0]]),
                ("transformer", "num_heads", "1 to 16,384", [0, 1.0, True]),
                ("transformer", "patch_size", "1 to 1,048,576", [1.5, "a", [2, 2.5], False]),
            ]
            for value in values
        ],
    )
    def test_out_of_range(self, name: str, key: str, value: Any, says: str) -> None:
        with pytest.raises(ConfigError, match=f"{key}.*{says}"):
            build_network({name: {key: value}}, (1, 8, 8), None)

    @pytest.mark.parametrize(
        ("name", "sizes"),
        [
            ("mlp", {"hidden_features": 16, "embedding_features": np.int64(8), "dropout": np.float32(0.5)}),
            ("mlp", {"hidden_features": np.array([16, 16]), "num_frequencies": torch.tensor(2)}),
            ("unet", {"channels": np.int64(8), "channel_multipliers": 1, "attention_levels": -1}),
            ("unet", {"channels": 8, "channel_multipliers": None, "grid_dims": np.int64(3)}),
            ("transformer", {"hidden_features": (np.int64(8),), "patch_size": np.int64(2)}),
            ("transformer", {"hidden_features": 8, "patch_size": np.array([2, 4])}),
        ],
    )
    def test_one_for_a_list_and_numbers_of_arrays_are_taken(self, name: str, sizes: dict[str, Any]) -> None:
        x = torch.zeros(2, 1, 8, 8)
        assert build_network({name: sizes}, (1, 8, 8), None)(x, torch.zeros(1)).shape == x.shape

    def test_what_no_memory_holds(self) -> None:
        sizes = {"channels": 1024, "channel_multipliers": 4096, "attention_levels": ()}
        with pytest.raises(ConfigError, match=r"network: unet: of sizes .* it cannot be built"):
            build_network({"unet": sizes}, (1, 8, 8), None)


class Given(nn.Module):
    """A network of the user's own, by the function that it is."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, level: Tensor, context: Tensor | None = None) -> Any:
        return self.answer(x, level, context)


class TestGivenNetworks:
    @pytest.mark.parametrize(("num_levels", "one", "told"), [(1, (1,), (5,)), (2, (1, 2), (5, 2)), (1, (1, 2), (5,))])
    def test_are_told_of_every_rows_level(self, num_levels: int, one: tuple[int, ...], told: tuple[int, ...]) -> None:
        seen = []
        asked = build_network(Given(lambda x, level, context: seen.append(level) or x), (2,), None, num_levels)
        level = torch.randn(one)
        asked(torch.zeros(5, 2), level)
        assert torch.equal(seen[0], level.expand(5, *one[1:]) if len(told) == len(one) else level[:, 0].expand(5))

    @pytest.mark.parametrize(
        ("answer", "found"),
        [
            (lambda x, *_: x[:, :1], r"float32 of \[5, 1\]"),
            (lambda x, *_: x.sum(), r"float32 of \[\]"),
            (lambda x, *_: (x,), "tuple"),
            (lambda x, *_: x.long(), r"int64 of \[5, 2\]"),
        ],
    )
    def test_answer_with_the_shape_of_events(self, answer: Callable[..., Any], found: str) -> None:
        with pytest.raises(ShapeError, match=rf"network: Given\(x, level, context\) must .* \[5, 2\]; got .*{found}"):
            build_network(Given(answer), (2,), None)(torch.zeros(5, 2), torch.zeros(1))

    def test_that_fail_say_what_they_were_told(self) -> None:
        asked = build_network(Given(lambda x, level, _: torch.cat((x, level[:, None]), 1)), (2,), None, num_levels=2)
        with pytest.raises(ShapeError, match=r"x is \[5, 2\], level \[5, 2\] and context None: .*dimensions"):
            asked(torch.zeros(5, 2), torch.zeros(1, 2))
        with pytest.raises(ShapeError, match=r"Linear\(x, level, context\) fails .*positional arguments"):
            build_network(nn.Linear(2, 2), (2,), None)(torch.zeros(5, 2), torch.zeros(1))

    def test_that_find_no_memory_say_so_themselves(self) -> None:
        def answer(x: Tensor, *_: Any) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

        with pytest.raises(torch.OutOfMemoryError):
            GivenNetwork(Given(answer))(torch.zeros(5, 2), torch.zeros(1))

    def test_may_work_in_place(self) -> None:
        context = torch.ones(5, 1)
        asked = GivenNetwork(Given(lambda x, level, context: x + level.mul_(2)[:, None] * context.mul_(3)))
        assert torch.equal(asked(torch.zeros(5, 2), torch.ones(1), context), torch.full((5, 2), 6.0))
        assert torch.equal(context, torch.ones(5, 1))
