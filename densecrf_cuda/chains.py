"""Which modules of a network certainly run one straight after another, so that they may be replaced together."""

from __future__ import annotations

import inspect
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch.fx
from torch import nn

from .folding import has_hooks

__all__ = ["Slot", "find_chains", "runs"]

# A forward that asks for these may take another way with a tensor than with what stands for one in the trace.
QUESTIONS = {"isinstance", "issubclass", "type", "is_tensor", "hasattr", "getattr"}


class Slot(NamedTuple):
    """Where a module hangs."""

    parent: nn.Module
    name: str

    @property
    def module(self) -> nn.Module:
        child = self.parent._modules[self.name]
        assert child is not None
        return child

    def replace(self, module: nn.Module) -> None:
        self.parent._modules[self.name] = module


class _Calls(NamedTuple):
    """What the forward of a module calls."""

    lines: list[list[Slot]]  # the output of each is the input of the next, and nothing else sees it
    whole: bool  # the forward is one line, from its only argument to its result
    others: list[nn.Module]  # inner modules that it reaches into, past the forward of those that hold them


class _Chain(NamedTuple):
    slots: list[Slot]
    whole: bool


def find_chains(
    model: nn.Module, is_leaf: Callable[[nn.Module], bool], matters: Callable[[nn.Module], bool]
) -> list[list[Slot]]:
    """Runs of leaves through which data flow one after another.

    Args:
        model: searched with everything in it.
        is_leaf: where not to look inside.
        matters: of which modules chains are wanted; forwards are looked at only around these, and beside them.

    Returns:
        Chains of slots. No module in them hangs in two places, has hooks or is called by other code that was seen; a
        chain goes into a module and on behind it only if the same holds for that module.
    """
    return list(_Finder(model, is_leaf, matters).chains())


def runs(module: nn.Module) -> bool:
    """Whether the forward of a module in which there was a chain still does with its present children."""
    return isinstance(module, (nn.ModuleList, nn.ModuleDict)) or len(_calls(module).lines) > 0


class _Finder:
    def __init__(
        self, model: nn.Module, is_leaf: Callable[[nn.Module], bool], matters: Callable[[nn.Module], bool]
    ) -> None:
        self.is_leaf = is_leaf
        around = {id(module) for module in model.modules() if any(map(matters, module.modules()))}
        near = around | {id(child) for module in model.modules() if id(module) in around for child in module.children()}
        self.modules = [module for module in model.modules() if id(module) in near and not is_leaf(module)]
        # one use by whoever holds a module, and one by whoever calls it
        self.uses = Counter(id(child) for module in model.modules() for child in _references(module))
        self.calls = {id(module): _calls(module) for module in self.modules}
        for calls in self.calls.values():
            self.uses.update(id(slot.module) for line in calls.lines for slot in line)
            self.uses.update(map(id, calls.others))

    def chains(self) -> Iterator[list[Slot]]:
        continued: set[int] = set()  # modules whose only chain has become a piece of a longer one
        found: dict[int, list[_Chain]] = {}
        for module in reversed(self.modules):  # children before their parents
            found[id(module)] = self._chains_of(module, found, continued)
        for key, chains in found.items():
            if key not in continued:
                yield from (chain.slots for chain in chains)

    def _chains_of(self, module: nn.Module, found: dict[int, list[_Chain]], continued: set[int]) -> list[_Chain]:
        lines, whole, _ = self.calls[id(module)]
        chains = []
        for line in lines:
            pieces: list[list[Slot]] = [[]]
            for slot in line:
                child = slot.module
                inside = found.get(id(child), [])
                if self._is_alone(child) and self.is_leaf(child):
                    pieces[-1].append(slot)
                elif self._is_alone(child) and len(inside) == 1 and inside[0].whole:
                    pieces[-1] += inside[0].slots
                    continued.add(id(child))
                else:
                    pieces.append([])
            chains += [_Chain(piece, whole and len(pieces) == 1) for piece in pieces]
        return chains

    def _is_alone(self, module: nn.Module) -> bool:
        return self.uses[id(module)] == 2 and not _is_watched(module)


def _is_watched(module: nn.Module) -> bool:
    """Whether hooks run with the module, or with what is saved of it."""
    return has_hooks(module) or any(hooks for name, hooks in vars(module).items() if name.endswith("_hooks"))


def _references(module: nn.Module) -> Iterator[nn.Module]:
    """Modules that a module holds: its children, and what its lists and dictionaries hold, which it may call too."""
    for name, value in vars(module).items():
        values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        if not name.endswith("_hooks"):
            yield from (item for item in values if isinstance(item, nn.Module))


def _calls(module: nn.Module) -> _Calls:
    forward = type(module).forward
    if "forward" not in vars(module):
        if isinstance(module, nn.Sequential) and forward is nn.Sequential.forward:
            children = [Slot(module, name) for name, child in module._modules.items() if child is not None]
            return _Calls([children], True, [])
        # torch's own wrappers, for several devices or compiled, do more than call what is in them
        own = type(module).__module__.startswith("torch.") and not isinstance(module, torch.fx.GraphModule)
        if not own and not QUESTIONS & _names(getattr(inspect.unwrap(forward), "__code__", None)):
            graphs = [_trace(module, training) for training in (True, False)]
            if graphs[0] is not None and str(graphs[0]) == str(graphs[1]):
                return _read(module, graphs[0])
    return _Calls([], False, [])


def _names(code: types.CodeType | None) -> set[str]:
    """Global names and attributes that code uses; that of a forward that is no function of Python may use any."""
    if code is None:
        return QUESTIONS
    inner = (_names(const) for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*inner)


class _ShallowTracer(torch.fx.Tracer):
    """Records what the forward of one module calls, and goes into none of it."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _trace(module: nn.Module, training: bool) -> torch.fx.Graph | None:
    """The calls of a forward, or None where they depend on the input, or where it cannot be run without one."""
    probe = object.__new__(type(module))  # keeps for itself what the forward may store in attributes
    probe.__dict__ = {name: dict(value) if type(value) is dict else value for name, value in vars(module).items()}
    probe.__dict__["training"] = training
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _ShallowTracer().trace(probe)
    except Exception:  # whatever a forward raises that meets no tensor
        return None


def _read(module: nn.Module, graph: torch.fx.Graph) -> _Calls:
    lines: list[list[torch.fx.Node]] = []
    for node in graph.nodes:
        if node.op == "call_module":
            before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
            line = next((line for line in lines if line[-1] is before and len(before.users) == 1), [])
            if not line:
                lines.append(line)
            line.append(node)
    first, *_, last = graph.nodes
    whole = (
        len(lines) == 1
        and len(lines[0]) == len(graph.nodes) - 2
        and lines[0][0].args == (first,)
        and last.args == (lines[0][-1],)
    )
    others = []
    for node in graph.nodes:
        path = str(node.target).split(".")[:-1]
        if node.op == "get_attr" and path:
            others.append(module.get_submodule(".".join(path)))
        if node.op == "call_module":
            holders = (module.get_submodule(".".join(path[: end + 1])) for end in range(len(path)))
            if not all(isinstance(holder, (nn.ModuleList, nn.ModuleDict)) for holder in holders):
                others.append(module.get_submodule(str(node.target)))
    slots = [[_slot(module, str(node.target)) for node in line] for line in lines]
    return _Calls(slots, whole, others)


def _slot(module: nn.Module, path: str) -> Slot:
    parent, _, name = path.rpartition(".")
    return Slot(module.get_submodule(parent), name)
