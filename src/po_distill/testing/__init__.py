"""Contract tests for plugin packages: what the library's own plugins pass, for anybody's.

Each class is subclassed in a test module under a name that begins with Test, with the one fixture that says what is
tested; see docs/plugins.md. Needs pytest.
"""

from po_distill.errors import MissingExtraError

try:
    import pytest
except ImportError as error:
    raise MissingExtraError("pytest", "testing", "The contract tests of plugins") from error

# So that a failed assertion in a contract shows its values, as one in a test module does.
pytest.register_assert_rewrite(
    *(f"{__name__}.{name}" for name in ("base_models", "launchers", "providers", "registered", "roles"))
)

from po_distill.testing.base_models import BaseModelContract  # noqa: E402
from po_distill.testing.launchers import LauncherContract  # noqa: E402
from po_distill.testing.providers import ProviderCase, ProviderContract  # noqa: E402
from po_distill.testing.roles import RoleContract  # noqa: E402

__all__ = ["BaseModelContract", "LauncherContract", "ProviderCase", "ProviderContract", "RoleContract"]
