"""SimCSE for sentence-transformers. The public names are listed in ``__init__.pyi`` and imported on first use.

Importing the underlying libraries takes seconds, and ``st-simcse --help`` does not need them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
