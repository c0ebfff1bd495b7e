"""Print the Markdown tables of the README from the JSON that the benchmarks wrote.

    python benchmarks/table.py                                       # the newest results there are
    python benchmarks/table.py benchmarks/results/<machine>

Each table is followed by the command and the machine that its numbers came from.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def threads_text(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def newest() -> Path:
    reports = sorted(RESULTS.glob("*/*.json"), key=lambda path: path.stat().st_mtime)
    if not reports:
        raise SystemExit(f"no results in {RESULTS}: make bench")
    return reports[-1].parent


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n| {' | '.join(head)} |\n|{'---|' + '---:|' * (len(head) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def seconds(timing: Mapping[str, Any]) -> str:
    """Three digits, with half of the IQR in the last unit shown."""
    median, half = timing["median"], timing["iqr"] / 2
    if median >= 1:
        return f"{median:.2f} ± {half:.2f} s"
    digits = 0 if median >= 0.1 else 1
    return f"{1e3 * median:.{digits}f} ± {1e3 * half:.{digits}f} ms"


def mean_field(report: Mapping[str, Any]) -> None:
    cases = report["results"]["cases"]
    ours = [name for name in cases[0]["seconds"] if name != "pydensecrf"]
    rows = []
    for case in cases:
        times, speedups, peaks = case["seconds"], case.get("speedup", {}), case["peak_rise_bytes"]
        cells = [f"{case['width']} × {case['height']}, C = {case['classes']}"]
        ratios = [f" (**{speedups[name]:.1f} ×**)" if name in speedups else "" for name in ours]
        memory = [f"{peaks[side] / 2**20:.0f}" for side in ("pydensecrf", "ours") if side in peaks]
        cells.append(seconds(times["pydensecrf"]) if "pydensecrf" in times else "")
        cells += [seconds(times[name]) + ratio for name, ratio in zip(ours, ratios)]
        cells.append(" / ".join(memory) + " MiB")
        rows.append(cells)
    columns = [name.replace("ours", "densecrf_cuda") for name in ours]
    print_table(["", "pydensecrf, 1 thread", *columns, "rise of peak memory, pydensecrf / densecrf_cuda"], rows)


def backward(report: Mapping[str, Any]) -> None:
    rows = [
        [
            f"{case['width']} × {case['height']}, C = {case['classes']}, {case['gradients']}, "
            f"{threads_text(case['threads'])}",
            seconds(case["seconds"]["reference"]),
            f"{seconds(case['seconds']['ours'])} (**{case['speedup']:.1f} ×**)",
        ]
        for case in report["results"]
    ]
    print_table(["forward and backward", "autograd through the reference", "densecrf_cuda"], rows)


def lattice(report: Mapping[str, Any]) -> None:
    rows, names = [], list(report["results"]["cases"][0]["seconds"])
    for case in report["results"]["cases"]:
        title = f"`{case['op'].split(',')[0]}`{', transposed' if 'transposed' in case['op'] else ''}"
        sizes = f"{case['width']} × {case['height']}, C = {case['classes']}, d = {case['d']}"
        rows.append([f"{title}, {sizes}", *(seconds(case["seconds"][name]) for name in names)])
    print_table(["", *(name.replace("ours", "densecrf_cuda") for name in names)], rows)


def scaling(report: Mapping[str, Any]) -> None:
    results = report["results"]
    rows = [
        [f"{sizes[0]['height']} × {sizes[0]['width']}", *(seconds(size["seconds"]) for size in sizes)]
        for sizes in zip(*results.values())
    ]
    print_table(["pixels", *(threads_text(int(count)) for count in results)], rows)


def separable_conv(report: Mapping[str, Any]) -> None:
    rows = []
    for case in report["results"]:
        sizes = f"{case['channels']} > {case['out_channels']}, {case['size']} × {case['size']}, d = {case['dilation']}"
        cells = [f"{case['name']}, {sizes}, {threads_text(case['threads'])}", seconds(case["seconds"]["mm"])]
        for name, facts in case["layouts"].items():
            speedup = f"**{facts['speedup']['same layout']:.1f} ×**, {facts['speedup']['better layout']:.2f} ×"
            rates = f"{facts['gflops']:.0f} GFLOP/s, {facts['gigabytes_per_second']:.1f} GB/s"
            cells += [seconds(case["seconds"][f"pytorch, {name}"])]
            cells += [f"{seconds(case['seconds'][f'ours, {name}'])} ({speedup}; {rates})"]
        rows.append(cells)
    layouts = ("channels_last", "contiguous")
    sides = [f"{side}, {layout}" for layout in layouts for side in ("F.conv2d twice", "densecrf_cuda")]
    print_table(["(× the same layout, × the better of PyTorch's)", "torch.mm of the pointwise part", *sides], rows)


def describe(report: Mapping[str, Any]) -> str:
    facts = report["machine"]
    versions = {"Python": facts["python"], **facts["versions"]}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return (
        f"`{report['command']}` on {facts['processor']} ({facts['cores']} cores), {listed}, "
        f"commit {facts['commit'][:10]}{'+changes' if '+' in facts['commit'] else ''}, {facts['date']}; "
        f"medians of {report['repeat']} ± half the interquartile range."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="default: that of the newest results")
    folder = parser.parse_args().folder or newest()
    tables = {"mean_field": mean_field, "backward": backward, "lattice": lattice, "scaling": scaling}
    tables["separable_conv"] = separable_conv
    for name, show in tables.items():
        path = folder / f"{name}.json"
        if path.exists():
            report = json.loads(path.read_text())
            show(report)
            print(f"\n{describe(report)}")


if __name__ == "__main__":
    main()
