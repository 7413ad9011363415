"""Tools for tests: an op checked on every backend, a model taken down the road stage by stage."""
