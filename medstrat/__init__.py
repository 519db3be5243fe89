__version__ = "0.1.0"


def __getattr__(name):
    "Import the module that exports `name` when it is first asked for: `import medstrat` itself loads nothing heavy (PEP 562)."
    from importlib import import_module
    from ._modidx import d
    for module, symbols in d["syms"].items():
        if not name.startswith("_") and f"{module}.{name}" in symbols: return getattr(import_module(module), name)
    raise AttributeError(f"module 'medstrat' has no attribute {name!r}")


def __dir__():
    from ._modidx import d
    return sorted({s.rpartition(".")[2] for m, syms in d["syms"].items() for s in syms if s.count(".") == m.count(".") + 1 and "._" not in s})
