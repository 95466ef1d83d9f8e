"""Are the tools there? Those with `health` are asked, beside the supervisor's loop, and `tool_state` says what is known of each."""

from broker.supervisor.probes.prober import EVENTS, Prober

__all__ = ("EVENTS", "Prober")
