"""The declared options, read off the fields of settings models: the core's, and those that plugins add."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo

from gpustack.settings.kinds import PortRange
from gpustack.settings.model import Settings
from gpustack.settings.option import ENV_PREFIX, GROUPS, Group, Option
from gpustack.settings.sources import CLIENT_VARIABLES

#: Fields of the core's model that are none.
_NO_OPTIONS = {"plugins", "effective", "gateway"}
#: What else a plugin cannot call one: flags of commands that take these options, too.
_TAKEN = {*_NO_OPTIONS, "as_json", "help", "json"}
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SHORT = re.compile(r"-[a-gi-zA-Z]")
_SEVERAL = (tuple, list, set, frozenset, Sequence)
#: What a flag takes, by the type of its value.
_METAVARS: tuple[tuple[type, str], ...] = ((PortRange, "N1-N2"), (Path, "PATH"), (int, "N"), (float, "N"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """One option with its names. ``default`` is the value when nobody sets one."""

    #: The key in the YAML file; flag and variable follow from it.
    name: str
    option: Option
    default: Any
    annotation: Any
    description: str
    #: The plugin that brings it; empty is the core.
    plugin: str = ""

    @property
    def flag(self) -> str:
        """The long flag, with its dashes; empty for one without."""
        return "--" + self.name.replace("_", "-") if self.option.flag else ""

    @property
    def variable(self) -> str:
        """The environment variable."""
        return self.option.variable or ENV_PREFIX + self.name.upper()

    @property
    def variables(self) -> tuple[str, ...]:
        """All variables that set it, the first one before the others."""
        return tuple(filter(None, (self.variable, self.option.also)))

    @property
    def group(self) -> Group:
        """Where the help lists it."""
        return self.option.group

    @property
    def secret(self) -> bool:
        """Whether its value stays out of all output."""
        return self.option.secret or _has_secrets(self.annotation)

    @property
    def reload(self) -> bool:
        """Whether another value is applied without a restart; nobody tells a plugin of one."""
        return self.option.reload and not self.plugin

    @property
    def help(self) -> str:
        """What it does."""
        return self.option.help or self.description

    @property
    def switch(self) -> bool:
        """True when the flag alone means yes."""
        return self.annotation is bool

    @property
    def repeatable(self) -> bool:
        """True when the flag may be given several times."""
        return (get_origin(self.annotation) or self.annotation) in _SEVERAL

    @property
    def structured(self) -> bool:
        """True when text stands for a JSON object."""
        kind = self.annotation
        plain = isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not PortRange
        return plain or kind is dict or get_origin(kind) is dict

    @property
    def metavar(self) -> str:
        """What the flag takes, as the help shows it."""
        if self.option.value or self.switch:
            return self.option.value
        if self.structured:
            return "JSON"
        if self.annotation is int and self.name.endswith("port"):
            return "PORT"
        kinds = [self.annotation, *get_args(self.annotation)]
        for kind, text in _METAVARS:
            if any(isinstance(each, type) and issubclass(each, kind) for each in kinds):
                return text
        return "VALUE"

    @property
    def default_shown(self) -> str:
        """The default as people read it, empty for none."""
        if self.option.default_text:
            return self.option.default_text
        value = self.default
        if self.secret or isinstance(value, Path) or value in (None, "", {}, (), []):
            return ""
        if isinstance(value, BaseModel) and type(value).__str__ is BaseModel.__str__:
            return value.model_dump_json()
        if self.repeatable or isinstance(value, dict):
            return json.dumps(value if isinstance(value, dict) else list(value), default=str)
        return str(value.value if isinstance(value, Enum) else value)


class Options(Mapping[str, Declared]):
    """Options by name, in the order of their declaration, with the models that hold them."""

    def __init__(
        self,
        declared: Mapping[str, Declared],
        models: Mapping[type[BaseModel], str],
        missing: Iterable[str] = (),
    ) -> None:
        self._declared = dict(declared)
        #: The models with the plugin of each; the core's comes first.
        self.models = dict(models)
        #: The plugins that are installed and not loaded, whose options are not here.
        self.missing = tuple(missing)

    def __getitem__(self, name: str) -> Declared:
        return self._declared[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._declared)

    def __len__(self) -> int:
        return len(self._declared)

    def adding(self, model: type[BaseModel], plugin: str) -> Options:
        """Return these and the ones of ``model``.

        One that two models of a plugin have alike is one option. Raises ValueError, with one line, for a name or a short
        flag that is taken.
        """
        added = dict(self._declared)
        shorts = {each.option.short: each for each in added.values() if each.option.short}
        variables = {variable: each for each in added.values() for variable in each.variables}
        for each in declared(model, plugin):
            old = added.get(each.name)
            if old is not None and old != each:
                raise ValueError(
                    f"its option {each.name!r} is one of {_owner(old)} already; give it another name"
                )
            short = shorts.get(each.option.short)
            if short is not None and short.name != each.name:
                raise ValueError(
                    f"its short flag {each.option.short} is that of {short.flag} of {_owner(short)}"
                )
            for variable in each.variables:
                same = variables.setdefault(variable, each)
                if same.name != each.name:
                    raise ValueError(f"its variable {variable} is that of {same.name} of {_owner(same)}")
            for switch in (each, *added.values()):
                other = each if switch is not each else added.get(f"no_{each.name}")
                if switch.switch and other is not None and other.name == f"no_{switch.name}":
                    raise ValueError(
                        f"its option {each.name!r} would be {switch.flag} turned off or on; rename it"
                    )
            if reason := _unusable(each):
                raise ValueError(f"its option {each.name!r} {reason}")
            added[each.name] = each
        _check_successors(added)
        return Options(added, {**self.models, model: plugin}, self.missing)

    def lacking(self, plugins: Iterable[str]) -> Options:
        """Return these, knowing which plugins could not add theirs."""
        return Options(self._declared, self.models, plugins)


def _has_secrets(annotation: Any) -> bool:
    """Tell whether a type has secrets in it, at any depth."""
    seen: list[Any] = []
    kinds = [annotation]
    while kinds:
        kind = kinds.pop()
        if kind in (SecretStr, SecretBytes):
            return True
        if kind in seen:
            continue
        seen.append(kind)
        kinds += get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kinds += [field.annotation for field in kind.model_fields.values()]
    return False


def _owner(option: Declared) -> str:
    return f"plugin {option.plugin}" if option.plugin else "GPUStack"


def _unusable(option: Declared) -> str:
    """Return why a plugin's option cannot be one, empty when it can."""
    ours = {ENV_PREFIX + name for name in CLIENT_VARIABLES}
    if option.name in _TAKEN or ours & set(option.variables):
        return "has a name, or a variable, of the command line itself; give it another one"
    if not _NAME.fullmatch(option.name):
        return "has a name that is no flag; use a-z, 0-9 and _"
    if option.option.short and not _SHORT.fullmatch(option.option.short):
        return f"has the short flag {option.option.short!r}; give one such as -a, and not -h"
    if option.group not in GROUPS:
        return f"is in the group {option.group!r}; the groups are {', '.join(GROUPS)}"
    return ""


def _check_successors(options: Mapping[str, Declared]) -> None:
    for each in options.values():
        if each.option.successor and each.option.successor not in options:
            raise ValueError(
                f"the successor of its option {each.name!r} is {each.option.successor!r}, which is none"
            )


def declared(model: type[BaseModel], plugin: str = "") -> list[Declared]:
    """Return the options of a settings model, one for each field."""
    return [
        _declared(name, field, plugin)
        for name, field in model.model_fields.items()
        if plugin or name not in _NO_OPTIONS
    ]


def _declared(name: str, field: FieldInfo, plugin: str) -> Declared:
    option = next((each for each in field.metadata if isinstance(each, Option)), Option())
    return Declared(
        name=name,
        option=option,
        default=None if field.is_required() else field.get_default(call_default_factory=True),
        annotation=_without_none(field.annotation),
        description=field.description or "",
        plugin=plugin,
    )


def _without_none(annotation: Any) -> Any:
    """Return the one type of ``X | None``; what may be several things stays as it is."""
    kinds = [each for each in get_args(annotation) if each is not type(None)]
    if len(kinds) != 1 or type(None) not in get_args(annotation) or get_origin(annotation) is Literal:
        return annotation
    return get_args(kinds[0])[0] if get_origin(kinds[0]) is Annotated else kinds[0]


#: The core's own options.
CORE = Options({each.name: each for each in declared(Settings)}, {Settings: ""})
