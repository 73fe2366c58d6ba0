"""The settings of llama-box."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict

from gpustack.plugin import Option


class LlamaBoxSettings(BaseModel):
    """How llama-box is linked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    disable_dynamic_link_llama_box: Annotated[
        bool,
        Option(
            group="Worker",
            flag=False,
            help="Dynamic linking is used by default. Setting this to true enables static linking.",
        ),
    ] = False
