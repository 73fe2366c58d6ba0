"""The options of ``gpustack start``: each declared once, in :mod:`gpustack.settings.options`.

From that declaration come the flag (:mod:`~gpustack.settings.click_bridge`), the environment variable, the
key of the YAML file (:mod:`~gpustack.settings.load`) and the check. The rest of the program is handed a
:class:`~gpustack.settings.model.Settings` and never looks at the environment itself.

Importing this package is cheap: reading and checking values loads pydantic and dynaconf only when asked for.
"""
