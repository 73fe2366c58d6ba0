"""Options of engines."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict

from gpustack.plugin import Option


class LlamaBoxSettings(BaseModel):
    """Settings of llama-box, which is not among the engines yet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    disable_dynamic_link_llama_box: Annotated[
        bool,
        Option(
            group="Worker",
            flag=False,
            later="llama-box",
            help="Dynamic linking is used by default. Setting this to true enables static linking.",
        ),
    ] = False
