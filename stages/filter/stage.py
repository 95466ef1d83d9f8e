"""filter: marks which tools want each packet.

reads   BLOCK.n_packets; PACKET rows; data; the policy image of the block's generation
writes  VERDICT rows {verdict, flow, cause}; BLOCK.n_wanted
options maps (rules, to, inputs, undetermined), sets, collector, from the configuration by way of the policy image
counts  judged, forwarded, collected, filtered, dropped_rule, dropped_undetermined, undetermined (packets);
        fragments by what is known of them, datagrams forgotten too early, IPv6 chains too long;
        per map: passed and dropped (packets and bytes), undetermined; per tool: wanted_frames;
        per rule: packets and bytes that it decided, packets that it could not be told for (in `rules-N`, rule_counts.py)

Every packet is judged = forwarded (collected is part of it) + filtered + dropped_rule + dropped_undetermined:

| no map passed it, and | cause |
|---|---|
| a drop rule decided in some map | rule: an operator's drop is not undone by the collector |
| else some map could not tell and does not deliver such | undetermined |
| else there is a collector | collected: no map took it |
| else | filtered |

A rule cannot be told when a test of it that matters would read beyond the bytes at hand, whether the capture cut them off or the frame
never had them, or asks for ports that a fragment hides. The map then decides nothing by later rules: it gives the packet to its tools
(`undetermined: deliver`, whatever the rule's action) or not (`drop`), and counts it as undetermined, not as passed or dropped. With
`undetermined: libpcap` there is no such answer: the rule does not match.

How: stages/wire/parse.py makes a KEY row of each packet, stages/wire/fragments.py gives later fragments the ports of their first,
classes.py makes a policy key of that, the memo knows the outcome; on a miss, and for packets whose headers are not wholly there, index.py
finds the rules that the key leaves, and rules.py runs them over the packet itself.
"""

from __future__ import annotations

import os
from typing import ClassVar

from broker.config.policy.image import IMAGE, check_image
from broker.core.batch import Batch
from broker.core.stage import Context, Generation
from stages.filter.kernels import judge_block
from stages.filter.rule_counts import RuleCounting
from stages.filter.state import MEMO_BUCKETS, State


class Filter:
    """`memo=False` looks for the rules of every packet, `index=False` runs them all in order: slow and the same."""

    KIND: ClassVar[str] = "filter"

    def __init__(self, *, memo: bool = True, index: bool = True, memo_buckets: int = MEMO_BUCKETS) -> None:
        self._memo, self._index, self._memo_buckets = memo, index, memo_buckets

    def open(self, context: Context) -> None:
        replay = all(source.kind == "pcap" for source in context.lane.inputs)
        seed = 0 if replay else int.from_bytes(os.urandom(8), "little")  # the same files, the same answers
        self.state = State(
            context.geometry.max_packets, memo=self._memo, index=self._index, memo_buckets=self._memo_buckets, fragment_seed=seed
        )
        self.rule_counts = RuleCounting(context)
        self.state.header["counting_at"], self.state.header["counters_at"] = self.rule_counts.at, context.counters_at
        self._generation: Generation | None = None

    def load(self, generation: Generation) -> None:
        """ValueError: the image is damaged or of another version; this worker cannot go on."""
        wrong = check_image(generation.image)
        if wrong:
            raise ValueError(f"policy of generation {generation.number}: {wrong}")
        self._generation = generation  # keeps the mapping alive
        self.state.load(generation.image)
        self.rule_counts.load(generation.number, int(generation.image[: IMAGE.itemsize].view(IMAGE)["n_rules"][0]))

    def step(self, batch: Batch) -> int:
        self.state.make_room()
        return judge_block(batch.at, self.state.at)

    def close(self) -> None:
        self._generation = None
