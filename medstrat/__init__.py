"Deep generative clustering of medical images: a book that runs. `__init__.pyi` lists the names; each is imported when it is first asked for."
__version__ = "0.1.0"

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
