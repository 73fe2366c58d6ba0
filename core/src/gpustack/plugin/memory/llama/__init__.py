"""What engines made of llama.cpp have in common: their parameters, their memory, and the files beside a model.

    from gpustack.plugin.memory.llama import Case, Parameters, claim, ways, with_companions

    parameters = with_companions(model, Parameters.parse(request.parameters), model.path)
    case = Case(model, parameters, request.version)
    ways(case, gpus=len(request.devices))       # claims, the best first

An engine that lays things out in another way says so with an :class:`Engine`, and with :class:`Flags` when it is spoken
to in another way. All functions are pure, and raise Refused for parameters that can never work.
"""

from gpustack.plugin.memory.llama.claims import Case, claim, layers_on_gpus, spread, ways
from gpustack.plugin.memory.llama.files import projector_among, projector_beside, with_companions
from gpustack.plugin.memory.llama.less import suggestions, that_help
from gpustack.plugin.memory.llama.parameters import Flags, Parameters
from gpustack.plugin.memory.llama.shape import Engine, Shape, is_whole_input

__all__ = [
    "Case",
    "Engine",
    "Flags",
    "Parameters",
    "Shape",
    "claim",
    "is_whole_input",
    "layers_on_gpus",
    "projector_among",
    "projector_beside",
    "spread",
    "suggestions",
    "that_help",
    "ways",
    "with_companions",
]
