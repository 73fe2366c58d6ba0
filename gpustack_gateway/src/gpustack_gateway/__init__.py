"""The gateways of GPUStack, each a plugin like anybody else's.

What carries inference requests to the engines will live here: a gateway that GPUStack runs itself
(``embedded``), one inside a Kubernetes cluster (``in_cluster``) and one that is already there
(``external``), each in a module of its own, built on nothing of the core but ``gpustack.plugin``. None is
written yet: the package registers no plugin, and installing it changes nothing.
"""
