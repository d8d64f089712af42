"""What the server of `children.py` has ready before it forks: the imports, and the parser of `rca fit`."""

from __future__ import annotations

import contextlib
import io

from lightning.pytorch.cli import LightningCLI

from rca_lightning.cli.main import main
from tests.integration import children  # noqa: F401  (imported for its children)
from tests.integration.running import keep_parsers

LightningCLI.setup_parser = keep_parsers()  # type: ignore[method-assign]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main(["fit", "--help"])
