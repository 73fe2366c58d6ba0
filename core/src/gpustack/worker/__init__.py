"""The worker: measures its machine, reads model files, installs and supervises engines, and reports.

:mod:`~gpustack.worker.agent` is the entry. Engines outlive the worker: whoever starts next adopts them.
"""
