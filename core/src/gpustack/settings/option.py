"""What a field of a settings model says of itself, so that it becomes an option under three names.

    class MySettings(BaseModel):
        acme_url: Annotated[str, Option(help="Where Acme is.", value="URL")] = ""

is ``--acme-url``, ``GPUSTACK_ACME_URL`` and, in the YAML file, ``acme_url``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Group = Literal["Common", "Server", "Worker"]
GROUPS: tuple[Group, ...] = get_args(Group)

#: What stands before every variable's name, as in ``GPUSTACK_DATA_DIR``.
ENV_PREFIX = "GPUSTACK_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option, beside its type and default; everything may be left out."""

    help: str = ""
    #: Where ``gpustack start --help`` lists it.
    group: Group = "Server"
    #: What the flag takes, as the help shows it; empty follows the type.
    value: str = ""
    #: As in ``GiB``; for the documentation.
    unit: str = ""
    short: str = ""
    #: What is said of the default, where the value itself says too little.
    default_text: str = ""
    #: Never shown in output.
    secret: bool = False
    #: Without a flag there are only a variable and a key.
    flag: bool = True
    #: The variable, where it has a name of its own.
    variable: str = ""
    #: Another variable that is read when the own one is not set, as other tools know it.
    also: str = ""
    #: The option that took its place.
    successor: str = ""
    #: What this version cannot do with it yet. It is read and checked, and has no effect.
    later: str = ""
    #: One for later that would be missed: whoever sets it is refused.
    refused: bool = False
    #: ``gpustack config reload`` applies a new value; else it takes a restart.
    reload: bool = False
