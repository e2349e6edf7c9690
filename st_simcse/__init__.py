"""SimCSE for sentence-transformers. The public names are those of ``__init__.pyi``, imported when they are first used.

The libraries underneath take seconds to import, and ``st-simcse --help`` needs none of them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
