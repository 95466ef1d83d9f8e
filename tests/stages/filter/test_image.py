"""A damaged image is refused when it is loaded, so that no kernel ever follows it; a policy too large is refused in words."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from broker.config.policy import PolicyError, compile_policy
from broker.config.policy.image import IMAGE, MAP, TEST, check_image
from broker.core.model import Config, Input, Map, Rule, Tool
from broker.core.stage import Generation
from tests.stages.filter.judging import Judge, one_map_each


def image() -> NDArray[np.uint8]:
    return np.frombuffer(
        compile_policy(one_map_each(("tcp port 80", "net $n", "vlan and not ip"), sets={"n": ("10.0.0.0/8", "::1")})), np.uint8
    ).copy()


def header(made: NDArray[np.uint8]) -> NDArray[np.void]:
    return made[: IMAGE.itemsize].view(IMAGE)


def program_of(made: NDArray[np.uint8]) -> NDArray[np.void]:
    at, n = int(header(made)["tests_at"][0]), int(header(made)["n_tests"][0])
    return made[at : at + n * TEST.itemsize].view(TEST)


def maps_of(made: NDArray[np.uint8]) -> NDArray[np.void]:
    at, n = int(header(made)["maps_at"][0]), int(header(made)["n_maps"][0])
    return made[at : at + n * MAP.itemsize].view(MAP)


def test_a_good_image_is_good_and_the_same_every_time() -> None:
    assert check_image(image()) == ""
    assert image().tobytes() == image().tobytes()


def test_a_damaged_image_is_refused() -> None:
    def set_header(name: str, value: int) -> NDArray[np.uint8]:
        made = image()
        header(made)[name] = value
        return made

    def backwards() -> NDArray[np.uint8]:
        made = image()
        program_of(made)["jumps"][1][0] = 1
        return made

    def too_far() -> NDArray[np.uint8]:
        made = image()
        program_of(made)["jumps"][0][2] = 1000
        return made

    def no_answer() -> NDArray[np.uint8]:
        made = image()
        program_of(made)["jumps"][0][2] = -5
        return made

    def nowhere() -> NDArray[np.uint8]:
        made = image()
        maps_of(made)["first"][0] = 1000
        return made

    def no_slot() -> NDArray[np.uint8]:
        made = image()
        maps_of(made)["slot"][0] = 256
        return made

    damaged = [
        image()[:100], image()[:-1], set_header("magic", 1), set_header("version", 2), set_header("n_tests", 1 << 40),
        set_header("tests_at", -8), set_header("n_maps", 257), set_header("maps_at", 1 << 40), backwards(), too_far(), no_answer(),
        nowhere(), no_slot(),
    ]  # fmt: skip
    assert all(check_image(made) for made in damaged)
    judge = Judge(one_map_each(("tcp",)))
    for made in damaged:
        with pytest.raises(ValueError, match="policy of generation 7"):
            judge.stage.load(Generation(7, judge.config, made, int(made.ctypes.data)))


def test_a_policy_with_more_maps_than_shared_memory_has_rows_is_refused() -> None:
    maps = tuple(Map(f"m{i}", (Rule("pass", "tcp"),), ("t",), slot=i % 256) for i in range(257))
    with pytest.raises(PolicyError, match="257 maps; there is room for 256"):
        compile_policy(Config("n", (Input("i", "pcap"),), (Tool("t", file="-"),), maps))


def test_ten_thousand_rules_make_an_image_in_five_seconds() -> None:
    texts = (f"src net 10.{n >> 8}.{n & 255}.0/24 and dst net 172.16.{n % 251}.0/24 and tcp dst port {n}" for n in range(10_000))
    rules = tuple(Rule("pass", text) for text in texts)
    start = time.process_time()
    made = np.frombuffer(compile_policy(Config("n", (Input("i", "pcap"),), (Tool("t", file="-"),), (Map("m", rules, ("t",)),))), np.uint8)
    assert check_image(made) == ""
    assert len(made) < 32 << 20
    assert time.process_time() - start < 5
