"""pydensecrf's interface on the kernels of this package: a program changes its import line and nothing else.

    import densecrf_cuda.pydensecrf.densecrf as dcrf
    from densecrf_cuda.pydensecrf.utils import unary_from_softmax

The environment variable `DENSECRF_DEVICE=cuda`, or the keyword `device=` of the classes, moves it to a GPU.
"""

import sys
from importlib import import_module

__all__ = ["replace_pydensecrf"]


def replace_pydensecrf() -> None:
    """Make `import pydensecrf` find this package, for programs and libraries whose imports cannot be edited.

    Call it before anything imports pydensecrf, which need not be installed. Names that were imported from it earlier
    stay what they are.

    Example:
        >>> replace_pydensecrf()
        >>> import pydensecrf.densecrf
        >>> pydensecrf.densecrf.DenseCRF2D.__module__
        'densecrf_cuda.pydensecrf.densecrf'
        >>> for name in [name for name in sys.modules if name.split(".")[0] == "pydensecrf"]:
        ...     del sys.modules[name]
    """
    # A module is looked up by its full name, so each gets its own entry: found by path it would be loaded twice.
    sys.modules["pydensecrf"] = sys.modules[__name__]
    for name in ("densecrf", "eigen", "utils"):
        sys.modules[f"pydensecrf.{name}"] = import_module(f"{__name__}.{name}")
