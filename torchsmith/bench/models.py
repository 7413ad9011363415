"""Models to measure, by name: a timm name, a transformers name, or `file.py:function`."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from torchsmith.bench.machine import memory_bytes
from torchsmith.errors import InvalidOption

TOKENS = 128
BERT_BASE = "bert_base"  # beside "bert" of transformers: token numbers in, the last hidden state out, and nothing else
# f32 weights, their float64 reference, a bf16 copy, and what three or four sides pack for themselves
BYTES_PER_PARAMETER = 4 + 8 + 2 + 16


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        """Every tensor, in the order in which torch.export flattens them."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    @property
    def items(self) -> int:
        """The batch size, as far as the first tensor's first dimension tells; throughput is counted in it."""
        first = next(iter(self.tensors()), None)
        return int(first.shape[0]) if first is not None and first.dim() else 1


@dataclass(frozen=True)
class Model:
    """A model that can be made again and again, the same each time.

    module(batch): an `nn.Module` in evaluation mode, f32, on the CPU. inputs(batch, seed): what to call it with.
    batched: whether the batch size can be chosen; where it cannot, `batch` is ignored.
    """

    name: str
    module: Callable[[int], nn.Module]
    inputs: Callable[[int, int], Inputs]
    batched: bool = True


def load(name: str) -> Model:
    """Find a model by its name. Raises InvalidOption, with the nearest names, where there is none."""
    if ".py:" in name:
        return _from_file(name)
    if name == BERT_BASE:
        return _bert_base()
    import timm

    if timm.is_model(name):
        return _from_timm(name)
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    if name in MODEL_MAPPING_NAMES:
        return _from_transformers(name)
    known = [*timm.list_models(), *MODEL_MAPPING_NAMES]
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "`timm.list_models()` lists the former."
    raise InvalidOption(f"model {name!r} is neither a timm name, nor a transformers name, nor a file.py:function; {hint}")


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Give a fresh model the statistics of a trained one, in place, so that a wrongly folded constant shows.

    Batch-norm means become 0.1 * normal and variances 0.5 + uniform. Parameters that are still all equal (affine weights,
    biases, layer scales, some heads) get 0.1 * normal on top: a branch or a head that starts at zero would otherwise hide
    everything before it.
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            for name, buffer in part.named_buffers(recurse=False):
                if name == "running_mean":
                    buffer.copy_(torch.randn(buffer.shape, generator=rng) * 0.1)
                elif name == "running_var":
                    buffer.copy_(torch.rand(buffer.shape, generator=rng) + 0.5)
        for parameter in module.parameters():
            if parameter.numel() and parameter.is_floating_point() and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.1)
    return module


def seeded(seed: int, make: Callable[[], Any]) -> Any:
    """Call make() with torch's random state set to `seed`, and put the state back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _from_timm(name: str) -> Model:
    import timm

    def module(batch: int) -> nn.Module:
        made: nn.Module = seeded(0, lambda: timm.create_model(name, pretrained=False))
        return randomise(made.eval(), seed=0)

    def inputs(batch: int, seed: int) -> Inputs:
        size = timm.get_pretrained_cfg_value(name, "input_size") or (3, 224, 224)
        return Inputs((seeded(seed, lambda: torch.randn(batch, *size)),))

    return Model(name, module, inputs)


def _from_transformers(name: str) -> Model:
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(name)
    config.use_cache = False
    with torch.device("meta"):
        outline = AutoModel.from_config(config)
    _fits_in_memory(name, outline)
    main_input = outline.main_input_name
    if main_input not in ("input_ids", "pixel_values"):
        raise InvalidOption(
            f"{name} of transformers takes {main_input!r}, which bench cannot make up; "
            "write a function that returns (module, args) and give it as file.py:function"
        )

    def module(batch: int) -> nn.Module:
        return randomise(seeded(0, lambda: AutoModel.from_config(config)).eval(), seed=0)

    def inputs(batch: int, seed: int) -> Inputs:
        if main_input == "pixel_values":
            side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
            return Inputs((), {"pixel_values": seeded(seed, lambda: torch.randn(batch, config.num_channels, side, side))})
        ids = seeded(seed, lambda: torch.randint(1, config.get_text_config().vocab_size, (batch, TOKENS)))
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if config.is_encoder_decoder:
            given["decoder_input_ids"] = ids.clone()
        return Inputs((), given)

    return Model(name, module, inputs)


class LastHiddenState(nn.Module):
    """A transformers model, called with what it takes first. ids: int64 (batch, tokens)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.model(ids).last_hidden_state
        return hidden


def _bert_base() -> Model:
    from transformers import BertConfig, BertModel

    config = BertConfig(attn_implementation="sdpa")

    def module(batch: int) -> nn.Module:
        return randomise(seeded(0, lambda: LastHiddenState(BertModel(config))).eval(), seed=0)

    def inputs(batch: int, seed: int) -> Inputs:
        return Inputs((seeded(seed, lambda: torch.randint(1, config.vocab_size, (batch, TOKENS))),))

    return Model(BERT_BASE, module, inputs)


def _fits_in_memory(name: str, outline: nn.Module) -> None:
    """Raise InvalidOption for a default configuration that this machine cannot hold several times over."""
    parameters = sum(p.numel() for p in outline.parameters())
    have = memory_bytes()
    if have and parameters * BYTES_PER_PARAMETER > have:
        raise InvalidOption(
            f"{name} of transformers has {parameters / 1e9:.1f} billion parameters by default; comparing it takes about "
            f"{parameters * BYTES_PER_PARAMETER / 2**30:.0f} GiB and this machine has {have / 2**30:.0f} GiB; "
            "write a function that returns a smaller one and give it as file.py:function"
        )


def _from_file(name: str) -> Model:
    """A function that returns a module, or (module, args), or (module, args, kwargs); it may take `batch`.

    A module alone is given images of (batch, 3, 224, 224).
    """
    function = function_of(name, "the model is")
    takes_batch = "batch" in inspect.signature(function).parameters

    def call(batch: int, seed: int) -> tuple[nn.Module, Inputs | None]:
        made = seeded(seed, lambda: function(batch=batch) if takes_batch else function())
        return _read_example(name, made)

    def module(batch: int) -> nn.Module:
        return call(batch, 0)[0].eval()

    def inputs(batch: int, seed: int) -> Inputs:
        own = call(batch, seed)[1]
        return own or Inputs((seeded(seed, lambda: torch.randn(batch, 3, 224, 224)),))

    return Model(name, module, inputs, batched=takes_batch or call(1, 0)[1] is None)


def _read_example(name: str, made: Any) -> tuple[nn.Module, Inputs | None]:
    """Sort what a user's function returned into a module and its inputs."""
    if isinstance(made, nn.Module):
        return made, None
    if isinstance(made, tuple) and len(made) in (2, 3) and isinstance(made[0], nn.Module):
        module, args, kwargs = made if len(made) == 3 else (*made, {})
        args = (args,) if isinstance(args, Tensor) else args
        if isinstance(args, (tuple, list)) and isinstance(kwargs, dict):
            return module, Inputs(tuple(args), kwargs)
    raise InvalidOption(f"{name} returned {type(made).__name__}; it returns a module, (module, args) or (module, args, kwargs)")


def function_of(name: str, what: str) -> Callable[..., Any]:
    """The function that `file.py:function` names. what: it is for, such as "the model is". Raises InvalidOption."""
    path, _, function_name = name.rpartition(":")
    if not Path(path).is_file():
        raise InvalidOption(f"there is no file {path}; {what} given as file.py:function")
    function = getattr(_import_file(Path(path)), function_name, None)
    if not callable(function):
        raise InvalidOption(f"{path} has no function {function_name!r}; {what} given as file.py:function")
    found: Callable[..., Any] = function
    return found


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"torchsmith_bench_{path.stem}", path)
    assert spec is not None and spec.loader is not None, path
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses and pickle look a class's module up by its name
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # the file may import its neighbours, as a script may
    spec.loader.exec_module(found)
    return found
