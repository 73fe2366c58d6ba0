"""What the environment of an engine is made of, and the name that follows from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from packaging.utils import canonicalize_name

from gpustack.plugin import Artifact, ContainerImage, PipxPackage, Refused, ReleaseBinary


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One environment: a package of a backend in a version, and what a deployment wants beside it."""

    backend: str
    package: PipxPackage
    #: In one spelling and sorted, as :func:`gpustack.schemas.packages.normal_packages` returns them.
    extras: tuple[str, ...] = ()

    @classmethod
    def of(cls, backend: str, artifact: Artifact, extras: tuple[str, ...] = ()) -> Recipe:
        """Return the recipe. Raises Refused for artifacts of a kind that pipx does not install."""
        if not isinstance(artifact, PipxPackage):
            raise Refused(f"backend {backend} {not_made(artifact)}")
        return cls(backend=backend, package=artifact, extras=extras)

    @property
    def suffix(self) -> str:
        """What tells the environment from others of the package: its version, and a digest of the extras."""
        return f"_{self.package.version}" + (f"_{_digest(*self.extras)[:8]}" if self.extras else "")

    @property
    def name(self) -> str:
        """The name of the link to its executable."""
        return f"{self.package.command}{self.suffix}"

    @property
    def title(self) -> str:
        """The environment in the words of a message."""
        extras = f" with {', '.join(self.extras)}" if self.extras else ""
        return f"{self.package.package} {self.package.version}{extras}"

    @property
    def folder(self) -> str:
        """What pipx calls the folder of the environment; to compare with those that are there."""
        # Without its extras, as in package[extra].
        return canonicalize_name(f"{self.package.package.partition('[')[0]}{self.suffix}")

    @property
    def requirements(self) -> tuple[str, ...]:
        """What is installed beside the package."""
        return (*self.package.requirements, *self.extras)

    @property
    def wheel_digest(self) -> str:
        """SHA-256 of the wheel that GPUStack supplies; empty when an index does."""
        return "" if self.package.wheel is None else hashlib.sha256(self.package.wheel).hexdigest()


def not_made(artifact: Artifact) -> str:
    """Return why there is no environment of what is no package, as the end of a sentence that begins with its backend."""
    match artifact:
        case ReleaseBinary():
            return "comes as an archive; only engines that come as Python packages are exported and imported"
        case ContainerImage():
            return "comes as an image, which is pulled when a model starts, and not installed"
    return "installs nothing: its models bring a command or an image"


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()
