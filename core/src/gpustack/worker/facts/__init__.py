"""What the headers of a model's files say, read before anything starts.

    facts = read_facts(Path("/models/tiny.gguf"))

Only headers are read, never weights, and nothing is allocated on the word of a file: every count and length is
checked against the size of the file first. The answer is :class:`~gpustack.plugin.ModelFacts`, or
:class:`~gpustack.kit.errors.InvalidInput` with one line; there is no third outcome.
"""

from gpustack.worker.facts.adapters import read_adapters_within
from gpustack.worker.facts.resolve import read_facts, read_facts_within, read_sizes_within

__all__ = ["read_adapters_within", "read_facts", "read_facts_within", "read_sizes_within"]
