"""What the benchmarks on a GPU share: times by events, rates of the card, facts, and results as JSON and as a table.

Sides take turns in one process on the same inputs, another image in every repetition; before each repetition the L2
cache is overwritten. On the CPU, where a script can only be tried out, times are those of the clock.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # PYTHONSAFEPATH leaves it out
import common
from roofline import Rates

from densecrf_cuda import _C

WARM_UP = 3


def parse_arguments(doc: str | None, parser: argparse.ArgumentParser) -> argparse.Namespace:
    parser.description = doc
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the script out")
    parser.add_argument("--small", action="store_true", help="small inputs, nothing written")
    parser.add_argument("--repeat", type=int, default=20, help="repetitions, at least 5 (default: %(default)s)")
    options = parser.parse_args()
    if options.repeat < 5:
        parser.error("--repeat must be at least 5")
    if options.device == "cuda" and not (_C.cuda_kernels and torch.cuda.is_available()):
        print(f"SKIPPED: {'no GPU' if _C.cuda_kernels else 'the library has no CUDA kernels'}")
        sys.exit(0)
    return options


# --- time -------------------------------------------------------------------------------------------------------------


def time_in_turns(works: Mapping[str, Callable[[int], object]], repeat: int, device: str) -> dict[str, dict[str, Any]]:
    """Seconds of each work, called with the number of the repetition; negative ones warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    trash = torch.empty(_l2_bytes(device) * 2, dtype=torch.uint8, device=device)
    for repetition in range(-WARM_UP, repeat):
        names = list(works) if repetition % 2 else list(works)[::-1]
        for name in names:
            trash.zero_()
            elapsed = elapsed_seconds(lambda: works[name](repetition), device)  # noqa: B023 (called at once)
            if repetition >= 0:
                seconds[name].append(elapsed)
    return {name: common.summarize(runs) for name, runs in seconds.items()}


def elapsed_seconds(work: Callable[[], object], device: str) -> float:
    if device == "cpu":
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    work()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def in_graph(step: Callable[[], object]) -> Callable[[], None]:
    """Capture what a function does, after warming up as graphs need it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = step()

    def replay() -> None:
        graph.replay()
        _ = kept  # what the graph writes lives as long as the graph

    return replay


def print_profile(work: Callable[[int], object], device: str) -> None:
    """Where the time goes, kernel by kernel."""
    from torch.profiler import ProfilerActivity, profile

    activity = ProfilerActivity.CPU if device == "cpu" else ProfilerActivity.CUDA
    with profile(activities=[activity]) as profiler:
        for repetition in range(5):
            work(repetition)
    order = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=70))


# --- the card ---------------------------------------------------------------------------------------------------------


def _l2_bytes(device: str) -> int:
    return torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 1 << 25


def _copy_rate(size: int, device: str, times: int) -> float:
    """Bytes per second, read and written, of copies of `size` bytes: best of ten."""
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))

    def copies() -> None:
        for _ in range(times):
            target.copy_(source)

    run = in_graph(copies) if device == "cuda" else copies
    return 2 * size * times / min(elapsed_seconds(run, device) for _ in range(10))


def measure_rates(device: str) -> Rates:
    """Memory by a large copy, L2 by copies that stay in it, L1 by 128 bytes a clock and multiprocessor."""
    dram = _copy_rate((1 << 32) if device == "cuda" else 1 << 26, device, 1)
    l2 = max(dram, _copy_rate(_l2_bytes(device) // 8, device, 50))
    if device == "cpu":
        return Rates(dram, l2, 1e15)
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    megahertz = _ask_driver("clocks.max.sm") or "1500 MHz"
    return Rates(dram, l2, multiprocessors * 128 * 1e6 * float(megahertz.split()[0]))


def _ask_driver(field: str) -> str | None:
    try:
        command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", "--id=0"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def card(device: str) -> dict[str, Any]:
    """Everything about the card that a time depends on."""
    if device == "cpu":
        return {"name": "cpu"}
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "capability": f"{properties.major}.{properties.minor}",
        "compiled_for": _C.cuda_archs,
        "cuda_of_torch": torch.version.cuda,
        "driver": _ask_driver("driver_version"),
        "clock": _ask_driver("clocks.max.sm"),
        "power_limit": _ask_driver("power.limit"),
    }


# --- peers ------------------------------------------------------------------------------------------------------------

Peer = Callable[..., Tensor]


def load_peer(name: str | None) -> Peer | None:
    """The function of another program, named module:function; None where it cannot be imported."""
    if not name:
        return None
    module, _, function = name.partition(":")
    try:
        peer: Peer = getattr(__import__(module, fromlist=[function]), function)
    except (ImportError, AttributeError) as error:
        print(f"no peer: {error}")
        return None
    return peer


# --- results ----------------------------------------------------------------------------------------------------------


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' + '---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def write_results(name: str, options: argparse.Namespace, results: Any, table: str) -> None:
    """Write results/<card>/<name>.json and .md, unless the run was only a trial."""
    print(f"\n{table}")
    if options.small or options.device == "cpu":
        print("only a trial: nothing written")
        return
    facts = {**common.machine(), "card": card(options.device)}
    folder = common.FOLDER / "results" / re.sub(r"[^a-z0-9]+", "-", facts["card"]["name"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    command = f"python benchmarks/gpu/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip()
    report = {"command": command, "machine": facts, "repeat": options.repeat, "results": results}
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    source = f"`{command}`, commit {facts['commit'][:10]}, {facts['date']}, medians of {options.repeat}"
    (folder / f"{name}.md").write_text(f"{table}\n{source}\n")
    print(f"written: {folder / name}.json and .md")
