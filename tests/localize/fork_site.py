"""Imports transformers as a fork: with replacements in the text of one of its modules."""

import importlib.abc
import importlib.machinery
import sys

MODULE = {module!r}
REPLACEMENTS = {replacements!r}


class Loader(importlib.machinery.SourceFileLoader):
    def get_data(self, path):
        data = super().get_data(path)
        if not path.endswith(".py"):
            raise OSError("a fork has bytecode of its own")
        text = data.decode()
        for old, new in REPLACEMENTS:
            assert old in text, f"{{MODULE}} does not have: {{old}}"
            text = text.replace(old, new)
        return text.encode()

    def _cache_bytecode(self, *arguments, **keywords):
        pass


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


sys.meta_path.insert(0, Finder())
