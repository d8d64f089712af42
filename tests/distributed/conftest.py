"""The parsers of `rca` are built once, as for the integration tests."""

from tests.integration.conftest import parsers_built_once  # noqa: F401  (fixture)
