"""Acme Pages: pages that GPUStack's server shows below /acme-pages."""

from pathlib import Path

from gpustack.plugin import NoSettings, Refused, WebApp, hookimpl

#: The version of GPUStack's plugin API that this was written for.
plugin_api_version = "1.0"


class AcmePagesApp(WebApp[NoSettings]):
    """Shows the files of the folder ``pages``; what they ask of the API is the API's to allow."""

    name = "acme-pages"
    settings_type = NoSettings
    path = "/acme-pages"

    def files(self) -> Path:
        folder = Path(__file__).resolve().parent / "pages"
        if not (folder / "index.html").is_file():
            raise Refused(f"acme-pages is not installed as a whole: {folder} has no index.html")
        return folder


@hookimpl
def register_web_apps() -> list[type[AcmePagesApp]]:
    """Bring the web app."""
    return [AcmePagesApp]
