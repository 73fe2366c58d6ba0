"""Single sign-on for GPUStack, each provider a plugin like anybody else's.

Login through OpenID Connect (``oidc``) and SAML 2.0 (``saml``) will live here, each in a module of its
own, built on nothing of the core but ``gpustack.plugin``. Neither is written yet: the package registers
no plugin, and installing it changes nothing.
"""
