"""A config's routed experts become a MoeSpec."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import Activation, MlpSpec, MoeSpec
from edgewright.model.config_reader import ConfigReader

_MOST_EXPERTS = 4096
_WIDEST = 1 << 24


def read_moe(
    reader: ConfigReader, intermediate: int, *, experts: int, top_k: int, fewest: int = 1
) -> MoeSpec:
    """Softmax-routed experts; `experts` and `top_k` are the family's own defaults."""
    count = read_expert_count(reader, experts, fewest)
    chosen = reader.integer("num_experts_per_tok", top_k)
    if count and chosen > count:
        raise reader.error(f"num_experts_per_tok {chosen} is more than the {count} experts")
    return MoeSpec(count, chosen, intermediate, _read_activation(reader))


def read_expert_count(reader: ConfigReader, default: int, fewest: int = 1) -> int:
    # Published and saved configs disagree on the name, within one family too.
    either = "num_local_experts" if "num_local_experts" in reader else "num_experts"
    reader.ignore("num_local_experts", "num_experts")
    return reader.integer(either, default, minimum=fewest, maximum=_MOST_EXPERTS)


def read_grouped_moe(
    reader: ConfigReader, default: MoeSpec, *, shared: int, shared_bias: bool = False
) -> MoeSpec:
    """DeepSeek's experts, some shared by all tokens. `default` holds how the family scores them and
    what it has where the config says nothing; groups of one are none."""
    spec = replace(
        default,
        experts=reader.integer("n_routed_experts", default.experts, maximum=_MOST_EXPERTS),
        top_k=reader.integer("num_experts_per_tok", default.top_k),
        intermediate=reader.integer("moe_intermediate_size", default.intermediate, maximum=_WIDEST),
        activation=_read_activation(reader),
        groups=reader.integer_or_null("n_group", default.groups) or 1,
        chosen_groups=reader.integer_or_null("topk_group", default.chosen_groups) or 1,
        weight_scale=reader.positive("routed_scaling_factor", default.weight_scale),
    )
    _check_groups(reader, spec)
    alike = reader.integer("n_shared_experts", shared, maximum=_MOST_EXPERTS)
    together = MlpSpec(spec.intermediate * alike, spec.activation, shared_bias)
    return replace(spec, shared=together)


def _check_groups(reader: ConfigReader, spec: MoeSpec) -> None:
    if spec.experts % spec.groups:
        raise reader.error(
            f"n_routed_experts {spec.experts} is not a multiple of n_group {spec.groups}"
        )
    if spec.chosen_groups > spec.groups:
        raise reader.error(f"topk_group {spec.chosen_groups} is more than n_group {spec.groups}")
    within = spec.chosen_groups * spec.experts // spec.groups
    if spec.top_k > within:
        raise reader.error(
            f"num_experts_per_tok {spec.top_k} is more than the {within} experts to choose from"
        )
    if spec.groups > 1 and spec.group_score == "best_two" and spec.experts < 2 * spec.groups:
        raise reader.error(f"n_group {spec.groups} leaves fewer than two experts in a group")


def _read_activation(reader: ConfigReader) -> Activation:
    activation = reader.activation("hidden_act", "silu")
    if activation in ("relu", "relu_squared"):
        raise reader.wrong("hidden_act", activation, "silu or gelu, for routed experts")
    return activation
