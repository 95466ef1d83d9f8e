"""A damaged image is refused when it is loaded, so that no kernel ever follows it; a policy too large is refused in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from broker.config.policy import PolicyError, compile_policy
from broker.config.policy.image import CODE_SHIFT, CODE_SKIP_FALSE, CODE_SKIP_TRUE, CODE_TEST, IMAGE, MAP, RULE, VERSION, check_image
from broker.core.model import Config, Input, Map, Rule, Tool
from broker.core.stage import Generation
from tests.stages.filter.judging import Judge, one_map_each


def image() -> NDArray[np.uint8]:
    return np.frombuffer(
        compile_policy(one_map_each(("tcp port 80", "net $n", "vlan and not ip", "ether proto 0x42"), sets={"n": ("10.0.0.0/8", "::1")})),
        np.uint8,
    ).copy()


def header(made: NDArray[np.uint8]) -> NDArray[np.void]:
    return made[: IMAGE.itemsize].view(IMAGE)


def part_of(made: NDArray[np.uint8], name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    at, n = int(header(made)[f"{name}_at"][0]), int(header(made)[f"n_{name}"][0])
    return made[at : at + n * dtype.itemsize].view(dtype)


def test_a_good_image_is_good_and_the_same_every_time() -> None:
    assert check_image(image()) == ""
    assert image().tobytes() == image().tobytes()


def test_a_damaged_image_is_refused() -> None:
    def set_header(name: str, value: int) -> NDArray[np.uint8]:
        made = image()
        header(made)[name] = value
        return made

    def set_part(name: str, row: int, value: int) -> NDArray[np.uint8]:
        made = image()
        part_of(made, name, np.dtype("<u4"))[row] = value
        return made

    def set_field(name: str, field: str, value: int, dtype: np.dtype[Any]) -> NDArray[np.uint8]:
        made = image()
        part_of(made, name, dtype)[field][1] = value
        return made

    damaged = [
        image()[:100], image()[:-1], set_header("magic", 1), set_header("version", VERSION + 1), set_header("n_tests", 1 << 40),
        set_header("tests_at", -8), set_header("n_maps", 257), set_header("maps_at", 1 << 40), set_header("n_rules", -1),
        set_header("code_at", 12), set_header("n_terms", 1 << 40), set_header("predicates_at", 1 << 50), set_header("n_chunks", 0),
        set_part("code", 0, CODE_TEST << CODE_SHIFT | 1000), set_part("code", 0, 15 << CODE_SHIFT),
        set_part("code", 0, CODE_SKIP_FALSE << CODE_SHIFT), set_part("code", 0, CODE_SKIP_TRUE << CODE_SHIFT | 1000),
        set_part("terms", -1, 0), set_part("predicates", 0, 1000), set_field("rules", "n", 1000, RULE),
        set_field("maps", "first_rule", -1, MAP), set_field("maps", "n_rules", 1000, MAP), set_field("maps", "first_term", 1000, MAP),
        set_field("maps", "slot", 256, MAP),
    ]  # fmt: skip
    assert [i for i, made in enumerate(damaged) if not check_image(made)] == []
    judge = Judge(one_map_each(("tcp",)))
    for made in damaged:
        with pytest.raises(ValueError, match="policy of generation 7"):
            judge.stage.load(Generation(7, judge.config, made, int(made.ctypes.data)))


def test_a_policy_with_more_maps_than_shared_memory_has_rows_is_refused() -> None:
    maps = tuple(Map(f"m{i}", (Rule("pass", "tcp"),), ("t",), slot=i % 256) for i in range(257))
    with pytest.raises(PolicyError, match="257 maps; there is room for 256"):
        compile_policy(Config("n", (Input("i", "pcap"),), (Tool("t", file="-"),), maps))


def test_ten_thousand_rules_fit() -> None:
    """How long it takes is for `bench classbench` to say."""
    texts = (f"host 10.{n >> 8}.{n & 255}.{n % 251} and tcp dst port {n}" for n in range(10_000))
    rules = tuple(Rule("pass", text) for text in texts)
    made = np.frombuffer(compile_policy(Config("n", (Input("i", "pcap"),), (Tool("t", file="-"),), (Map("m", rules, ("t",)),))), np.uint8)
    assert check_image(made) == ""
    assert len(made) < 48 << 20
