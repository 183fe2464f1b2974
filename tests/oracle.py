"""The effective weights of every model of the zoo, computed a second time: slowly, in float64, from the raw model.

This file imports neither TransformerLens nor `embspace_lens`. Each split of a fused matrix, each norm and its position
follow the modelling code of transformers. `oracle(name, hf_model)` must be called before `zoo.boot`,
which rewrites the model in place.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

State = dict[str, Tensor]
Heads = tuple[Tensor, Tensor, Tensor]


@dataclass
class Effective:
    """The correct effective weights of one model."""

    W_E: Tensor  # [d_vocab, d_model]
    W_U: Tensor  # [d_model, d_vocab]
    W_pos: Tensor | None  # [n_ctx, d_model]
    layer_norm: bool  # the norms subtract the mean: they remove the component along the all-ones direction
    attention: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # layer -> W_Q, W_K, W_V, W_O
    mlp: dict[int, dict[int, dict[str, Tensor]]] = field(default_factory=dict)  # layer -> expert -> W_in, W_gate, W_out


@dataclass(frozen=True)
class Norm:
    """One norm: the name of its parameters, and its effect."""

    name: str
    layer_norm: bool = False  # subtracts the mean
    offset: float = 0.0  # the gain is offset + weight

    def gain(self, state: State, d_model: int) -> Tensor:
        """The gain; ones if the norm has no parameters."""
        weight = state.get(f"{self.name}.weight")
        return torch.ones(d_model, dtype=torch.float64) if weight is None else weight + self.offset

    def read(self, weight: Tensor, state: State) -> Tensor:
        """`weight` [... d_model, n], folded: it multiplies the normalised vector without gain."""
        weight = self.gain(state, weight.shape[-2])[:, None] * weight
        return weight - weight.mean(dim=-2, keepdim=True) if self.layer_norm else weight

    def write(self, weight: Tensor, state: State) -> Tensor:
        """`weight` [... n, d_model], folded: its output in the residual stream, up to a positive factor."""
        return weight * self.gain(state, weight.shape[-1])


def _heads(matrix: Tensor, n: int) -> Tensor:
    """Rows of an `nn.Linear` weight [n * d_head, d_model], head after head -> [n, d_model, d_head]."""
    d_head = matrix.shape[0] // n
    return torch.stack([matrix[h * d_head : (h + 1) * d_head].T for h in range(n)])


def _expand(heads: Tensor, n_heads: int) -> Tensor:
    """Repeat each key/value head, once per query head of its group."""
    group = n_heads // heads.shape[0]
    return torch.stack([heads[h // group] for h in range(n_heads)])


# -- how queries, keys and values are stored; each gives W_Q, W_K, W_V as [heads, d_model, d_head]


def separate(query: str, key: str, value: str) -> Callable[[State, str, int], Heads]:
    """Three `nn.Linear`."""

    def split(state: State, prefix: str, n_heads: int) -> Heads:
        q, k, v = (state[f"{prefix}{name}.weight"] for name in (query, key, value))
        n_kv = k.shape[0] // (q.shape[0] // n_heads)
        return _heads(q, n_heads), _heads(k, n_kv), _heads(v, n_kv)

    return split


def conv1d(name: str) -> Callable[[State, str, int], Heads]:
    """GPT-2's transposed matrix, [d_model, 3 * d_model]: queries, keys, values."""

    def split(state: State, prefix: str, n_heads: int) -> Heads:
        q, k, v = state[f"{prefix}{name}.weight"].T.chunk(3)
        return _heads(q, n_heads), _heads(k, n_heads), _heads(v, n_heads)

    return split


def queries_then_keys_then_values(name: str, n_kv: int | None = None) -> Callable[[State, str, int], Heads]:
    """All queries, then all keys, then all values (MPT, Phi-3; Falcon-7B and GPT-BigCode with one key/value head)."""

    def split(state: State, prefix: str, n_heads: int) -> Heads:
        matrix, kv = state[f"{prefix}{name}.weight"], n_kv or n_heads
        d_head = matrix.shape[0] // (n_heads + 2 * kv)
        q, k, v = matrix.split([n_heads * d_head, kv * d_head, kv * d_head])
        return _heads(q, n_heads), _heads(k, kv), _heads(v, kv)

    return split


def by_head(name: str) -> Callable[[State, str, int], Heads]:
    """Head after head: its query, its key, its value (GPT-NeoX, BLOOM, Falcon-RW)."""

    def split(state: State, prefix: str, n_heads: int) -> Heads:
        matrix = state[f"{prefix}{name}.weight"]
        d_head = matrix.shape[0] // (3 * n_heads)
        rows_of = lambda h, i: matrix[(3 * h + i) * d_head : (3 * h + i + 1) * d_head].T  # noqa: E731
        q, k, v = (torch.stack([rows_of(h, i) for h in range(n_heads)]) for i in range(3))
        return q, k, v

    return split


def codegen(state: State, prefix: str, n_heads: int) -> Heads:
    """Four groups of heads. Each group stores queries, values, keys, in this order."""
    groups = state[f"{prefix}attn.qkv_proj.weight"].chunk(4)
    q, v, k = (torch.cat([group.chunk(3)[i] for group in groups]) for i in range(3))
    return _heads(q, n_heads), _heads(k, n_heads), _heads(v, n_heads)


def by_group(name: str, n_kv: int) -> Callable[[State, str, int], Heads]:
    """Group after group: its queries, its key, its value (Falcon's new decoder architecture)."""

    def split(state: State, prefix: str, n_heads: int) -> Heads:
        matrix, per_group = state[f"{prefix}{name}.weight"], n_heads // n_kv
        d_head = matrix.shape[0] // (n_heads + 2 * n_kv)
        rows_of = lambda i: matrix[i * d_head : (i + 1) * d_head].T  # noqa: E731
        first = [group * (per_group + 2) for group in range(n_kv)]
        q = [rows_of(start + i) for start in first for i in range(per_group)]
        k, v = ([rows_of(start + per_group + i) for start in first] for i in range(2))
        return torch.stack(q), torch.stack(k), torch.stack(v)

    return split


def latent(state: State, prefix: str, n_heads: int) -> Heads:
    """Multi-head latent attention, without the dimensions that have rotary positions: head after head, two factors."""
    name = f"{prefix}self_attn."
    kv_down, kv_up = state[f"{name}kv_a_proj_with_mqa.weight"], state[f"{name}kv_b_proj.weight"]
    d_value = state[f"{name}o_proj.weight"].shape[1] // n_heads
    d_key = kv_up.shape[0] // n_heads - d_value
    kv_gain = state[f"{name}kv_a_layernorm.weight"]
    has_query_latent = f"{name}q_a_proj.weight" in state
    q_up = state[f"{name}q_b_proj.weight" if has_query_latent else f"{name}q_proj.weight"]
    d_query = q_up.shape[0] // n_heads
    q, k, v = [], [], []
    for h in range(n_heads):
        query = q_up[h * d_query :][:d_key].T
        if has_query_latent:
            query = state[f"{name}q_a_proj.weight"].T @ (state[f"{name}q_a_layernorm.weight"][:, None] * query)
        q.append(query)
        rows = kv_up[h * (d_key + d_value) :][: d_key + d_value]
        both = kv_down[: len(kv_gain)].T @ (kv_gain[:, None] * rows.T)
        k.append(both[:, :d_key])
        v.append(both[:, d_key:])
    return torch.stack(q), torch.stack(k), torch.stack(v)


def qwen3_next(state: State, prefix: str, n_heads: int) -> Heads:
    """For each head, its query and the gate of its output; only the query is returned."""
    doubled = _heads(state[f"{prefix}self_attn.q_proj.weight"], n_heads)  # [n_heads, d_model, 2 * d_head]
    d_head = doubled.shape[-1] // 2
    k, v = (state[f"{prefix}self_attn.{name}_proj.weight"] for name in "kv")
    return doubled[..., :d_head], _heads(k, k.shape[0] // d_head), _heads(v, v.shape[0] // d_head)


# -- how an MLP is stored; each gives {expert: {weight: tensor}}, expert -1 for a dense or shared MLP


def plain(w_in: str, w_out: str, transposed: bool = False) -> Callable[[State, str], dict]:
    """Two `nn.Linear` (or GPT-2's `Conv1D`), with an activation between them."""

    def read(state: State, prefix: str) -> dict:
        w_in_matrix, out = state[f"{prefix}{w_in}.weight"], state[f"{prefix}{w_out}.weight"]
        return {-1: {"W_in": w_in_matrix, "W_out": out} if transposed else {"W_in": w_in_matrix.T, "W_out": out.T}}

    return read


def gated(mlp: str = "mlp.") -> Callable[[State, str], dict]:
    """Three `nn.Linear`: out(act(gate(x)) * up(x))."""

    def read(state: State, prefix: str) -> dict:
        names = {"W_in": "up_proj", "W_gate": "gate_proj", "W_out": "down_proj"}
        return {-1: {ours: state[f"{prefix}{mlp}{theirs}.weight"].T for ours, theirs in names.items()}}

    return read


def gate_up(fused: str, out: str) -> Callable[[State, str], dict]:
    """One fused `nn.Linear`: first the gate rows, then the rows that the gate multiplies."""

    def read(state: State, prefix: str) -> dict:
        gate, up = state[f"{prefix}{fused}.weight"].chunk(2)
        return {-1: {"W_in": up.T, "W_gate": gate.T, "W_out": state[f"{prefix}{out}.weight"].T}}

    return read


def mixture(
    mlp: str = "mlp.", shared: str | None = None, transposed: bool = False, interleaved: bool = False
) -> Callable[[State, str], dict]:
    """Experts in two stacked parameters; a layer without experts is dense."""

    def read(state: State, prefix: str) -> dict:
        if f"{prefix}{mlp}gate_proj.weight" in state:
            return {-1: gated(mlp)(state, prefix)[-1]}
        fused, down = state[f"{prefix}{mlp}experts.gate_up_proj"], state[f"{prefix}{mlp}experts.down_proj"]
        experts = {}
        for expert in range(fused.shape[0]):
            if interleaved:  # gpt_oss: [d_model, 2 * d_mlp], gate and up columns alternate
                w_gate, w_in, w_out = fused[expert][:, 0::2], fused[expert][:, 1::2], down[expert]
            elif transposed:  # Llama 4: [d_model, 2 * d_mlp], gate columns, then up columns
                (w_gate, w_in), w_out = fused[expert].chunk(2, dim=1), down[expert]
            else:  # [2 * d_mlp, d_model], gate rows, then up rows
                half = fused.shape[1] // 2
                w_gate, w_in, w_out = fused[expert][:half].T, fused[expert][half:].T, down[expert].T
            experts[expert] = {"W_in": w_in, "W_gate": w_gate, "W_out": w_out}
        return experts | ({-1: gated(f"{mlp}{shared}.")(state, prefix)[-1]} if shared else {})

    return read


def lfm2(state: State, prefix: str) -> dict:
    """Linear layers called w1 (gate), w2 (out) and w3 (in); the later blocks of the larger models are mixtures."""
    if f"{prefix}feed_forward.experts.down_proj" in state:
        return mixture("feed_forward.")(state, prefix)
    w_gate, w_out, w_in = (state[f"{prefix}feed_forward.w{i}.weight"].T for i in (1, 2, 3))
    return {-1: {"W_in": w_in, "W_gate": w_gate, "W_out": w_out}}


def granite_hybrid(state: State, prefix: str) -> dict:
    """Experts, and one shared MLP whose gate and up rows are fused."""
    shared = gate_up("shared_mlp.input_linear", "shared_mlp.output_linear")(state, prefix)
    return mixture("block_sparse_moe.")(state, prefix) | {-1: shared[-1]}


# -- the architectures


@dataclass(frozen=True)
class Plan:
    """The names and layouts of the parameters of one architecture. The defaults are those of Llama."""

    layers: str = "model.layers.{}."
    attention: Callable[[State, str, int], Heads] = separate("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")  # noqa: RUF009 (a pure function)
    out: str = "self_attn.o_proj"
    mlp: Callable[[State, str], dict] = gated()  # noqa: RUF009
    norms: tuple[str | None, str | None] = (
        "input_layernorm",
        "post_attention_layernorm",
    )  # before attention and MLP
    post: tuple[str | None, str | None] = (None, None)  # on the outputs of attention and MLP
    layer_norm: bool = False
    offset: float = 0.0
    final: str | None = (
        "model.norm"  # None: no norm, or a head (dense, activation, norm) between it and the unembedding
    )
    embed: str = "model.embed_tokens"
    unembed: str = "lm_head"
    position: tuple[str, int] | None = None  # the table, and how many of its rows precede position 0
    transposed_out: bool = False  # GPT-2's Conv1D


GPT2 = Plan(
    layers="transformer.h.{}.", attention=conv1d("attn.c_attn"), out="attn.c_proj", transposed_out=True,
    mlp=plain("mlp.c_fc", "mlp.c_proj", transposed=True), norms=("ln_1", "ln_2"), layer_norm=True,
    final="transformer.ln_f",
    embed="transformer.wte", position=("transformer.wpe", 0),
)  # fmt: skip
OPT = Plan(
    layers="model.decoder.layers.{}.", out="self_attn.out_proj", mlp=plain("fc1", "fc2"),
    norms=("self_attn_layer_norm", "final_layer_norm"), layer_norm=True, final="model.decoder.final_layer_norm",
    embed="model.decoder.embed_tokens", position=("model.decoder.embed_positions", 2),
)  # fmt: skip
NEOX = Plan(
    layers="gpt_neox.layers.{}.", attention=by_head("attention.query_key_value"), out="attention.dense",
    mlp=plain("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"), layer_norm=True, final="gpt_neox.final_layer_norm",
    embed="gpt_neox.embed_in",
)  # fmt: skip
FALCON = Plan(
    layers="transformer.h.{}.", attention=by_head("self_attention.query_key_value"), out="self_attention.dense",
    mlp=plain("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"), layer_norm=True, final="transformer.ln_f",
    embed="transformer.word_embeddings",
)  # fmt: skip
BERT = Plan(
    layers="bert.encoder.layer.{}.",
    attention=separate("attention.self.query", "attention.self.key", "attention.self.value"),
    out="attention.output.dense", mlp=plain("intermediate.dense", "output.dense"), norms=(None, None), layer_norm=True,
    final=None, embed="bert.embeddings.word_embeddings", unembed="cls.predictions.decoder",
    position=("bert.embeddings.position_embeddings", 0),
)  # fmt: skip
ONE_NORM = ("input_layernorm", "input_layernorm")  # attention and MLP in parallel, reading the same normalised vector
GEMMA2 = Plan(
    norms=("input_layernorm", "pre_feedforward_layernorm"),
    post=("post_attention_layernorm", "post_feedforward_layernorm"),
    offset=1.0,
)
LFM2 = Plan(
    out="self_attn.out_proj", mlp=lfm2, norms=("operator_norm", "ffn_norm"), final="model.embedding_norm",
)  # fmt: skip
JAMBA = Plan(
    mlp=gated("feed_forward."), norms=("input_layernorm", "pre_ff_layernorm"), final="model.final_layernorm",
)  # fmt: skip
OLMO2 = Plan(norms=(None, None), post=("post_attention_layernorm", "post_feedforward_layernorm"))


def _replace(plan: Plan, **changes) -> Plan:
    return Plan(**(vars(plan) | changes))


PLANS: dict[str, Plan] = {
    "gpt2": GPT2,
    "openai_gpt": _replace(
        GPT2, norms=(None, None), final=None, embed="transformer.tokens_embed",
        position=("transformer.positions_embed", 0)
    ),
    "gpt_neo": _replace(
        GPT2, attention=separate(*(f"attn.attention.{x}_proj" for x in "qkv")), out="attn.attention.out_proj",
        transposed_out=False,
        mlp=plain("mlp.c_fc", "mlp.c_proj"),
    ),
    "gpt_neox": NEOX,
    "gpt_neox_sequential": NEOX,
    "gptj": _replace(
        GPT2, attention=separate(*(f"attn.{x}_proj" for x in "qkv")), out="attn.out_proj", transposed_out=False,
        mlp=plain("mlp.fc_in", "mlp.fc_out"), norms=("ln_1", "ln_1"), position=None,
    ),
    "codegen": _replace(
        GPT2, attention=codegen, out="attn.out_proj", transposed_out=False, mlp=plain("mlp.fc_in", "mlp.fc_out"),
        norms=("ln_1", "ln_1"), position=None,
    ),
    "gpt_bigcode": _replace(
        GPT2, attention=queries_then_keys_then_values("attn.c_attn", 1), transposed_out=False, mlp=plain("mlp.c_fc", "mlp.c_proj"),
    ),
    "opt": OPT,
    "opt_post_norm": _replace(OPT, norms=(None, None), final=None),
    "bloom": FALCON,
    "mpt": _replace(
        GPT2, layers="transformer.blocks.{}.", attention=queries_then_keys_then_values("attn.Wqkv"), out="attn.out_proj", transposed_out=False,
        mlp=plain("ffn.up_proj", "ffn.down_proj"), norms=("norm_1", "norm_2"), final="transformer.norm_f",
        position=None,
    ),
    "xglm": _replace(
        OPT, layers="model.layers.{}.", final="model.layer_norm", embed="model.embed_tokens", position=None,
    ),
    "gemma": Plan(offset=1.0),
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA2,
    "gemma4_text": _replace(GEMMA2, offset=0.0),
    "phi3": Plan(attention=queries_then_keys_then_values("self_attn.qkv_proj", 2), mlp=gate_up("mlp.gate_up_proj", "mlp.down_proj")),
    "vaultgemma": Plan(norms=("input_layernorm", "pre_feedforward_layernorm"), offset=1.0),
    "nanochat": Plan(mlp=plain("mlp.fc1", "mlp.fc2")),  # its norms have no parameters
    "bitnet": Plan(),
    "jais2": Plan(mlp=plain("mlp.up_proj", "mlp.down_proj"), layer_norm=True),
    "olmo": Plan(layer_norm=True),
    "olmo2": OLMO2,
    "olmo3": OLMO2,
    "exaone4": OLMO2,
    "glm": Plan(mlp=gate_up("mlp.gate_up_proj", "mlp.down_proj")),
    "glm4": Plan(
        mlp=gate_up("mlp.gate_up_proj", "mlp.down_proj"), post=("post_self_attn_layernorm", "post_mlp_layernorm"),
    ),
    "arcee": Plan(mlp=plain("mlp.up_proj", "mlp.down_proj")),
    "apertus": Plan(mlp=plain("mlp.up_proj", "mlp.down_proj"), norms=("attention_layernorm", "feedforward_layernorm")),
    "nemotron": Plan(mlp=plain("mlp.up_proj", "mlp.down_proj"), layer_norm=True, offset=1.0),
    "phi": Plan(
        out="self_attn.dense", mlp=plain("mlp.fc1", "mlp.fc2"), norms=ONE_NORM, layer_norm=True,
        final="model.final_layernorm"
    ),
    "starcoder2": Plan(mlp=plain("mlp.c_fc", "mlp.c_proj"), layer_norm=True),
    "stablelm": Plan(layer_norm=True),
    "stablelm_parallel": Plan(norms=ONE_NORM, layer_norm=True),
    "cohere": Plan(norms=ONE_NORM, layer_norm=True),
    "cohere2": Plan(norms=ONE_NORM, layer_norm=True),
    "falcon_7b": _replace(FALCON, attention=queries_then_keys_then_values("self_attention.query_key_value", 1), norms=ONE_NORM),
    "falcon_rw": FALCON,
    "falcon_40b": _replace(FALCON, attention=by_group("self_attention.query_key_value", 2), norms=("ln_attn", "ln_mlp")),
    "mixtral": Plan(mlp=mixture()),
    "qwen2_moe": Plan(mlp=mixture(shared="shared_expert")),
    "qwen3_moe": Plan(mlp=mixture()),
    "gpt_oss": Plan(mlp=mixture(interleaved=True)),
    "olmoe": Plan(mlp=mixture()),
    "granitemoe": Plan(mlp=mixture("block_sparse_moe.")),
    "granitemoehybrid": Plan(mlp=granite_hybrid),
    "jamba": _replace(JAMBA, mlp=mixture("feed_forward.")),
    "qwen3_next": Plan(attention=qwen3_next, mlp=mixture(shared="shared_expert"), offset=1.0),
    "qwen3_5": Plan(attention=qwen3_next, offset=1.0),
    "qwen3_5_moe": Plan(attention=qwen3_next, mlp=mixture(shared="shared_expert"), offset=1.0),
    "olmo_hybrid": OLMO2,  # blocks with softmax attention; blocks with linear attention have Llama's plan: see `plan_of`
    "lfm2": LFM2,
    "lfm2_moe": LFM2,
    "bamba": JAMBA,
    "falcon_h1": JAMBA,
    "llama4_text": Plan(mlp=mixture("feed_forward.", shared="shared_expert", transposed=True)),
    "ernie4_5_moe": Plan(mlp=mixture(shared="shared_experts")),
    "glm4_moe": Plan(mlp=mixture(shared="shared_experts")),
    "flex_olmo": _replace(OLMO2, mlp=mixture()),
    "minimax_m2": Plan(mlp=mixture()),
    "afmoe": Plan(
        mlp=mixture(shared="shared_experts"), norms=("input_layernorm", "pre_mlp_layernorm"),
        post=("post_attention_layernorm", "post_mlp_layernorm"),
    ),
    "bert": BERT,
    "roberta": _replace(
        BERT, layers="roberta.encoder.layer.{}.", embed="roberta.embeddings.word_embeddings",
        unembed="lm_head.decoder", position=("roberta.embeddings.position_embeddings", 2),
    ),
    "modernbert_decoder": Plan(
        attention=separate(*(f"attn.{x}_proj" for x in "qkv")), out="attn.Wo", mlp=gate_up("mlp.Wi", "mlp.Wo"),
        norms=("attn_norm", "mlp_norm"), layer_norm=True, final=None, embed="model.embeddings.tok_embeddings",
        unembed="decoder",
    ),
    "mamba": Plan(layers="backbone.layers.{}.", final="backbone.norm_f", embed="backbone.embeddings"),
}  # fmt: skip
LLAMAS = (
    "llama",
    "llama_bias",
    "mistral",
    "qwen2",
    "qwen3",
    "granite",
    "smollm3",
    "seed_oss",
    "ernie4_5",
    "hunyuan_dense",
    "ministral3",
)
PLANS |= {name: Plan() for name in LLAMAS}

# Multi-head latent attention
LATENT = ("deepseek_v2", "deepseek_v2_lite", "deepseek_v3", "glm4_moe_lite", "glm_moe_dsa", "youtu")
PLANS |= {name: Plan(attention=latent, mlp=mixture(shared="shared_experts")) for name in LATENT}


def plan_of(name: str, layer: int | None = None) -> Plan:
    """The plan of architecture `name`, for one of its blocks or for the weights outside of blocks."""
    return Plan() if (name, layer) == ("olmo_hybrid", 0) else PLANS[name]


def oracle(name: str, hf_model: torch.nn.Module, *, fold: bool = True) -> Effective:
    """The effective weights of `zoo.ZOO[name]`; `fold=False` ignores every norm, as the papers do."""
    plan = plan_of(name)
    state = {key: value.detach().double() for key, value in hf_model.state_dict().items()}
    if not fold:  # also those between the two factors of multi-head latent attention
        state |= {key: torch.ones_like(gain) for key, gain in state.items() if key.endswith("_a_layernorm.weight")}
    config = hf_model.config
    n_layers, n_heads = config.num_hidden_layers, getattr(config, "num_attention_heads", 0)

    def norm(prefix: str, norm_name: str | None) -> Norm | None:
        if norm_name is None or not fold:
            return None
        if name == "modernbert_decoder" and prefix + norm_name == "model.layers.0.attn_norm":
            return None  # an Identity: the first layer reads the embedding norm's output as it is
        return Norm(prefix + norm_name, plan.layer_norm, plan.offset)

    def read(weight: Tensor, normalisation: Norm | None) -> Tensor:
        return weight if normalisation is None else normalisation.read(weight, state)

    def write(weight: Tensor, normalisation: Norm | None) -> Tensor:
        return weight if normalisation is None else normalisation.write(weight, state)

    position = None
    if plan.position is not None:
        table, n_skipped = plan.position
        position = state[f"{table}.weight"][n_skipped:]
    effective = Effective(
        W_E=state[f"{plan.embed}.weight"],
        W_U=read(state[f"{plan.unembed}.weight"].T, norm("", plan.final)),
        W_pos=position,
        layer_norm=plan.layer_norm,
    )
    for layer in range(n_layers):
        plan = plan_of(name, layer)
        prefix = plan.layers.format(layer)
        (before_attention, before_mlp), (after_attention, after_mlp) = (
            [norm(prefix, norm_name) for norm_name in names] for names in (plan.norms, plan.post)
        )
        if f"{prefix}{plan.out}.weight" in state:
            q, k, v = plan.attention(state, prefix, n_heads)
            out = state[f"{prefix}{plan.out}.weight"]
            out = out if plan.transposed_out else out.T  # [n_heads * d_head, d_model]
            effective.attention[layer] = {
                "W_Q": read(q, before_attention),
                "W_K": read(_expand(k, n_heads), before_attention),
                "W_V": read(_expand(v, n_heads), before_attention),
                "W_O": write(torch.stack(out.chunk(n_heads)), after_attention),
            }
        if name != "mamba":
            effective.mlp[layer] = {
                expert: {
                    weight_name: write(weight, after_mlp) if weight_name == "W_out" else read(weight, before_mlp)
                    for weight_name, weight in weights.items()
                }
                for expert, weights in plan.mlp(state, prefix).items()
            }
    return effective
