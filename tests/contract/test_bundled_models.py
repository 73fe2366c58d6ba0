"""Our models that come with a plugin keep their contract."""

from gpustack_demo_model.models import Demo, DemoEmbedding, DemoReranker

from gpustack.testing import BundledModelSuite


class TestDemo(BundledModelSuite):
    extension = Demo


class TestDemoEmbedding(BundledModelSuite):
    extension = DemoEmbedding


class TestDemoReranker(BundledModelSuite):
    extension = DemoReranker
