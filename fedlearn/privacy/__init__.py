"""What happens to an update on its way out, outside of user code."""

from __future__ import annotations

from fedlearn.privacy.spec import PrivacySpec

__all__ = ["PrivacySpec"]
