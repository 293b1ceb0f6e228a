"""A config's routed experts become a MoeSpec."""

from __future__ import annotations

from edgewright.model.config import MoeSpec
from edgewright.model.config_reader import ConfigReader

_MOST_EXPERTS = 4096


def read_moe(
    reader: ConfigReader, intermediate: int, *, experts: int, top_k: int, fewest: int = 1
) -> MoeSpec:
    """Softmax-routed experts; `experts` and `top_k` are the family's own defaults."""
    # Published and saved configs disagree on the name, within one family too.
    either = "num_local_experts" if "num_local_experts" in reader else "num_experts"
    reader.ignore("num_local_experts", "num_experts")
    count = reader.integer(either, experts, minimum=fewest, maximum=_MOST_EXPERTS)
    chosen = reader.integer("num_experts_per_tok", top_k)
    if count and chosen > count:
        raise reader.error(f"num_experts_per_tok {chosen} is more than the {count} experts")
    activation = reader.activation("hidden_act", "silu")
    if activation == "relu":
        raise reader.wrong("hidden_act", "relu", "silu or gelu, for routed experts")
    return MoeSpec(count, chosen, intermediate, activation)
